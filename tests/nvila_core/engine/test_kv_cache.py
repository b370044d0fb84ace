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


def test_a_sequence_whose_blocks_lie_one_after_another_is_read_without_a_copy() -> None:
    # given a cache whose positions are numbered, and sequences of 40 of them
    held = cache(128)
    for part, sign in ((held.keys[2], 1), (held.values[2], -1)):
        part.copy_(sign * torch.arange(part.numel() // 128).view(-1, BLOCK, 1, 1).expand_as(part))

    def read(blocks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = held.read_sequence(2, held.locate(blocks, 40))
        assert keys.shape == values.shape == (1, 2, 40, 64)
        assert torch.equal(keys, -values)
        return keys, values

    # when
    run, scattered = read([3, 4, 5, 6]), read([3, 5, 4])

    # then each is its own positions, and only scattered ones are copies
    numbers = torch.arange(128).view(-1, BLOCK)
    for (keys, _), blocks in ((run, [3, 4, 5]), (scattered, [3, 5, 4])):
        assert torch.equal(keys[0, 1, :, 7], numbers[blocks].flatten()[:40].float())
    own = (held.keys[2], held.values[2])
    memory = [one.untyped_storage().data_ptr() for one in own]
    assert [one.untyped_storage().data_ptr() for one in run] == memory
    assert [one.untyped_storage().data_ptr() for one in scattered] != memory


def test_one_that_no_memory_can_hold_is_one_sentence() -> None:
    with pytest.raises(NVILAError, match="lower kv_cache_tokens"):
        cache(1 << 50)
