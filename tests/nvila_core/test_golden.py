"""Parity with recordings of the original implementation, within the manifest's tolerances."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nvila_core import NVILA, Prompt, SamplingParams, Video
from nvila_core.media.preprocess import Processor, dynamic_tiles, pad_to_square
from nvila_core.media.video import rate_indices, uniform_indices
from nvila_core.models.media_encoders import tsp_positions
from nvila_core.models.projector import build_projector
from tests.support.recordings import find_recordings

CASES = [
    "lite-pad__a_image_dynamic",
    "lite-pad__a2_image_one_tile",
    "lite-pad__b_two_images",
    "lite-pad__c_video8_main",
    "lite-pad__c_video8_release",
    "lite-pad__c_video8_tiles4_release",
    "lite-pad__d_text_only",
    "nvila-2x2-s2__a_image_dynamic_s2",
    "nvila-2x2-resize__c_video8_main",
]

WITH_FEATURES = [
    "lite-pad__a_image_dynamic",
    "lite-pad__a2_image_one_tile",
    "lite-pad__b_two_images",
    "lite-pad__c_video8_main",
    "nvila-2x2-s2__a_image_dynamic_s2",
    "nvila-2x2-resize__c_video8_main",
]
"""Cases with recorded features, but for the one whose prompt takes options."""


def read_parts(golden: Path, prompts: dict[str, list[str]], case: str) -> list[Any]:
    """Return the parts of a case: pictures, the clip, and text."""
    pixels = load_file(golden / "inputs/pixels.safetensors")
    recipe = next(
        parts
        for names, parts in prompts.items()
        for name in names.split("|")
        if case == name or (name.endswith("*") and case.startswith(name[:-1]))
    )
    parts: list[Any] = []
    for part in recipe:
        if part.startswith("inputs:"):
            parts.append(Image.fromarray(pixels[part.removeprefix("inputs:")].numpy()))
        elif part.startswith("video:"):
            parts.append(Video.from_path(golden / "inputs/clip_frames"))
        else:
            parts.append(part)
    return parts


def to_float(pixels: torch.Tensor) -> np.ndarray:
    """Scale pixels by the manifest's formula."""
    scaled = (pixels.numpy().astype(np.float64) * 0.00392156862745098).astype(np.float32)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


@pytest.fixture
def manifest(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "manifest.json").read_text())


def test_every_recording_is_compared(golden: Path, manifest: dict[str, Any]) -> None:
    recorded = {path.stem: load_file(path) for path in (golden / "cases").iterdir()}

    assert set(CASES) == set(recorded) == set(manifest["cases"])
    with_features = {name for name, case in recorded.items() if "vision_features.0" in case}
    assert set(WITH_FEATURES) == {name for name in with_features if "tiles4" not in name}


def test_recordings_come_with_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVILA_GOLDEN", raising=False)

    assert find_recordings() == Path(__file__).parents[1] / "golden"


def test_a_folder_without_recordings_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVILA_GOLDEN", str(tmp_path))

    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        find_recordings()


@pytest.mark.parametrize("name", CASES)
def test_case(
    name: str, golden: Path, manifest: dict[str, Any], golden_models: dict[str, NVILA]
) -> None:
    # given a recorded case
    record, recorded = manifest["cases"][name], load_file(golden / f"cases/{name}.safetensors")
    model = golden_models[record["checkpoint"]]
    parts = read_parts(golden, manifest["prompts"], name.split("__")[1])

    # when it is prepared with the recorded settings
    prompt = model.prepare(
        parts,
        video_as="video" if record["path"] == "release" else "image",
        **record["config_overrides"],
    )

    # then text, ids and pixels are equal, and embeddings and logits within the tolerances
    assert prompt.text == record["chat_text"]
    assert prompt.token_ids == recorded["input_ids"].tolist()
    assert_pixels(prompt, recorded, record["truncated"])
    embeds, logits = model.embed(prompt), model.logits(prompt)
    assert embeds.shape == recorded["inputs_embeds"].shape == (prompt.num_tokens, embeds.shape[1])
    torch.testing.assert_close(embeds, recorded["inputs_embeds"], atol=2e-4, rtol=0)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, recorded["logits"], atol=1e-3, rtol=0)

    # and greedy decoding gives the same tokens and text
    through_eos = model.generate(prompt, SamplingParams(max_tokens=16, ignore_eos=True))
    assert through_eos.token_ids == recorded["greedy16"].tolist()
    answer = model.generate(prompt, SamplingParams(max_tokens=16))
    assert answer.token_ids == recorded["generate_content_ids"].tolist()
    assert answer.text == record["response"]


def assert_pixels(
    prompt: Prompt, recorded: dict[str, torch.Tensor], truncated: dict[str, Any]
) -> None:
    for key in (k for k in recorded if k.startswith("pixels_u8.")):
        stored = to_float(recorded[key])
        np.testing.assert_array_equal(prompt.pixel_values[: len(stored)].numpy(), stored)
        if key in truncated:
            levels = ((prompt.pixel_values * 0.5 + 0.5) * 255).round().to(torch.uint8)
            assert list(levels.shape) == truncated[key]["full_shape"]
            assert (
                hashlib.sha256(levels.numpy().tobytes()).hexdigest()
                == truncated[key]["sha256_full"]
            )
        else:
            assert len(prompt.pixel_values) == len(stored)


