"""The program that checks and measures a lent card, rehearsed where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run
import torch

ROOT = Path(__file__).parents[3]
STREAMS = ("streams", "streams-fp8", "streams-camera")


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the program in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    return run.main()


def test_a_run_keeps_what_an_earlier_one_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given the results of an earlier run
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"card": {"": {"old": 1}}, "8b": {"": {"ms": 2}}}))
    # when one part is run
    assert start(monkeypatch, "--device", "cpu", "--out", str(tmp_path), "--part", "card") == 0
    # then the other one is still there
    found = json.loads(file.read_text())
    assert found["8b"] == {"": {"ms": 2}}
    assert found["card"][""]["torch"] == torch.__version__
    assert "rehearsal" in capsys.readouterr().out


def test_without_a_card_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a machine on which PyTorch sees no card
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # when
    status = start(monkeypatch, "--out", str(tmp_path))
    # then
    assert status == 1
    assert "sees no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_no_part_runs_on_a_card_that_is_lost(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a part that fails, after which the card answers every call with an error, or works
    ran: list[str] = []

    def fails() -> dict[str, Any]:
        ran.append("first")
        raise RuntimeError("an illegal memory access")

    def works() -> dict[str, Any]:
        ran.append("second")
        return {"a step": {"ms": 1.0}}

    def call(*_: object) -> None:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, "parts", lambda *_: {"first": fails, "second": works})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", call)
    # when
    status = start(monkeypatch, "--out", str(tmp_path))
    # then the next part runs only on a card that works
    assert status == 1
    assert ran == (["first"] if lost else ["first", "second"])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "an illegal memory access" in found["first"]["failed"][""]
    out = capsys.readouterr().out
    assert ("second: left out, the card is lost" in out) is lost


@pytest.mark.slow
def test_the_streams_are_rehearsed_without_a_card(tmp_path: Path) -> None:
    # given no card
    command = [sys.executable, str(ROOT / "benchmarks/gpu/run.py"), "--device", "cpu"]
    parts = [word for name in STREAMS for word in ("--part", name)]
    # when the streams are rehearsed
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--seconds", "10000", *parts],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    # then each of them ran, and says what both processes used
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found) == set(STREAMS)
    for part in found.values():
        at_once = part["2 clips at once"]
        assert at_once["CPU s of the load"] > 0
        assert at_once["CPU s of the engine's process"] > 0
        assert part["engine"]["failed"] == 0
        assert part["engine"]["finished"] >= 4
