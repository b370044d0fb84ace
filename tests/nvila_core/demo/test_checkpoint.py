"""The shipped checkpoint is small, and as accurate as its README says."""

import pytest

from nvila_core.demo import CHECKPOINT
from nvila_core.demo.evaluate import Score, evaluate, format_table


def test_it_is_at_most_16_mb() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*")) <= 16 * 2**20


def test_the_table_shows_every_score() -> None:
    table = format_table([Score("clip", "count", 3, 4), Score("tiled still", "sign", 0, 4)])
    assert "75.0%" in table
    assert "0.0%" in table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_accuracy_has_not_dropped() -> None:
    # given: floors below the measured accuracies, by the sampling error of a hundred questions
    floors = {
        ("clip", "exists"): 0.75,
        ("clip", "count"): 0.6,
        ("clip", "colour"): 0.85,
        ("clip", "direction"): 0.5,
        ("clip", "caption"): 0.2,
        ("clip", "change"): 0.12,
        ("tiled still", "sign"): 0.75,
    }

    # when
    scores = {(s.form, s.kind): s.accuracy for s in evaluate(CHECKPOINT, questions=100)}

    # then
    assert all(scores[test] >= floor for test, floor in floors.items()), scores
    assert scores["still in one tile", "sign"] <= 0.1
