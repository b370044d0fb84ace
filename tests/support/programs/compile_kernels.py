"""Compile the Triton kernels for GPUs that need not be there; print what each uses.

    python -m tests.support.programs.compile_kernels ARCH [ARCH ...] [--only NAME ...] [--table]

ARCH is the compute capability without its dot, e.g. 90. It prints JSON, or a table of registers,
bytes of shared memory and spilled bytes.
"""

import argparse
import json
import re
import subprocess
import tempfile
from itertools import product
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nvila_core.engine.decode_graphs import ROW_BUCKETS
from nvila_core.engine.triton_attention import SINGLE_ROWS, Tiling, chunk_tiling
from nvila_core.kernels import attention, fp8, layer, linear
from nvila_core.models import fp8_rows, quantized_products
from nvila_core.models.kernels import power_of_two

HEAD: dict[str, Any] = {"HEADS": 12, "KV_HEADS": 2, "HEAD_DIM": 128, "PADDED_DIM": 128}
POINTERS = {
    "partial": "*fp32",
    "log_sums": "*fp32",
    "inv_freq": "*fp32",
    **dict.fromkeys(("tiles", "tables", "positions", "slots", "damaged"), "*i32"),
    "scales": "*fp32",
    "codes": "*fp8e4nv",
}
POINTER_OF = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
FP8 = 89
"""Compute capability from which GPUs convert FP8."""


def attention_case(tiling: Tiling, splits: int) -> tuple[Any, dict[str, Any], Tiling]:
    """Return the kernel, its constants and its sizes."""
    sizes = {"TILE_ROWS": tiling.queries, "TILE_KEYS": tiling.keys, "SPLITS": splits}
    return (
        attention.paged_attention,
        {**HEAD, "BLOCK_SIZE": 16, **sizes, "WIDEN": False},
        tiling,
    )


def product_cases(arch: int, dtype: torch.dtype) -> dict[str, tuple[Any, dict[str, Any], Any]]:
    """Return products with weights in 8 or 4 bits, with every tiling that decode steps have."""
    found: dict[str, tuple[Any, dict[str, Any], Any]] = {}
    tilings = {
        quantized_products.tiling_of(rows, outputs, dtype, capability(arch)): outputs
        for rows, outputs in product(ROW_BUCKETS, (1536, 3584, 17920))
    }
    for tiling, outputs in tilings.items():
        sizes = {"OUTPUTS": outputs, "INPUTS": 1536, "BIASED": True, "WIDEN": False}
        sizes |= {"TILE_ROWS": tiling.rows, "TILE_OUTPUTS": tiling.outputs}
        types = dict.fromkeys(("x", "scale", "bias", "out"), POINTER_OF[dtype])
        name = f"{tiling.rows} rows, {tiling.outputs} outputs, {str(dtype).removeprefix('torch.')}"
        found[f"int8, {name}"] = (
            linear.multiply_8_bits,
            {**sizes, "TILE_INPUTS": tiling.inputs, "types": {**types, "weight": "*i8"}},
            tiling,
        )
        sizes |= {"GROUP": 64, "TILE_GROUPS": tiling.groups}
        found[f"int4, {name}"] = (
            linear.multiply_4_bits,
            {**sizes, "types": {**types, "weight": "*u8", "scales": "*bf16"}},
            tiling,
        )
    return found


def quantized_cases(arch: int) -> dict[str, tuple[Any, dict[str, Any], Any]]:
    """Return the kernels of products with weights in 8 or 4 bits."""
    widen = {"OUTPUTS": 17920, "INPUTS": 1536, "GROUP": 64, "TILE_OUTPUTS": 64}
    types = {"weight": "*u8", "scales": "*bf16"}
    found = {"widen 4 bits": (linear.widen_4_bits, {**widen, "types": types}, Tiling(0, 0, 4, 3))}
    for dtype in POINTER_OF:
        found |= product_cases(arch, dtype)
    return found


def capability(arch: int) -> tuple[int, int]:
    """Return the compute capability of an architecture, e.g. (9, 0)."""
    major, minor = divmod(arch, 10)
    return major, minor


