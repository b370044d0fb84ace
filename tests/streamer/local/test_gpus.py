"""Which GPUs `streamer worker --gpus` means."""

import subprocess

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.local.gpus import choose_gpus

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d5f1a0e-0c6b-7a61-2f55-3f0f1a1b9c01)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-9a0b7c55-1d2e-4f3a-8b6c-7d8e9f0a1b02)
"""
FIRST, SECOND = (
    "GPU-5d5f1a0e-0c6b-7a61-2f55-3f0f1a1b9c01",
    "GPU-9a0b7c55-1d2e-4f3a-8b6c-7d8e9f0a1b02",
)
DIVIDED = (
    TWO
    + """\
  MIG 1g.10gb     Device  0: (UUID: MIG-b1d4c9a2-2e54-5b1c-9f35-9e1d3f6b7a10)
  MIG 1g.10gb     Device  1: (UUID: MIG-c7e0a1b3-3f65-5c2d-8a46-8f2e4a7c8b21)
"""
)
PARTS = ["MIG-b1d4c9a2-2e54-5b1c-9f35-9e1d3f6b7a10", "MIG-c7e0a1b3-3f65-5c2d-8a46-8f2e4a7c8b21"]


def no_driver() -> str:
    raise FileNotFoundError("nvidia-smi")


def hung_driver() -> str:
    raise subprocess.TimeoutExpired("nvidia-smi", 30)


@pytest.mark.parametrize(
    ("wanted", "listed", "gpus"),
    [
        ("all", TWO, [FIRST, SECOND]),
        ("1", TWO, [SECOND]),
        (" 1, 0 ", TWO, [SECOND, FIRST]),
        (FIRST, TWO, [FIRST]),
        ("all", DIVIDED, [FIRST, *PARTS]),
        ("1", DIVIDED, PARTS),
        (f"0,{PARTS[1]}", DIVIDED, [FIRST, PARTS[1]]),
        ("MIG-GPU-5d5f1a0e-0c6b-7a61-2f55-3f0f1a1b9c01/7/0", TWO, None),
    ],
)
def test_numbers_and_uuids_name_gpus_and_their_parts(wanted, listed, gpus) -> None:
    assert choose_gpus(wanted, {}, lambda: listed) == (gpus or [wanted])


def test_all_are_those_that_this_process_may_see() -> None:
    assert choose_gpus("all", {"CUDA_VISIBLE_DEVICES": "1"}, lambda: TWO) == [SECOND]
    assert choose_gpus("all", {"CUDA_VISIBLE_DEVICES": ""}, lambda: TWO) == [FIRST, SECOND]


def test_gpus_can_be_named_where_nothing_lists_them() -> None:
    assert choose_gpus("0,1", {}, no_driver) == ["0", "1"]
    assert choose_gpus(f"0,{SECOND}", {}, hung_driver) == ["0", SECOND]


@pytest.mark.parametrize(
    ("wanted", "read", "words"),
    [
        ("all", no_driver, "there is no `nvidia-smi`"),
        ("all", hung_driver, "failed: TimeoutExpired"),
        ("all", lambda: "", "lists none"),
        ("cuda:0", lambda: TWO, "'cuda:0' names no GPU"),
        (",", lambda: TWO, "names no GPU"),
        ("2", lambda: TWO, "no GPU 2"),
        ("0,0", lambda: TWO, "named twice"),
        (f"0,{FIRST}", lambda: TWO, "named twice"),
        (",".join(map(str, range(65))), no_driver, "more than 64"),
    ],
)
def test_what_names_no_gpu_is_refused_with_advice(wanted, read, words) -> None:
    with pytest.raises(StreamerError, match=words) as refusal:
        choose_gpus(wanted, {}, read)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