@pytest.mark.parametrize("name", WITH_FEATURES)
def test_tower_and_projector(
    name: str, golden: Path, manifest: dict[str, Any], golden_models: dict[str, NVILA]
) -> None:
    recorded = load_file(golden / f"cases/{name}.safetensors")
    model = golden_models[manifest["cases"][name]["checkpoint"]]
    prompt = model.prepare(read_parts(golden, manifest["prompts"], name.split("__")[1]))
    features = model.vision(prompt.pixel_values)
    stored = recorded["vision_features.0"]
    torch.testing.assert_close(features[: len(stored)], stored, atol=5e-5, rtol=0)
    if not model.config.s2_scales:
        projected = model.projector(features)
        torch.testing.assert_close(projected, recorded["projector_out.0"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("grid", [7, 8, 9, 10, 32])
@pytest.mark.parametrize(
    "kind", ["mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]
)
def test_projector(kind: str, grid: int, golden: Path) -> None:
    units = load_file(golden / "units/projector.safetensors")
    projector = build_projector(kind, 4, 6)
    prefix = f"{kind}.weights."
    projector.load_state_dict(
        {k[len(prefix) :]: v for k, v in units.items() if k.startswith(prefix)}
    )
    x = units[f"{kind}.grid{grid}.x"]
    with torch.inference_mode():
        assert torch.equal(projector.layers[0](x), units[f"{kind}.grid{grid}.downsampled"])
        torch.testing.assert_close(projector(x), units[f"{kind}.grid{grid}.out"], atol=1e-5, rtol=0)


def test_temporal_spatial_pooling(golden: Path) -> None:
    units = load_file(golden / "units/tsp.safetensors")
    for name in (n for n in units if n not in ("x", "end", "sep")):
        pools = [tuple(map(int, p.split("_"))) for p in name.removesuffix(".sep").split("__")]
        sep = units["sep"] if name.endswith(".sep") else None
        out = tsp_positions(units["x"], pools, None, units["end"], sep)  # type: ignore[arg-type]
        torch.testing.assert_close(out, units[name], atol=1e-6, rtol=0)


def test_pixels_at_full_size(golden: Path) -> None:
    processor = Processor(448)
    rows = json.loads((golden / "units/pixels448.json").read_text())["rows"]
    for row in rows:
        x, y, c = (
            np.arange(row["w"])[None, :, None],
            np.arange(row["h"])[:, None, None],
            np.arange(3),
        )
        image = Image.fromarray(((7 * x + 13 * y + 31 * c + (x * y) // 17) % 256).astype(np.uint8))
        pictures = {
            "dynamic": lambda image=image: dynamic_tiles(image, 448, 1, 12),
            "pad": lambda image=image: [pad_to_square(image, processor.mean)],
            "resize": lambda image=image: [image.resize((448, 448))],
            "plain": lambda image=image: [image],
        }[row["mode"]]()
        pixels = processor(pictures)
        assert list(pixels.shape) == row["shape"]
        assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == row["sha256_float32_nchw"]


def test_frame_indices(golden: Path) -> None:
    sampling = json.loads((golden / "units/video_sampling.json").read_text())
    for row in sampling["uniform_indices"]:
        assert uniform_indices(row["total"], row["num_frames"]) == row["indices"]
    for row in sampling["load_video"]:
        count, fps = row["num_frames"], row["fps"]
        indices = uniform_indices(30, count) if fps <= 0 else rate_indices(30, 10.0, count, fps)
        assert indices == row["frames"]


def test_frames_of_a_file(golden: Path) -> None:
    # the clip's frames are grey, 8 levels brighter each
    sampling = json.loads((golden / "units/video_sampling.json").read_text())
    video = Video.from_path(golden / "units/clip30.mkv")
    for row in (r for r in sampling["load_video"] if r["num_frames"] in (1, 4, 8, 31)):
        levels = [np.asarray(f).mean() / 8 for f in video.sample(row["num_frames"], row["fps"])]
        assert [round(level) for level in levels] == row["frames"]


def test_tokenization(golden: Path, golden_models: dict[str, NVILA]) -> None:
    rows = json.loads((golden / "units/tokenization.json").read_text())["lite-pad"]
    model = golden_models["lite-pad"]
    assert model.tokenizer.stop_ids == set(rows["stop_token_ids"])
    assert len(model.tokenizer) == rows["len"]
    checked = 0
    for row in rows["rows"]:
        if "parts" in row:
            tiles = row["dynamic_tiles"]
            images = sum(isinstance(part, dict) for part in row["parts"])
            # here, unlike in the original, user text never becomes a control token
            injected = any(isinstance(p, str) and "<|" in p for p in row["parts"])
            if injected or (images == 1 and tiles is None):
                continue
            image = Image.new("RGB", (112, 112) if tiles == 1 else (224, 112))
            parts: list[Any] = [image if isinstance(p, dict) else p for p in row["parts"]]
        else:
            roles = {"human": "user", "gpt": "assistant"}
            turns = row.get("multi_turn") or row["turns"]
            parts = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
            if row.get("no_system_prompt"):
                parts.insert(0, {"role": "system", "content": ""})
        assert model.prepare(parts).token_ids == row["ids"], row
        checked += 1
    assert checked > 15
