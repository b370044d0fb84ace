"""Batches, the exported layout, and prompts of training that match those of inference."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from nvila_core import NVILA, Budget, Measures, Plan, Video
from nvila_core.demo import __main__ as program
from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import TILE_GRID, sample_scene
from nvila_core.demo.training.batches import MEDIA_ID, ChatEncoder, attention_mask, collate
from nvila_core.demo.training.config import SHAPE
from nvila_core.demo.training.tiles import cut_frame, squash
from nvila_core.demo.training.tokenizer import train_tokenizer
from nvila_core.demo.training.visuals import (
    FLAT_FORM,
    FULL_FORM,
    MIXED_FORMS,
    STILL_FORM,
    Form,
    clip_form,
    render_visual,
)
from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.policy import UNLIMITED, GridChoice, TilingConfig


class Planned:
    """A policy that tiles the frames of a form."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        grids = [TILE_GRID if i in self.form.tiled else SINGLE_TILE for i in range(len(clip))]
        return Plan.of([GridChoice(grid, "tiled in training") for grid in grids], tiling)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export an untrained network and return the folder."""
    from nvila_core.demo.training.export import export  # slow: models of transformers
    from nvila_core.demo.training.network import DemoNetwork

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    network = DemoNetwork(SHAPE, len(train_tokenizer()))
    export(network, SHAPE, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> ChatEncoder:
    from transformers import AutoTokenizer

    return ChatEncoder(AutoTokenizer.from_pretrained(checkpoint / "llm"), SHAPE.tokens_per_tile)


@pytest.mark.parametrize(
    "form", [clip_form(4), clip_form(2), STILL_FORM, FLAT_FORM, *MIXED_FORMS, FULL_FORM]
)
def test_questions_of_a_batch_do_not_attend_to_each_other(form: Form, encoder: ChatEncoder) -> None:
    # given
    rng = random.Random(3)
    visuals = [render_visual(form, rng, 4) for _ in range(2)]

    # when
    group = collate(visuals, encoder, 4, rng)
    mask = attention_mask(group.segments)[:, 0] == 0

    # then
    assert (group.ids == MEDIA_ID).sum() == len(group.tiles) * SHAPE.tokens_per_tile
    segments = group.segments
    different = (segments[:, :, None] != segments[:, None, :]) & (segments[:, None, :] != 0)
    assert not (mask & different).any()
    assert mask.diagonal(dim1=1, dim2=2).all()


def test_the_exported_checkpoint_has_the_published_layout(checkpoint: Path) -> None:
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "llm/added_tokens.json",
        "llm/config.json",
        "llm/generation_config.json",
        "llm/merges.txt",
        "llm/model.safetensors",
        "llm/special_tokens_map.json",
        "llm/tokenizer_config.json",
        "llm/vocab.json",
        "mm_projector/config.json",
        "mm_projector/model.safetensors",
        "vision_tower/config.json",
        "vision_tower/model.safetensors",
        "vision_tower/preprocessor_config.json",
    }
    assert sum(path.stat().st_size for path in checkpoint.rglob("*")) < 16 * 2**20


def test_an_exported_checkpoint_can_be_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    from nvila_core.demo.training.export import export, load_weights
    from nvila_core.demo.training.network import DemoNetwork

    # given
    torch.manual_seed(1)
    network = DemoNetwork(SHAPE, len(train_tokenizer()))

    # when
    load_weights(network, checkpoint)
    export(network, SHAPE, tmp_path / "again")

    # then
    for part in ("llm", "mm_projector", "vision_tower"):
        name = f"{part}/model.safetensors"
        assert (tmp_path / "again" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_tiles_of_training_are_those_of_inference(checkpoint: Path) -> None:
    # given
    model = NVILA.from_pretrained(checkpoint)
    times = (0.0, 1.0, 2.0, 3.0)
    frames = render_clip(sample_scene(9, times), times, (336, 252))

    # when
    video = model.prepare([Video(frames), "What changed?"])
    image = model.prepare([Image.fromarray(frames[0]), "Read the sign."])
    planned = model.prepare([Video(frames), "What changed?"], policy=Planned(MIXED_FORMS[2]))

    # then
    def pixels(tiles: Sequence[object]) -> torch.Tensor:
        stacked = torch.stack([torch.tensor(tile) for tile in tiles]).permute(0, 3, 1, 2)
        return (stacked.float() / 255 - 0.5) / 0.5

    squashed = [squash(frame) for frame in frames]
    assert torch.allclose(video.pixel_values, pixels(squashed), atol=1e-5)
    assert torch.allclose(
        image.pixel_values, pixels([*cut_frame(frames[0]), squashed[0]]), atol=1e-5
    )
    assert torch.allclose(
        planned.pixel_values, pixels([*cut_frame(frames[2]), *squashed]), atol=1e-5
    )


@pytest.mark.parametrize(
    "form", [clip_form(4), STILL_FORM, MIXED_FORMS[0], MIXED_FORMS[2], FULL_FORM]
)
def test_training_prompts_are_those_of_inference(
    form: Form, checkpoint: Path, encoder: ChatEncoder
) -> None:
    # given
    model = NVILA.from_pretrained(checkpoint)
    frames = render_clip(sample_scene(9, (0.0, 1.0, 2.0, 3.0)), (0.0, 1.0, 2.0, 3.0), (336, 252))
    media = Video(frames) if form.frames > 1 else Image.fromarray(frames[0])

    # when
    policy = Planned(form) if form.tiled else None
    prompt = model.prepare([media, "What changed?"], policy=policy)
    trained = encoder.prefix(form) + encoder.question("What changed?")

    # then
    assert len(trained) == prompt.num_tokens
    image = model.tokenizer.image_id
    asked = [token for token in prompt.token_ids if token != image]
    # Each tile's newline is an embedding in inference and a token in training.
    newlines = len(prompt.pixel_values)
    assert len([token for token in trained if token != MEDIA_ID]) == len(asked) + newlines
    assert form.media in prompt.text
    assert prompt.tiles == form.tiles


def test_training_needs_a_source_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given an installation from the wheel, which has no training modules
    monkeypatch.setattr(program, "find_spec", lambda name: None)

    # then
    assert program.main(["train"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
