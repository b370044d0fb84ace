"""The comparison of resolution policies on the demo world, and the plans for its clips."""

from xml.etree import ElementTree

import numpy as np
import pytest

from nvila_core import Adaptive, Budget, Meter
from nvila_core.demo import CHECKPOINT
from nvila_core.demo.chart import SERIES, draw_policies
from nvila_core.demo.evaluate import CLIP_FRAMES
from nvila_core.demo.policies import (
    ALL_TILES,
    ONE_TILE,
    PolicyScore,
    evaluate_policies,
    format_policies,
    policies,
)
from nvila_core.demo.questions import QUESTION_KINDS
from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, TILE_GRID, sample_scene
from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.policy import TilingConfig

TILING = TilingConfig(size=84, tokens=4, grids=(TILE_GRID,))
TIMES = tuple(float(t) for t in range(CLIP_FRAMES))


def test_the_small_sign_is_found_and_shown_once() -> None:
    """The sign never changes; the moving objects need no more than one tile."""
    costs = []
    for seed in range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 25):
        meter = Meter()
        clip = [meter.measure(f) for f in render_clip(sample_scene(seed, TIMES), TIMES)]

        plan = Adaptive().plan(clip, TILING)
        short = Adaptive().plan(clip, TILING, Budget(4 * (CLIP_FRAMES + 12)))

        assert TILE_GRID in [frame.grid for frame in plan.frames]
        assert sorted(f.grid for f in short.frames) == [SINGLE_TILE] * (CLIP_FRAMES - 1) + [
            TILE_GRID
        ]
        costs.append(plan.tokens)
    assert np.mean(costs) < 0.4 * CLIP_FRAMES * 13 * 4


@pytest.mark.slow
def test_every_policy_answers_the_same_questions_at_its_cost() -> None:
    lines: list[str] = []
    scores = evaluate_policies(CHECKPOINT, questions=1, progress=lines.append)

    assert [line.rpartition(" ")[2] for line in lines] == list(QUESTION_KINDS)
    assert [score.asked for score in scores] == [1] * len(scores)
    one, *adaptive, every = scores
    assert (one.policy, one.tokens_per_frame) == (ONE_TILE, 4)
    assert (every.policy, every.tokens_per_frame) == (ALL_TILES, 52)
    costs = [score.tokens_per_frame for score in adaptive]
    assert costs[0] == 16  # one tiled frame of four
    assert costs == sorted(costs)
    assert costs[-1] < 0.5 * 52
    assert all(set(score.right) == set(QUESTION_KINDS) for score in scores)
    assert all(right in (0, 1) for score in scores for right in score.right.values())


@pytest.fixture
def scores() -> list[PolicyScore]:
    """Made-up scores of ten questions of each kind."""
    made = policies(tile_tokens=4)
    for number, score in enumerate(made, start=1):
        score.asked, score.vision_tokens = 10, 280 * 4 * number
        score.right = dict.fromkeys(QUESTION_KINDS, number) | {"sign": 10}
    return made


def test_the_table_has_a_row_for_each_policy(scores: list[PolicyScore]) -> None:
    header, line, *rows = format_policies(scores).splitlines()
    assert header.count("|") == line.count("|") == 2 + len(QUESTION_KINDS) + 2
    assert rows[0] == "| fixed:1 | 4.0 |" + " 10.0% |" * 6 + " 100.0% | 22.9% |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {score.name}" for score in scores]
    assert rows[1].startswith("| adaptive, 64 tokens | 8.0 |")


def test_records_are_json_with_the_shares(scores: list[PolicyScore]) -> None:
    record = scores[1].record()
    assert record["name"] == "adaptive, 64 tokens"
    assert record["accuracy"]["sign"] == 1.0
    assert record["accuracy"]["all"] == pytest.approx(22 / 70)
    assert record["tokens_per_frame"] == 8.0


def test_the_chart_shows_every_policy_on_both_lines(scores: list[PolicyScore]) -> None:
    svg = ElementTree.fromstring(draw_policies(scores))
    circles = svg.findall(".//{*}circle")
    assert len(circles) == len(SERIES) * len(scores)
    titles = [circle.findtext("{*}title") for circle in circles]
    assert "adaptive, 64 tokens: 31.4% of all questions" in titles
    assert "fixed:12: 100.0% of those about the sign" in titles
    # x grows with the tokens, and y with the correct answers
    across = [float(circle.get("cx", "")) for circle in circles[: len(scores)]]
    down = [float(circle.get("cy", "")) for circle in circles[: len(scores)]]
    assert across == sorted(across)
    assert down == sorted(down, reverse=True)
