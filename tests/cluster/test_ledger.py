"""The ledger of a small cluster balances after random faults: `python -m tests.cluster` by hand."""

from pathlib import Path

import pytest

from tests.cluster.__main__ import run


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_or_done_twice(tmp_path: Path, seed: int) -> None:
    ledger = run(tmp_path, seed=seed, minutes=2.0, cameras=3, every=4.0)

    assert ledger.accepted > 20, ledger
    assert ledger.recordings > 2, ledger
    assert ledger.captions > 20, ledger
    assert ledger.faults(lease=12.0) == [], ledger
