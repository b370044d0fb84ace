"""The size of an engine follows the memory that the model leaves free."""

import pytest

from nvila_core import NVILAError
from nvila_core.models.memory import EngineSize, size_engine

GB = 10**9
SMALL, LARGE = 28 * 2 * 2 * 128 * 2, 28 * 2 * 4 * 128 * 2
"""Bytes of a position of NVILA-Lite-2B and -8B in bfloat16."""


def sizes(size: EngineSize) -> tuple[int, int, int]:
    return size.kv_cache_tokens, size.max_num_seqs, size.worker_slots


@pytest.mark.parametrize(
    ("free", "position_bytes", "expected"),
    [
        (76 * GB, SMALL, (2**21, 256, 64)),  # 2B on 80 GB: 200 clips of 80 frames
        (64 * GB, LARGE, (948_224, 256, 64)),  # 8B on 80 GB
        (19 * GB, SMALL, (563_200, 256, 64)),  # 2B on 24 GB
        (3 * GB, SMALL, (48_128, 47, 11)),  # 2B on 8 GB
        (7 * GB, LARGE, (93_184, 91, 22)),  # 8B on 24 GB
    ],
)
def test_a_gpu_holds_what_its_memory_takes(
    free: int, position_bytes: int, expected: tuple[int, int, int]
) -> None:
    size = size_engine("cuda", free, position_bytes)

    assert sizes(size) == expected
    assert size.kv_cache_tokens * position_bytes <= 0.85 * free
    assert free - size.kv_cache_tokens * position_bytes >= 1.5 * 2**30
    assert f"{free / 1e9:.1f} GB free" in size.reason


def test_a_smaller_share_leaves_memory_for_other_programs() -> None:
    half = size_engine("cuda", 76 * GB, LARGE, share=0.4)

    assert half.kv_cache_tokens == 529_408
    assert half.kv_cache_tokens * LARGE <= 0.4 * 76 * GB


def test_what_is_set_stays() -> None:
    size = size_engine("cuda", 0, SMALL, kv_cache_tokens=5000, max_num_seqs=300, worker_slots=7)

    assert size == EngineSize(5000, 300, 7, "as set")
    assert sizes(size_engine("cuda", 0, SMALL, kv_cache_tokens=65_536)) == (65_536, 64, 16)


def test_a_processor_is_sized_as_before_while_its_memory_allows() -> None:
    assert sizes(size_engine("cpu", 16 * GB, 57_344)) == (65_536, 32, 16)
    assert sizes(size_engine("cpu", 4 * GB, 57_344)) == (17_408, 32, 16)


@pytest.mark.parametrize(("device", "free"), [("cuda", 1_700_000_000), ("cuda", 0), ("cpu", 10**7)])
def test_a_model_that_leaves_no_room_for_a_clip_is_refused(device: str, free: int) -> None:
    with pytest.raises(NVILAError, match="choose a smaller model, set quantize") as caught:
        size_engine(device, free, SMALL)

    assert f"{free / 1e9:.1f} GB" in str(caught.value)
