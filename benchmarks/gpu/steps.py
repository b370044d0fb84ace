"""Steps of the language model: in PyTorch, with the kernels, and as a graph."""

from functools import partial
from typing import Any

import torch
from made import SHAPES, Shape, cache, language
from timing import host_ms

from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention
from nvila_core.models.kernels import Switch
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.merged import merge_projections


class Steps:
    """A model with a cache full of sequences.

    Args:
        name: "2b" or "8b".
        length: positions of each sequence.
        rows: sequences at most.
    """

    def __init__(self, name: str, device: torch.device, length: int, rows: int) -> None:
        self.device, self.dtype = device, torch.bfloat16
        self.shape: Shape = SHAPES[name]
        self.model: LanguageModel = language(self.shape, device, self.dtype)
        self.length, self.rows = length, rows
        self.cache = cache(self.shape, (length + 32) * (rows + 1), device, self.dtype)
        self.vocab = min(self.shape.vocab, 151936)

    def single_rows(self, count: int) -> list[SequenceSlice]:
        """Return one new position for each of `count` sequences."""
        each = -(-(self.length + 1) // 16)
        return [
            SequenceSlice(self.length, 1, list(range(i * each, (i + 1) * each)), [65 + i])
            for i in range(count)
        ]

    def chunk(self, start: int, count: int) -> list[SequenceSlice]:
        """Return `count` new positions of one sequence."""
        first = self.cache.num_blocks - -(-(self.length + 32) // 16)  # blocks of no other sequence
        blocks = list(range(first, first + -(-(start + count) // 16)))
        return [SequenceSlice(start, count, blocks, [65] * count)]

    @torch.inference_mode()
    def step(self, attention: Any, rows: list[SequenceSlice]) -> tuple[torch.Tensor, list[int]]:
        """Compute a step as the engine does: the logits, and the tokens on the host."""
        batch = attention.plan(rows)
        embeds = self.model.embed_rows(batch.ids)
        hidden = self.model.forward_step(embeds, batch.positions, batch, batch.last_rows)
        logits = self.model.logits(hidden, self.vocab)
        maxima, best = logits.max(-1)
        numbers = torch.cat([best, maxima.isfinite(), batch.are_finite()]).tolist()
        return logits, numbers[: len(best)]


def measure(
    name: str, device: torch.device, length: int = 9800, counts: tuple[int, ...] = (1, 8, 32)
) -> dict[str, Any]:
    """Return milliseconds of decode steps and chunks: in PyTorch ("before"), kernels, graph."""
    from nvila_core.engine.decode_graphs import DecodeGraphs
    from nvila_core.engine.triton_attention import TritonAttention

    steps = Steps(name, device, length, max(counts))
    weights = sum(p.numel() * p.element_size() for p in steps.model.parameters())
    found: dict[str, Any] = {"weights, GB": {"": weights / 1e9}}
    grouped = GroupedAttention(steps.cache, steps.shape.heads)
    chunk = min(2048, length // 2)
    works: dict[str, list[SequenceSlice]] = {
        f"decode, {n} rows of {length}": steps.single_rows(n) for n in counts
    }
    for start in (0, (length - chunk) // 16 * 16):
        works[f"chunk of {chunk} after {start}"] = steps.chunk(start, chunk)
    logits: dict[str, torch.Tensor] = {}
    Switch.disabled = True
    for work, rows in works.items():
        logits[work] = steps.step(grouped, rows)[0].clone()
        found[work] = {"before": host_ms(partial(steps.step, grouped, rows), device, 10)}
    Switch.disabled = False
    merge_projections(steps.model.model)
    attention = TritonAttention(steps.cache, steps.shape.heads)
    graphs = DecodeGraphs(steps.model, attention, length + 32, steps.vocab)
    for work, rows in works.items():
        times = found[work]
        got = steps.step(attention, rows)[0]
        times["error"] = float((got - logits[work]).norm() / logits[work].norm())
        times["kernels"] = host_ms(partial(steps.step, attention, rows), device, 20)
        if rows[0].count > 1:
            times["positions/s"] = 1000 * rows[0].count / times["kernels"]
            continue
        if device.type == "cuda":

            def replay(rows: Any = rows) -> Any:
                with torch.inference_mode():
                    ran = graphs.run(rows)
                    assert ran is not None, "no graph"
                    return ran[0], ran[1].tolist()

            reserved = torch.cuda.memory_reserved(device)
            again = replay()[0]
            times["graph MB"] = (torch.cuda.memory_reserved(device) - reserved) / 1e6
            times["graph error"] = float((again - logits[work]).norm() / logits[work].norm())
            times["graph"] = host_ms(replay, device, 30)
            read = len(rows) * rows[0].end * 2 * steps.shape.layers * steps.shape.kv_heads
            read *= steps.shape.hidden // steps.shape.heads * 2
            times["graph GB/s"] = (weights + read) / times["graph"] / 1e6
    found["reserved by PyTorch at the end, MB"] = {
        "": torch.cuda.memory_reserved() / 1e6 if device.type == "cuda" else 0.0
    }
    return found
