"""The dtype "auto" is bfloat16 where the device multiplies it, and float32 elsewhere."""

from pathlib import Path

import pytest
import torch

from nvila_core.config import LanguageConfig
from nvila_core.models import device
from nvila_core.models.device import (
    StepLimits,
    activation_bytes,
    choose_dtype,
    multiplies_bfloat16,
    step_limits,
)
from nvila_core.models.memory import MIN_WORKSPACE

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


LITE_2B = LanguageConfig(151_648, 1536, 8960, 28, 12, 2, 32768)
LITE_8B = LanguageConfig(151_648, 3584, 18944, 28, 28, 4, 32768)
QWEN_72B = LanguageConfig(151_648, 8192, 29_568, 80, 64, 8, 32768)


@pytest.mark.parametrize(
    ("config", "dtype", "free", "expected"),
    [
        # the least memory that `size_engine` leaves beside the cache is enough for NVILA-Lite
        (LITE_2B, torch.bfloat16, MIN_WORKSPACE, (2048, 32)),
        (LITE_8B, torch.bfloat16, MIN_WORKSPACE, (2048, 32)),
        (LITE_8B, torch.bfloat16, 9 * 10**9, (2048, 32)),  # 15 % of what is free on 80 GB
        (LITE_8B, torch.float32, MIN_WORKSPACE, (1280, 20)),
        (QWEN_72B, torch.bfloat16, MIN_WORKSPACE, (1280, 20)),
        (QWEN_72B, torch.bfloat16, 4 * 10**9, (2048, 32)),
        (QWEN_72B, torch.bfloat16, 10**8, (256, 4)),
        (QWEN_72B, torch.bfloat16, 0, (256, 4)),
    ],
)
def test_a_step_on_a_gpu_follows_model_and_memory(
    config: LanguageConfig, dtype: torch.dtype, free: int, expected: tuple[int, int]
) -> None:
    row_bytes = activation_bytes(config, dtype)

    limits = step_limits(GPU, row_bytes, free)

    assert limits == StepLimits(*expected)
    assert limits.max_num_batched_tokens * row_bytes <= max(free / 4, 256 * row_bytes)


def test_a_step_on_a_processor_has_its_size_by_measurement() -> None:
    assert step_limits(CPU, activation_bytes(QWEN_72B, torch.float32), 10**8) == StepLimits(128, 16)
    assert step_limits(GPU) == StepLimits(2048, 32)
