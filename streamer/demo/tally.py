"""Count the results of the demo and show them as a table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING

from streamer.domain.result import Result
from streamer.domain.stream import Stream

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Count:
    """Results of one stream."""

    captions: int = 0
    failures: int = 0
    vision_tokens: int = 0
    total_ms: list[float] = field(default_factory=list)


class Tally:
    """Counts of results by stream."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)

    def add(self, result: Result) -> None:
        """Count a result of a watch."""
        count = self.counts[result.stream_id or ""]
        if result.error is not None:
            count.failures += 1
            return
        count.captions += 1
        count.vision_tokens += result.vision_tokens
        count.total_ms.append(result.total_ms)

    def captions(self, stream_id: str) -> int:
        """Return the number of captions of a stream so far."""
        return self.counts[stream_id].captions

    def table(self, streams: Sequence[Stream]) -> "Table":
        """Make a table with a row per stream: frames, clips, tokens, ms from frame to result."""
        from streamer.terminal import clips, table

        numbers = ("decoded", "sampled", "dropped", "clips", "tokens", "p50 ms", "p95 ms")
        made = table("stream", *numbers, right=numbers)
        for stream in streams:
            counters, count = stream.counters, self.counts[stream.id]
            made.add_row(
                stream.name,
                str(counters.decoded),
                str(counters.sampled),
                str(counters.dropped.total),
                clips(counters),
                str(count.vision_tokens),
                *(f"{ms:.0f}" for ms in percentiles(count.total_ms, 50, 95)),
            )
        return made


def percentiles(values: Sequence[float], *wanted: int) -> list[float]:
    """Return the percentiles `wanted` (1 to 99) of `values`; zeros for no values."""
    if len(values) < 2:
        return [values[0] if values else 0.0] * len(wanted)
    cuts = quantiles(values, n=100, method="inclusive")
    return [cuts[percent - 1] for percent in wanted]
