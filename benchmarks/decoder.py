"""Time decode steps of the demo's language model: transformers' layers beside those of the engine.

    .venv/bin/python benchmarks/decoder.py [--rows 1 --rows 8] [--positions 300] [--json]

Each row is a sequence of `--positions` positions that gets ten more, one a step. All sides run the
same weights over the same keys and values, in turns; the least processor time of one thread is
printed, which other programs disturb little. "modules" are the layers of `nvila_core.models.qwen2`
with merged projections, "engine" those that an engine makes of them on a CPU. The blocks of a
sequence lie one after another in the cache, as a prompt's do in an empty one; in "scattered" they
lie in any order. The embedding table and the output head are not part of it.
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from report import publish
from rival import Rival
from torch import Tensor
from transformers import DynamicCache

from nvila_core import NVILA
from nvila_core.demo import CHECKPOINT
from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.engine.kv_cache import KVCache
from nvila_core.models.merged import merge_projections
from nvila_core.models.packed_linear import pack_linears
from nvila_core.models.small_layer import replace_small_layers

BLOCK = 16
STEPS = 10


class Steps:
    """The same decode step on each side.

    Args:
        dtype: of the model.
        rows: sequences.
        positions: that each has already.
    """

    def __init__(self, dtype: str, rows: int, positions: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.models = [NVILA.from_pretrained(CHECKPOINT, "cpu", dtype) for _ in range(3)]
        self.llm = Rival(self.models[0]).llm.model
        config, kind = self.models[0].config, self.models[0].dtype
        self.embeds = 0.02 * torch.randn(rows, self.llm.config.hidden_size, generator=generator)
        self.embeds = self.embeds.to(kind)
        shape = (config.num_layers, 2, rows, positions, config.num_kv_heads, config.head_dim)
        self.stored = torch.randn(shape, generator=generator).to(kind)
        self.positions, self.rows = positions, rows
        merge_projections(self.models[1].language.model)
        merge_projections(self.models[2].language.model)
        pack_linears(self.models[2].language.model.layers)
        replace_small_layers(self.models[2].language.model)
        each = -(-(positions + STEPS) // BLOCK)
        self.cache = KVCache(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_blocks=each * rows,
            block_size=BLOCK,
            dtype=kind,
            device=torch.device("cpu"),
        )
        blocks = list(range(each * rows))
        self.adjacent = [blocks[row * each : (row + 1) * each] for row in range(rows)]
        random.Random(0).shuffle(blocks)
        # sorted, so that the engine keeps the order of the rows
        self.scattered = sorted(blocks[row * each : (row + 1) * each] for row in range(rows))
        self.attention = GroupedAttention(self.cache, config.num_heads)

    def fill(self, tables: list[list[int]]) -> None:
        """Store the keys and values of all rows in the blocks of each."""
        index = torch.tensor(tables)
        for layer, parts in enumerate(self.stored):
            for held, new in zip((self.cache.keys, self.cache.values), parts, strict=True):
                blocks = new.new_zeros(*index.shape, *held[layer].shape[1:])
                blocks.flatten(1, 2)[:, : self.positions] = new
                held[layer][index] = blocks

    def filled(self) -> DynamicCache:
        """Return transformers' cache with the keys and values of all rows."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.stored):
            cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
        return cache

    def theirs(self, cache: DynamicCache, step: int) -> Tensor:
        """Compute a step by transformers' layers."""
        places = torch.full((self.rows, 1), self.positions + step)
        out: Tensor = self.llm(
            inputs_embeds=self.embeds[:, None], past_key_values=cache, position_ids=places
        ).last_hidden_state[:, 0]
        return out

    def ours(self, model: NVILA, tables: list[list[int]], step: int) -> Tensor:
        """Compute a step by layers of ours, of rows with these block tables."""
        slices = [SequenceSlice(self.positions + step, 1, blocks, [1]) for blocks in tables]
        batch = self.attention.plan(slices)
        assert batch.order == list(range(self.rows))
        return model.language.forward_step(self.embeds, batch.positions, batch, batch.last_rows)


def timed(call: Callable[[int], Tensor]) -> tuple[float, Tensor]:
    """Return the milliseconds of processor time of a step, and what the first one returns."""
    began = time.process_time()
    out, *_ = [call(step) for step in range(STEPS)]
    return 1000 * (time.process_time() - began) / STEPS, out


@torch.inference_mode()
def measure(dtype: str, rows: int, positions: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of a step on each side, and how far the results differ."""
    steps = Steps(dtype, rows, positions)
    modules, engine = steps.models[1:]
    sides = {
        "modules": (modules, steps.adjacent),
        "engine": (engine, steps.adjacent),
        "scattered": (engine, steps.scattered),
    }
    taken: dict[str, list[float]] = {name: [] for name in ("transformers", *sides)}
    difference = 0.0
    for _ in range(rounds):
        spent, expected = timed(partial(steps.theirs, steps.filled()))
        taken["transformers"].append(spent)
        for name, (model, tables) in sides.items():
            steps.fill(tables)
            spent, found = timed(partial(steps.ours, model, tables))
            taken[name].append(spent)
            difference = max(difference, float((expected - found).abs().max()))
    least = {name: min(times) for name, times in taken.items()}
    ratios = {f"ratio, {name}": least["transformers"] / least[name] for name in sides}
    return {**least, **ratios, "difference": f"{difference:.1e}"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="repeatable; default: 1, 4, 8")
    parser.add_argument("--positions", type=int, default=300)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        f"{rows} rows": measure(args.dtype, rows, args.positions, args.rounds)
        for rows in args.rows or (1, 4, 8)
    }
    header = ["ms a step", *next(iter(found.values()))]
    publish({"results": found}, header, [[name, *row.values()] for name, row in found.items()])


if __name__ == "__main__":
    main()
