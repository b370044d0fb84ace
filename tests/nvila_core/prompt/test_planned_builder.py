"""`prepare` with a resolution policy or a plan: the tiles and their order in the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_core import (
    NVILA,
    Budget,
    Fixed,
    Measures,
    MediaError,
    Plan,
    PromptError,
    PromptTooLong,
    Video,
)
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.media.preprocess import cut_tiles, grid_tiles
from nvila_core.resolution.grids import SINGLE_TILE, tile_count
from nvila_core.resolution.policy import UNLIMITED, GridChoice, TilingConfig

SIZE, TILE = 112, 9  # of the tiny model: pixels along a tile, its LLM tokens
TILING = TilingConfig(SIZE, TILE)


class Given:
    """A policy that plans these grids, and records its arguments."""

    def __init__(self, *grids: tuple[int, int]) -> None:
        self.grids = grids
        self.asked: list[tuple[list[Measures], TilingConfig, Budget]] = []

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        self.asked.append((list(clip), tiling, budget))
        assert len(clip) == len(self.grids)
        return Plan.of([GridChoice(grid, "because") for grid in self.grids], tiling)


def user_text(prompt: Any) -> str:
    return prompt.text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]


def test_a_frames_tiles_come_before_its_video(tiny: NVILA, pictures: Any) -> None:
    # given a video of three frames, the second of which is planned with two by three tiles
    frames = [pictures.image(320, 480) for _ in range(3)]
    policy = Given(SINGLE_TILE, (2, 3), SINGLE_TILE)
    prompt = tiny.prepare(["See ", Video(frames, sampled=True), "What?"], policy=policy)

    # then its tiles come first, row by row, each with a line end; then the video as published
    assert user_text(prompt) == "See " + "<image>\n" * 6 + "<image>" * 3 + "What?"
    assert (prompt.tiles, prompt.vision_tokens) == (9, 9 * TILE)
    assert [frame.grid for frame in prompt.plan.frames] == [SINGLE_TILE, (2, 3), SINGLE_TILE]
    assert (prompt.plan.tiles, prompt.plan.tokens) == (9, 9 * TILE)
    processor = tiny.config.processor
    assert torch.equal(
        prompt.pixel_values, processor([*cut_tiles(frames[1], (2, 3), SIZE), *frames])
    )
    # and each tile's positions are where its token is
    assert tiny.embed(prompt).shape == (prompt.num_tokens, tiny.language.hidden_size)
    assert prompt.num_tokens == len(prompt.token_ids) + 9 * TILE


def test_a_single_frame_is_the_published_tiled_image(tiny: NVILA, pictures: Any) -> None:
    image = pictures.image(640, 360)
    published = tiny.prepare([image, "x"])
    (grid,) = (frame.grid for frame in published.plan.frames)
    assert tile_count(grid) == published.tiles == 9
    for part in (image, Video([image], sampled=True)):
        planned = tiny.prepare([part, "x"], policy=Given(grid))
        assert (planned.text, planned.token_ids) == (published.text, published.token_ids)
        assert torch.equal(planned.pixel_values, published.pixel_values)


@pytest.mark.parametrize("video_as", ["image", "video"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_video_of_one_tile_a_frame_keeps_the_published_form(
    tiny: NVILA, pictures: Any, video_as: Any, count: int
) -> None:
    frames = [pictures.image(SIZE, SIZE) for _ in range(count)]
    parts = ["A ", Video(frames, sampled=True), " b"]
    published = tiny.prepare(parts, video_as=video_as)
    planned = tiny.prepare(parts, video_as=video_as, policy=Given(*[SINGLE_TILE] * count))
    assert (planned.text, planned.token_ids) == (published.text, published.token_ids)
    assert planned.media == published.media
    assert torch.equal(planned.pixel_values, published.pixel_values)


def test_tiles_come_before_a_video_that_is_one_token_too(tiny: NVILA, pictures: Any) -> None:
    frames = [pictures.image(300, 300) for _ in range(3)]
    parts = [Video(frames, sampled=True), "x"]
    policy = Given((2, 2), SINGLE_TILE, (2, 1))
    prompt = tiny.prepare(parts, video_as="video", policy=policy)
    assert user_text(prompt) == "<image>\n" * 6 + "<vila/video>x"
    assert prompt.tiles == 9
    assert tiny.embed(prompt).shape[0] == prompt.num_tokens
    # its positions are those of a video written as images
    images = tiny.prepare(parts, policy=policy)
    assert torch.equal(tiny.embed(prompt), tiny.embed(images))


def test_images_and_videos_of_a_conversation_share_one_plan(tiny: NVILA, pictures: Any) -> None:
    a, b = pictures.image(448, 224), pictures.image(90, 90)
    video = Video([pictures.image(240, 240) for _ in range(2)], sampled=True)
    policy = Given(SINGLE_TILE, (2, 2), SINGLE_TILE, (2, 1))
    conversation = [
        {"role": "user", "content": ["First ", b, " then ", video, "?"]},
        {"role": "assistant", "content": "A box."},
        {"role": "user", "content": [a, "And this?"]},
    ]
    prompt = tiny.prepare(conversation, policy=policy, budget=Budget(999, 0.25))

    ((clip, tiling, budget),) = policy.asked
    assert [(m.width, m.height) for m in clip] == [(90, 90), (240, 240), (240, 240), (448, 224)]
    assert (tiling.size, tiling.tokens, budget) == (SIZE, TILE, Budget(999, 0.25))
    assert "First <image> then " + "<image>\n" * 4 + "<image>" * 2 + "?" in prompt.text
    assert "<image>\n" * 3 + "And this?" in prompt.text
    processor = tiny.config.processor
    assert torch.equal(prompt.pixel_values[0], processor([b])[0])
    assert torch.equal(prompt.pixel_values[7:], processor(grid_tiles(a, (2, 1), SIZE)))


def test_frames_may_be_smaller_than_what_was_measured(tiny: NVILA, pictures: Any) -> None:
    # given frames of a 4K camera, of which a quarter was decoded
    frames = [pictures.image(960, 540) for _ in range(2)]
    detail = Measures(3840, 2160, detail=(0, 0, 30, 30, 30), fresh=(0,) * 5)
    video = Video(frames, sampled=True, measures=[detail, detail])
    prompt = tiny.prepare([video, "x"], policy="adaptive")
    # then the grid is that of the plan for the camera's frames
    planned = tiny.plan([detail, detail], "adaptive")
    assert prompt.plan == planned
    assert planned.frames[1].grid == (3, 3)
    assert prompt.tiles == planned.tiles == 11


@pytest.mark.parametrize("count", [1, 3])
def test_a_plan_replaces_policy_and_measures(tiny: NVILA, pictures: Any, count: int) -> None:
    # given a clip of more frames than the checkpoint samples by default, planned in advance
    measures = [Measures(640, 480, (30.0,) * 4, (30.0,) * 4)] * count
    plan = tiny.plan(measures, "adaptive", Budget(200))
    frames = [pictures.image(640, 480) for _ in range(count)]
    planned = tiny.prepare([Video(frames, sampled=True), "x"], plan=plan)
    # then no frame is measured, and the prompt is that of the policy
    again = tiny.prepare(
        [Video(frames, sampled=True, measures=measures), "x"],
        policy="adaptive",
        budget=Budget(200),
    )
    assert planned.plan == again.plan == plan
    assert planned.token_ids == again.token_ids
    assert torch.equal(planned.pixel_values, again.pixel_values)


def test_a_plan_has_all_frames_of_its_video(tiny: NVILA, pictures: Any) -> None:
    frames = [pictures.image(64, 64) for _ in range(tiny.config.num_video_frames + 2)]
    plan = tiny.plan([Measures(64, 64)] * len(frames))
    assert tiny.prepare([Video(frames, sampled=True), "x"], plan=plan).tiles == len(frames)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_plan_of_another_number_of_frames_is_refused(
    tiny: NVILA, pictures: Any, count: int
) -> None:
    plan = tiny.plan([Measures(64, 64)] * count)
    parts = [pictures.image(64, 64), "x", *[pictures.image(64, 64)] * 2]
    with pytest.raises(PromptError, match=f"for {count} frames but the prompt has 3"):
        tiny.prepare(parts, plan=plan)


def test_a_plan_and_a_policy_are_not_given_together(tiny: NVILA, pictures: Any) -> None:
    plan = tiny.plan([Measures(64, 64)])
    for replaced in ({"policy": "fixed:2"}, {"budget": Budget(9)}):
        with pytest.raises(PromptError, match="replaces policy and budget"):
            tiny.prepare([pictures.image(64, 64), "x"], plan=plan, **replaced)


def test_measures_follow_the_frames_that_are_sampled(tiny: NVILA, pictures: Any) -> None:
    measures = [Measures(640, 480, (float(i),), (float(i),), 0.01 * i) for i in range(9)]
    video = Video([pictures.image() for _ in range(9)], measures=measures)
    policy = Given(*[SINGLE_TILE] * 3)
    tiny.prepare([video, "x"], num_video_frames=3, policy=policy)
    clip = policy.asked[0][0]
    assert [m.detail for m in clip] == [(0,), (4,), (8,)]
    assert [m.fresh for m in clip] == [(0,), (4,), (8,)]
    assert [m.change for m in clip[1:]] == pytest.approx([0.1, 0.26])
    # repeated frames are not new
    policy = Given(*[SINGLE_TILE] * 8)
    tiny.prepare([Video([pictures.image()], measures=measures[8:]), "x"], policy=policy)
    assert [m.change for m in policy.asked[0][0]] == pytest.approx([0.08] + [0] * 7)


def test_frames_that_were_not_measured_are_measured(tiny: NVILA, pictures: Any) -> None:
    plain = np.full((448, 448, 3), 99, np.uint8)
    checked = plain.copy()
    checked[::2, 100:300] = 250
    flat, busy = Image.fromarray(plain), Image.fromarray(checked)
    policy = Given(*[SINGLE_TILE] * 3)
    tiny.prepare([Video([flat, flat, busy], sampled=True), "x"], policy=policy)
    first, second, third = policy.asked[0][0]
    assert (first.change, second.change) == (1, 0)
    assert max(first.detail) == max(second.fresh) == 0
    assert third.detail[0] > 50
    assert third.fresh == third.detail


@pytest.mark.parametrize("policy", [None, "native"])
def test_without_a_policy_all_is_as_published_and_the_plan_says_so(
    tiny: NVILA, pictures: Any, policy: Any
) -> None:
    video = Video([pictures.image(640, 480) for _ in range(3)], sampled=True)
    prompt = tiny.prepare([video, "x"], policy=policy, budget=Budget(0))
    assert prompt.plan.frames == (GridChoice(SINGLE_TILE, "published: one of several"),) * 3
    image = tiny.prepare([pictures.image(640, 360), "x"], policy=policy)
    assert image.plan.frames == (GridChoice((4, 2), "published: by aspect ratio"),)
    assert (image.plan.tiles, image.plan.tokens) == (image.tiles, image.vision_tokens)
    tiled = tiny.prepare([video, "x"], policy=policy, video_as="video", video_max_tiles=12)
    assert [frame.grid for frame in tiled.plan.frames] == [(4, 3)] * 3
    assert tiled.plan.tiles == tiled.tiles == 39
    assert tiny.prepare(["no picture"], policy=policy).plan == Plan()


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, Shape(scales=3, projector="mlp_downsample")),
        ({"image_aspect_ratio": "resize"}, Shape()),
    ],
)
def test_checkpoints_that_cannot_tile_frames_keep_their_rule(
    tmp_path: Any, pictures: Any, config: dict[str, Any], shape: Shape
) -> None:
    model = NVILA.from_pretrained(write_checkpoint(tmp_path / "other", shape, config=config))
    for parts in ([pictures.image(640, 360), "x"], [Video([pictures.image()] * 3), "x"]):
        published, planned = model.prepare(parts), model.prepare(parts, policy=Fixed(12))
        assert planned.token_ids == published.token_ids
        assert torch.equal(planned.pixel_values, published.pixel_values)
        assert "published" in planned.plan.frames[0].reason
        count = len(published.plan.frames)
        kept = model.prepare(parts, plan=Plan.of([GridChoice((2, 1), "")] * count, TILING))
        assert kept.token_ids == published.token_ids
    assert model.plan([Measures(640, 360)] * 2, Fixed(12)).tiles == 2


def test_the_grids_that_a_checkpoint_knows_are_respected(tmp_path: Any) -> None:
    folder = write_checkpoint(tmp_path / "known", config={"tile_grids": [[2, 1], [4, 3]]})
    model = NVILA.from_pretrained(folder)
    seen = Measures(640, 480, detail=(50.0,) * 4)
    assert model.plan([seen], "adaptive").frames[0].grid == (4, 3)
    assert model.plan([seen], "adaptive", Budget(5 * TILE)).frames[0].grid == (2, 1)
    assert model.plan([seen], "fixed:6").frames[0].grid == (2, 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from([SINGLE_TILE, SINGLE_TILE, (2, 1), (1, 3), (2, 2)]), min_size=1, max_size=5
    ),
    st.sampled_from(["image", "video"]),
)
def test_any_plan_becomes_a_prompt_of_exactly_its_tiles(
    tiny: NVILA, pictures: Any, grids: list[tuple[int, int]], video_as: Any
) -> None:
    frames = [pictures.image(230, 220) for _ in grids]
    prompt = tiny.prepare(
        [Video(frames, sampled=True), "x"],
        num_video_frames=len(frames),
        video_as=video_as,
        policy=Given(*grids),
    )
    assert [frame.grid for frame in prompt.plan.frames] == grids
    assert prompt.tiles == prompt.plan.tiles == sum(map(tile_count, grids))
    assert prompt.vision_tokens == prompt.plan.tokens
    views = [
        tile
        for f, g in zip(frames, grids, strict=True)
        if g != SINGLE_TILE
        for tile in cut_tiles(f, g, SIZE)
    ]
    assert torch.equal(prompt.pixel_values, tiny.config.processor([*views, *frames]))
    assert len(tiny.embed(prompt)) == prompt.num_tokens


def test_invalid_options_are_an_error_of_one_sentence(tiny: NVILA, pictures: Any) -> None:
    image = pictures.image(640, 480)
    with pytest.raises(PromptError, match="policy 'best' is unknown"):
        tiny.prepare([image, "x"], policy="best")
    with pytest.raises(MediaError, match="1 frames but 2 measures"):
        Video([image], measures=[Measures(1, 1)] * 2)
    with pytest.raises(PromptTooLong):
        tiny.prepare(
            [Video([image] * 200, sampled=True), "x"], num_video_frames=200, policy="fixed:12"
        )
