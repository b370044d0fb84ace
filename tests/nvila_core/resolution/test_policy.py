"""Resolution policies: properties that hold for any measures, and plans for some."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_core import Adaptive, Budget, Fixed, Measures, Native, PromptError
from nvila_core.resolution.grids import SINGLE_TILE, choose_grid, tile_count
from nvila_core.resolution.policy import Plan, TilingConfig, parse_policy, subsample

LITE = TilingConfig(size=448, tokens=121)
FULL_HD: dict[str, Any] = {"width": 1920, "height": 1080}

strengths = st.lists(st.floats(0, 60), max_size=6).map(tuple)
measures = st.builds(
    Measures,
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    detail=strengths,
    fresh=strengths,
    change=st.floats(0, 1),
)
clips = st.lists(measures, max_size=12)
tilings = st.builds(
    TilingConfig,
    size=st.integers(28, 512),
    tokens=st.integers(1, 256),
    max_tiles=st.integers(1, 16),
    grids=st.sampled_from([(), ((4, 3),), ((2, 1), (1, 2), (2, 2))]),
)
policies = st.one_of(
    st.builds(Fixed, st.integers(1, 16)), st.builds(Adaptive, st.floats(0, 40)), st.just(Adaptive())
)
budgets = st.one_of(st.none(), st.integers(0, 20_000))
loads = st.floats(0, 1)


def frame(detail: float = 0.0, fresh: float = 0.0, **size: int) -> Measures:
    """Return the measures of a full HD frame with these strengths in its finest two octaves."""
    return Measures(**{**FULL_HD, **size}, detail=(detail,) * 2, fresh=(fresh,) * 2)


def grids(plan: Plan) -> list[tuple[int, int]]:
    return [frame.grid for frame in plan.frames]


@given(policies, clips, tilings, budgets, loads)
def test_every_plan_is_valid(policy, clip, tiling, tokens, load) -> None:
    plan = policy.plan(clip, tiling, Budget(tokens, load))

    # its cost is right
    assert len(plan.frames) == len(clip)
    assert plan.tiles == sum(tile_count(f.grid) for f in plan.frames)
    assert plan.tokens == plan.tiles * tiling.tokens
    # it stays within the budget, except that every frame gets one tile
    minimum = len(clip) * tiling.tokens
    if tokens is not None:
        assert plan.tokens <= max(minimum, tokens)
    if load == 1:
        assert plan.tokens == minimum
    for seen, planned in zip(clip, plan.frames, strict=True):
        columns, rows = planned.grid
        # the frame's own pixels fill the tiles, and the checkpoint was trained on the grid
        assert columns * rows == 1 or columns * rows * tiling.size**2 <= seen.width * seen.height
        assert planned.grid == SINGLE_TILE or not tiling.grids or planned.grid in tiling.grids
        if isinstance(policy, Adaptive):
            assert columns <= max(1, round(seen.width / tiling.size))
            assert rows <= max(1, round(seen.height / tiling.size))
        assert planned.reason
        assert len(planned.reason) < 80
    # and planning again gives the same plan
    assert policy.plan(list(clip), tiling, Budget(tokens, load)) == plan


@given(policies, clips, tilings, budgets, st.integers(0, 5000), loads, loads)
def test_more_budget_never_takes_a_tile_away(policy, clip, tiling, tokens, more, a, b) -> None:
    less = policy.plan(clip, tiling, Budget(tokens, max(a, b)))
    larger = None if tokens is None else tokens + more
    rich = policy.plan(clip, tiling, Budget(larger, min(a, b)))
    for poor, better in zip(less.frames, rich.frames, strict=True):
        assert tile_count(poor.grid) <= tile_count(better.grid)


@given(clips, tilings)
def test_a_higher_tolerance_never_costs_more(clip, tiling) -> None:
    # true of a single frame; in a clip another frame may show the same detail
    for seen in clip:
        costs = [Adaptive(t).plan([seen], tiling).tokens for t in (0, 4, 8, 16, 64, 255)]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == tiling.tokens


def test_adaptive_shows_static_detail_once_in_the_newest_frame() -> None:
    # given small writing that is always visible, and a large object that moves in front of it
    clip = [frame(20, 20), *[frame(20, 2)] * 7]
    plan = Adaptive().plan(clip, LITE)
    assert grids(plan) == [SINGLE_TILE] * 7 + [(4, 2)]
    assert plan.frames[7].reason == "most detail (26)"
    assert plan.frames[0].reason == "shown in frame 8 (new: 3)"


def test_adaptive_also_shows_detail_that_appears_later() -> None:
    # given writing that is in the third frame only
    clip = [frame(14), frame(14), frame(25, 25), frame(14, 0), frame(14, 0)]
    plan = Adaptive().plan(clip, LITE)
    assert grids(plan)[2] == (4, 2)
    assert grids(plan)[3:] == [SINGLE_TILE, SINGLE_TILE]
    assert "most detail" in plan.frames[2].reason
    # other detail may have been visible before: it is shown in the newest of those frames
    assert grids(plan)[:2] == [SINGLE_TILE, (4, 2)]
    assert "new detail" in plan.frames[1].reason


def test_adaptive_prefers_the_most_detailed_frames_when_the_budget_is_short() -> None:
    clip = [frame(30, 30), frame(12, 12), frame(20, 20)]
    one_view = 3 * 121 + 8 * 121
    plan = Adaptive().plan(clip, LITE, Budget(one_view))
    assert grids(plan) == [(4, 2), SINGLE_TILE, SINGLE_TILE]
    assert "over the budget: 4x2" in plan.frames[2].reason
    # what is left goes to a smaller grid of the next frame
    more = Adaptive().plan(clip, LITE, Budget(one_view + 4 * 121))
    assert grids(more)[0] == (4, 2)
    assert 1 < tile_count(grids(more)[2]) <= 5
    # the reason of a frame does not refer to another one that got no tiles
    still = Adaptive().plan([frame(20, 0)] * 2, LITE, Budget(0))
    assert still.frames[0].reason == "over the budget, as frame 2 is"
    # and the load takes its share of the tokens beyond one tile for each frame
    assert grids(Adaptive().plan(clip, LITE, Budget(one_view, 1.0))) == [SINGLE_TILE] * 3


def test_adaptive_leaves_plain_and_small_frames_alone() -> None:
    plan = Adaptive().plan([frame(3, 3), frame(40, 40, width=500, height=400)], LITE)
    assert grids(plan) == [SINGLE_TILE, SINGLE_TILE]
    assert [f.reason for f in plan.frames] == ["little detail (4)", "its pixels fill one tile"]


def test_adaptive_takes_no_more_tiles_than_the_detail_needs() -> None:
    # given detail just beyond the resolution of one tile, and the finest possible detail
    coarse = Measures(**FULL_HD, detail=(0, 0, 30), fresh=())
    fine = Measures(**FULL_HD, detail=(30, 0, 0), fresh=())
    few, many = (Adaptive().plan([f], LITE).tiles for f in (coarse, fine))
    assert 1 <= few < many <= 11


def test_a_frame_without_measures_gets_one_tile() -> None:
    assert grids(Adaptive().plan([Measures(**FULL_HD)] * 3, LITE)) == [SINGLE_TILE] * 3


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 12))
def test_fixed_is_the_published_rule_within_the_frames_own_pixels(width, height, tiles) -> None:
    plan = Fixed(tiles).plan([Measures(width, height)] * 2, LITE)
    filled = max(1, min(tiles, width * height // 448**2))
    assert grids(plan) == [choose_grid(width, height, 448, 1, filled)] * 2


def test_fixed_gives_the_newest_frames_what_the_budget_has() -> None:
    plan = Fixed(12).plan([frame()] * 4, LITE, Budget(4 * 121 + 2 * 8 * 121))
    assert grids(plan) == [SINGLE_TILE, SINGLE_TILE, (4, 2), (4, 2)]
    assert plan.frames[0].reason == "over the budget"


@given(clips.filter(len), tilings, budgets)
def test_native_is_the_published_rule_with_any_budget(clip, tiling, tokens) -> None:
    plan = Native().plan(clip, tiling, Budget(tokens))
    if len(clip) > 1:
        assert grids(plan) == [SINGLE_TILE] * len(clip)
    else:
        (only,) = clip
        grid = choose_grid(only.width, only.height, tiling.size, 1, tiling.max_tiles)
        assert grids(plan) == [grid]


@given(measures, st.integers(1, 6), st.integers(1, 6), st.integers(28, 512))
def test_larger_grids_lose_less(seen, columns, rows, size) -> None:
    loss = seen.loss((columns, rows), size)
    assert loss >= seen.loss((columns + 1, rows), size) >= 0
    assert loss >= seen.loss((columns, rows + 1), size)
    filled = (-(-seen.width // size), -(-seen.height // size))
    assert seen.loss(filled, size) == 0


@given(clips.filter(len), st.data())
def test_subsampling_keeps_the_changes_in_between(clip, data) -> None:
    kept = sorted(data.draw(st.lists(st.sampled_from(range(len(clip))), min_size=1)))
    short = subsample(clip, kept)
    assert [replace(m, fresh=(), change=0) for m in short] == [
        replace(clip[i], fresh=(), change=0) for i in kept
    ]
    before = -1
    for index, seen in zip(kept, short, strict=True):
        passed = clip[before + 1 : index + 1]
        before = index
        assert seen.change == pytest.approx(min(1, sum(m.change for m in passed)))
        for seen_before in passed:
            pairs = zip(seen_before.fresh, seen.fresh, strict=False)
            assert all(new <= kept for new, kept in pairs)


def test_subsampling_to_all_frames_changes_nothing() -> None:
    clip = [frame(9, i) for i in range(4)]
    assert subsample(clip, range(4)) == clip


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("native", Native()),
        ("fixed:4", Fixed(4)),
        ("adaptive", Adaptive()),
        ("adaptive:12.5", Adaptive(12.5)),
        (Fixed(3), Fixed(3)),
    ],
)
def test_policies_are_parsed_by_name(text, policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "fixed",
        "fixed:",
        "fixed:x",
        "fixed:0",
        "fixed:257",
        "fixed:1.5",
        "native:2",
        "adaptive:-1",
        "adaptive:nan",
        "adaptive:300",
        "adaptive:x",
        4,
        ["native"],
    ],
)
def test_an_unknown_policy_is_refused_in_one_sentence(text) -> None:
    with pytest.raises(PromptError, match=r"^[A-Z][^\n]+\.$"):
        parse_policy(text)


@pytest.mark.parametrize("budget", [{"tokens": -1}, {"load": -0.1}, {"load": 1.1}])
def test_an_invalid_budget_is_refused(budget) -> None:
    with pytest.raises(PromptError):
        Budget(**budget)


def test_planning_imports_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, nvila_core.resolution.policy;"
        "print({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "set()"
