"""The dtype "auto" is bfloat16 where the device multiplies it, and float32 elsewhere."""

from pathlib import Path

import pytest
import torch

from nvila_core.models import device
from nvila_core.models.device import choose_dtype, multiplies_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse avx2 fma", False),
        ("fpu avx2 avx512f avx512bw avx512dq avx512vl", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu avx512f amx_tile amx_bf16 amx_int8", True),
    ],
)
def test_the_instructions_are_read_from_the_features(
    tmp_path: Path, flags: str, expected: bool
) -> None:
    # Given the list of a processor's features, as Linux gives it for each core
    cpuinfo = tmp_path / "cpuinfo"
    core = f"processor\t: 0\nbugs\t\t: spectre_v1\nflags\t\t: {flags}\n\n"
    cpuinfo.write_text(2 * core)

    # Then it is known whether it multiplies bfloat16
    assert multiplies_bfloat16(cpuinfo) == expected


def test_other_systems_and_processors_count_as_without(tmp_path: Path) -> None:
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")

    assert not multiplies_bfloat16(arm)
    assert not multiplies_bfloat16(tmp_path / "missing")


@pytest.mark.parametrize(
    ("instructions", "packing", "expected"),
    [
        (True, True, torch.bfloat16),
        (True, False, torch.float32),  # PyTorch was built without oneDNN
        (False, True, torch.float32),  # oneDNN would emulate the instructions
        (False, False, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, instructions: bool, packing: bool, expected: torch.dtype
) -> None:
    # Given a processor, and a PyTorch that can pack weights in bfloat16 or cannot
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: instructions)
    monkeypatch.setattr(device, "can_pack", lambda dtype: packing)

    # Then that decides, but neither about a GPU nor about a dtype that is named
    assert choose_dtype("auto", CPU) == expected
    assert choose_dtype("auto", GPU) == torch.bfloat16
    for name in ("float32", "bfloat16"):
        assert choose_dtype(name, CPU) == getattr(torch, name)
