"""The command `python -m nvila_core ask`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nvila_core.cli import main
from nvila_core.resolution.grids import tile_count

ASK = ["--max-tokens", "6", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def media(tmp_path: Path, pictures: Any) -> dict[str, str]:
    """Three photos, a clip, and a directory of frames."""
    names = ("a.png", "b.jpg", "wide.png", "clip.mp4", "frames")
    paths = {name: str(tmp_path / name) for name in names}
    pictures.image(200, 100).save(paths["a.png"])
    pictures.image(100, 200).save(paths["b.jpg"])
    pictures.image(448, 112).save(paths["wide.png"])  # fills four tiles
    Path(paths["frames"]).mkdir()
    for i in range(3):
        pictures.image().save(f"{paths['frames']}/{i}.png")
    with av.open(paths["clip.mp4"], "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return paths


def ask(folder: Path, *args: str) -> int:
    return main(["ask", "--model", str(folder), *ASK, *args])


@pytest.mark.parametrize(
    ("files", "options", "tiles"),
    [
        (["a.png"], [], 3),
        (["a.png", "b.jpg"], [], 2),
        (["clip.mp4"], [], 8),
        (["clip.mp4"], ["--frames", "4"], 4),
        (["frames"], ["--frames", "3", "--system", "Be brief."], 3),
        (["a.png", "wide.png"], ["--policy", "fixed:4"], 6),
        (["a.png", "wide.png"], ["--policy", "native"], 2),
        (["a.png", "b.jpg"], ["--policy", "adaptive"], 2),
        ([], [], 0),
    ],
)
def test_json_answer(
    tiny_folder: Path,
    media: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    options: list[str],
    tiles: int,
) -> None:
    code = ask(tiny_folder, "--json", *options, *(media[f] for f in files), "What is it?")
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["usage"]["tiles"] == tiles
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"]) <= 6
    assert answer["finish_reason"] in ("stop", "length")
    assert sum(tile_count(tuple(frame["grid"])) for frame in answer["plan"]) == tiles
    assert all(frame["reason"] for frame in answer["plan"])
    assert set(answer["timings"]) == {"queue_ms", "encode_ms", "generate_ms"}


def test_stream_prints_the_same_text(
    tiny_folder: Path, media: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tiny_folder, media["a.png"], "What?") == 0
    text = capsys.readouterr().out
    assert ask(tiny_folder, "--stream", media["a.png"], "What?") == 0
    assert capsys.readouterr().out == text
    assert ask(tiny_folder, "--stream", "--json", media["a.png"], "What?") == 0
    *deltas, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert "".join(d["delta"] for d in deltas) == last["text"] == text.removesuffix("\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.jpg", "What?"], "nowhere.jpg"),
        (["a.png"], "add a question"),
        (["bad.mp4", "What?"], "bad.mp4"),
        ([" "], "empty"),
        (["--temperature", "-1", "What?"], "temperature"),
        (["--model", "nowhere", "What?"], "nowhere"),
        (["--policy", "wild", "What?"], "'adaptive:12'"),
        (["--policy", "adaptive", "--video-max-tiles", "4", "What?"], "omit one"),
        (["x" * 9000], "context holds 4096"),
    ],
)
def test_errors_are_one_line(
    tiny_folder: Path,
    media: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    words: str,
) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    paths = {**media, "bad.mp4": str(tmp_path / "bad.mp4")}
    code = ask(tiny_folder, *(paths.get(arg, arg) for arg in args))
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_runs_without_the_service_and_the_models_of_transformers(tiny_folder: Path) -> None:
    # those bring torch.distributed and torch._dynamo along: half of a model worker's start
    program = (
        "import sys; from nvila_core.cli import main\n"
        f"code = main(['ask', '--model', {str(tiny_folder)!r}, '--max-tokens', '2', 'Hello?'])\n"
        "others = {'redis', 'rq', 'streamer', 'workers', 'fastapi', 'torch._dynamo',"
        " 'transformers.modeling_utils', 'torch.distributed.tensor'} & set(sys.modules)\n"
        "assert code == 0 and not others, (code, others)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() != ""


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, nvila_core as n; n.CheckpointError; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0


def test_an_answer_in_a_form_also_from_a_quantized_model(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [1, 2]}')
    for form, answers in (
        (["--choice", "yes", "--choice", "no"], ("yes", "no")),
        (["--json-schema", str(schema)], ("1", "2")),
        (["--json-schema", '{"const": null}', "--quantize", "int4"], ("null",)),
    ):
        assert ask(tiny_folder, *form, "Which?") == 0
        assert capsys.readouterr().out.strip() in answers


@pytest.mark.parametrize("schema", ["nowhere.json", "{", '{"not": {}}'])
def test_an_invalid_schema_is_one_sentence(
    tiny_folder: Path, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tiny_folder, "--json-schema", schema, "Which?") == 1

    error = capsys.readouterr().err
    assert "The JSON schema" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("mode", [[], ["--json"], ["--stream"]])
@pytest.mark.parametrize(
    "form", [["--json-schema", '{"const": "a long word"}'], ["--choice", "a long word"]]
)
def test_a_form_that_was_not_finished_is_an_error(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], form: list[str], mode: list[str]
) -> None:
    assert ask(tiny_folder, *form, *mode, "--max-tokens", "4", "Which?") == 1

    out, err = capsys.readouterr()
    assert "cut after 4 tokens" in err
    if not mode:
        assert out == ""
