"""The Triton kernels compile for every kind of GPU, and fit it, though none is here."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

SHARED_MEMORY = {
    "80": 163 * 1024,
    "87": 163 * 1024,
    "89": 99 * 1024,
    "90": 227 * 1024,
    "100": 227 * 1024,
    "120": 99 * 1024,
}
"""Bytes at most of one program, by compute capability (CUDA C++ programming guide)."""

NUM_KERNELS = {"80": 33, "87": 33, "89": 45, "90": 53, "100": 53, "120": 45}
"""Older GPUs do not convert FP8; those that multiply 64 outputs at once have two tilings more."""


def compile_kernels(*archs: str, only: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return by architecture and kernel the registers, shared memory and spilled bytes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.programs.compile_kernels", *archs]
    run = subprocess.run(
        command + (["--only", *only] if only else []),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    return found


def assert_fit(found: dict[str, dict[str, int]], arch: str) -> None:
    for name, used in found.items():
        assert used["spilled"] == 0, name
        assert used["shared"] <= SHARED_MEMORY[arch], name


def test_kernels_compile_for_the_oldest_gpu_and_the_one_with_least_memory() -> None:
    largest = "int4, 256 rows, 32 outputs, bfloat16"
    found = compile_kernels("80", "120", only=("single rows", "rotate", largest))
    assert {arch: len(kernels) for arch, kernels in found.items()} == {"80": 3, "120": 3}
    for arch, kernels in found.items():
        assert_fit(kernels, arch)


def test_the_small_kernels_compile_for_a_gpu() -> None:
    found = compile_kernels("90", only=("norm", "gate", "rotate", "norm 1536 in fp8"))["90"]
    assert len(found) == 4
    assert_fit(found, "90")


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_every_kernel_fits_every_gpu(arch: str) -> None:
    found = compile_kernels(arch)[arch]
    assert len(found) == NUM_KERNELS[arch]
    assert_fit(found, arch)
