"""The memory of the keys and values."""

from pathlib import Path

import pytest
import torch

from nvila_core.engine.kv_cache import KVCache
from nvila_core.errors import NVILAError

STATUS = Path("/proc/self/status")
BLOCK = 16


def cache(positions: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(
        num_layers=4,
        num_kv_heads=2,
        head_dim=64,
        num_blocks=positions // BLOCK,
        block_size=BLOCK,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="/proc tells what is in memory")
def test_an_idle_cache_on_a_cpu_takes_no_memory() -> None:
    before = resident()

    held = cache(131_072)  # 512 MiB

    assert held.keys[0].numel() * 4 * 8 > 500 << 20
    assert resident() - before < 50 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_begins_as_zeros_and_keeps_what_is_written(dtype: torch.dtype) -> None:
    held = cache(64, dtype)
    rows = torch.randn(2, 2, 64).to(dtype)

    assert not any(part.any() for part in (*held.keys, *held.values))
    held.write(3, torch.tensor([17, 40]), rows, -rows)

    keys, values = held.read(3, torch.tensor([[1, 2]]))
    assert torch.equal(keys[0, [1, 24]], rows)
    assert torch.equal(values[0, [1, 24]], -rows)
    assert held.keys[3].dtype == dtype


def test_one_that_no_memory_can_hold_is_one_sentence() -> None:
    with pytest.raises(NVILAError, match="lower kv_cache_tokens"):
        cache(1 << 50)
