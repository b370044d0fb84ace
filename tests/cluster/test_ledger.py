"""The ledger of a small cluster balances after random faults: `python -m tests.cluster` by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.__main__ import run
from tests.cluster.ledger import MAX_DOUBLE_READING, Ledger

BALANCED = Ledger(accepted=9, answered=7, failed={"FRAMES_EXPIRED": 2}, recordings=3, captions=40)


def test_a_ledger_that_balances_has_no_faults() -> None:
    assert BALANCED.faults() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"lost": 1},
        {"doubled": 1},
        {"unrecorded": 1},
        {"windows_missing": 1},
        {"windows_doubled": 1},
        {"cameras_not_running": 1},
        {"longest_double_reading_s": MAX_DOUBLE_READING + 0.1},
        {"orphans": ["rq:job:ingest-str_1"]},
        {"deaths": {"recorder": [1]}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_each_fault_is_named(wrong: dict[str, Any]) -> None:
    assert len(replace(BALANCED, **wrong).faults()) == 1


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_or_done_twice(tmp_path: Path, seed: int) -> None:
    ledger = run(tmp_path, seed=seed, minutes=2.0, cameras=3, every=4.0)

    assert ledger.accepted > 20, ledger
    assert ledger.recordings > 2, ledger
    assert ledger.captions > 20, ledger
    assert ledger.faults() == [], ledger
