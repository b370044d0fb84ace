"""The Triton kernels compile for every kind of GPU, and fit it, though none is here."""

import json
import os
import subprocess
import sys

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


def compile_kernels(arch: str, *only: str) -> dict[str, dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.programs.compile_kernels", arch]
    run = subprocess.run(
        command + (["--only", *only] if only else []),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, dict[str, int]] = json.loads(run.stdout.splitlines()[-1])
    return found


def assert_fit(found: dict[str, dict[str, int]], arch: str) -> None:
    for name, used in found.items():
        # the cosine of a large angle divides it exactly, in a few numbers on the stack
        assert used["spilled"] <= (64 if name == "rotate" else 0), name
    assert all(used["shared"] <= SHARED_MEMORY[arch] for used in found.values())


def test_the_small_kernels_compile_for_a_gpu() -> None:
    found = compile_kernels("90", "norm", "gate", "rotate", "norm 1536 in fp8")
    assert len(found) == 4
    assert_fit(found, "90")


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_every_kernel_fits_every_gpu(arch: str) -> None:
    found = compile_kernels(arch)
    assert len(found) == (24 if int(arch) >= 89 else 12)  # older GPUs do not convert FP8
    assert_fit(found, arch)
