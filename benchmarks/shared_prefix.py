"""Measure attention of sequences with a common prefix: shared keys together or one by one.

    .venv/bin/python benchmarks/shared_prefix.py [--threads 2] [--rounds 21] [--json]

One layer has 6 query heads of size 128 on one key head, in float32, and each sequence has one new
position. The two ways take turns; the table has medians. The engine chooses by
`nvila_core.engine.grouped_attention.MIN_SAVED_BLOCKS`.
"""

import argparse
import time
from statistics import median
from unittest.mock import patch

import torch
from report import publish

from nvila_core.engine import grouped_attention
from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedBatch
from nvila_core.engine.kv_cache import KVCache
from nvila_core.models.rotation import Rotation

HEADS, SIZE, BLOCK, OWN = 6, 128, 16, 2
LENGTHS, SEQUENCES = (256, 672, 2048, 4096), (2, 8, 16)
NEVER = 10**9


def make_cache(blocks: int) -> KVCache:
    """Return a cache of one layer, filled with noise."""
    cache = KVCache(
        num_layers=1,
        num_kv_heads=1,
        head_dim=SIZE,
        num_blocks=blocks,
        block_size=BLOCK,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.keys[0].normal_()
    cache.values[0].normal_()
    return cache


@torch.inference_mode()
def measure(cache: KVCache, length: int, count: int, rounds: int) -> tuple[float, float]:
    """Return milliseconds of a layer's attention, one by one and together."""
    common = length // BLOCK
    rows = [
        SequenceSlice(
            length + 8, 1, [*range(common), *range(common + OWN * n, common + OWN * (n + 1))]
        )
        for n in range(count)
    ]
    qkv = torch.randn(count, HEADS + 2, SIZE)
    batches = []
    for worth in (NEVER, 0):
        with patch.object(grouped_attention, "MIN_SAVED_BLOCKS", worth):
            batches.append(GroupedBatch(cache, rows, HEADS))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for made, spent in zip(batches, times, strict=True):
            began = time.perf_counter()
            rotation = Rotation(made.positions, torch.ones(SIZE // 2), torch.float32)
            made.attend(0, qkv, HEADS, rotation, SIZE**-0.5)
            spent.append(1000 * (time.perf_counter() - began))
    return median(times[0]), median(times[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache = make_cache(max(LENGTHS) // BLOCK + OWN * max(SEQUENCES))
    rows = []
    for length in LENGTHS:
        for count in SEQUENCES:
            alone, together = measure(cache, length, count, args.rounds)
            rows.append([length, count, alone, together, alone / together])
    header = ["positions in common", "sequences", "one by one, ms", "together, ms", "ratio"]
    publish({"rows": rows, "arguments": vars(args)}, header, rows)


if __name__ == "__main__":
    main()