def fp8_cases(arch: int) -> dict[str, tuple[Any, dict[str, Any], Any]]:
    """Return the kernels that write rows in FP8, with the sizes of 2B and 8B."""
    if arch < FP8:
        return {}
    found: dict[str, tuple[Any, dict[str, Any], Any]] = {}
    for size, block, gelu in ((4304, 8192, True), (8960, fp8_rows.PART_OF_ROW, False)):
        sizes = {"SIZE": size, "BLOCK": block, "GELU": gelu, "GATED": False}
        found[f"quantize {size}"] = (fp8.rows_to_fp8, sizes, Tiling(0, 0, 2, 3))
    for size in (8960, 18944):
        for block, warps in ((fp8_rows.PART_OF_GATED_ROW, 16), (fp8_rows.PART_OF_ROW, 4)):
            sizes = {"SIZE": size, "BLOCK": block, "GELU": False, "GATED": True}
            found[f"gate {size} in fp8 by {block}"] = (
                fp8.rows_to_fp8,
                sizes,
                Tiling(0, 0, warps, 3),
            )
    types = {"normed": "*fp8e4nv"}
    for size, warps in ((1536, 4), (3584, 8)):
        padded = power_of_two(size)
        found[f"norm {size} in fp8"] = (
            layer.sum_and_norm,
            {"SIZE": size, "PADDED_SIZE": padded, "ADD": True, "FP8": True, "types": types},
            Tiling(0, 0, warps, 3),
        )
        for splits in (2, 64):
            found[f"combine {splits} of {size} in fp8"] = (
                attention.combine_splits_to_fp8,
                {
                    "HEADS": size // 128,
                    "HEAD_DIM": 128,
                    "PADDED_SIZE": padded,
                    "SPLITS": splits,
                    "PASS_SPLITS": min(splits, fp8_rows.JOINED_AT_ONCE // padded),
                },
                Tiling(0, 0, 16, 3),
            )
    return found


def cases(arch: int) -> dict[str, tuple[Any, dict[str, Any], Any]]:
    """Return the kernels with the sizes that the 2B model has on a GPU."""
    plain = Tiling(0, 0, 4, 3)
    halves = {"HALF": 64, "PADDED_HEADS": 16, "PADDED_KV_HEADS": 2, "PADDED_HALF": 64}
    return {
        "single rows": attention_case(SINGLE_ROWS, 32),
        "chunks": attention_case(chunk_tiling(capability(arch)), 1),
        "combine": (attention.combine_splits, {**HEAD, "SPLITS": 64}, plain),
        "norm": (
            layer.sum_and_norm,
            {"SIZE": 1536, "PADDED_SIZE": 2048, "ADD": True, "FP8": False},
            plain,
        ),
        "gate": (layer.silu_mul, {"SIZE": 8960, "BLOCK": 1024}, plain),
        "rotate": (
            layer.rotate_and_store,
            {"HEADS": 12, "KV_HEADS": 2, **halves},
            Tiling(0, 0, 2, 3),
        ),
        **quantized_cases(arch),
        **fp8_cases(arch),
    }


def compiled(arch: int, kernel: Any, constants: dict[str, Any], tiling: Any) -> dict[str, Any]:
    """Compile one kernel and return its registers, spilled bytes and shared memory."""
    names = kernel.arg_names
    pointers = POINTERS | constants.get("types", {})
    constants = {name: value for name, value in constants.items() if name in names}
    scalars = {"scale": "fp32", "eps": "fp32", "count": "i32", "num_rows": "i32", "rows": "i32"}
    scalars |= {name: "i32" for name in names if name.endswith("stride")}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, scalars.get(name, "*bf16"))
        for name in names
    }
    aligned = [n for n in names if signature[n].startswith("*") or n.endswith("stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": tiling.warps, "num_stages": tiling.stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "shared": made.metadata.shared,
    }


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.programs.compile_kernels")
    parser.add_argument("arch", type=int, nargs="+")
    parser.add_argument("--only", nargs="+", help="names of kernels; default: all")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    found = {
        arch: {
            name: compiled(arch, *case)
            for name, case in cases(arch).items()
            if args.only is None or name in args.only
        }
        for arch in args.arch
    }
    if not args.table:
        print(json.dumps(found))
        return
    print("| registers, shared memory, spilled |", *(f"sm_{arch} |" for arch in found))
    print("|---|" + "---:|" * len(found))
    for name in dict.fromkeys(name for kernels in found.values() for name in kernels):
        cells = (
            ", ".join(str(kernels[name][key]) for key in ("registers", "shared", "spilled"))
            if name in kernels
            else ""
            for kernels in found.values()
        )
        print(f"| {name} |", *(f"{cell} |" for cell in cells))


if __name__ == "__main__":
    main()
