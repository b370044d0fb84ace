"""Define a sampled frame that is ready to be stored."""

from dataclasses import dataclass

from nvila_core.resolution.policy import Measures


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame that is ready to be stored.

    Attributes:
        jpeg: the encoded picture.
        measures: what a resolution policy plans from.
        time: when it was captured, seconds since the Unix epoch.
        pts: its stream time in seconds.
        epoch: how often the clocks that date the stream have stepped.
        decode_ms: milliseconds that decoding, measuring and encoding took.
    """

    jpeg: bytes
    measures: Measures
    time: float
    pts: float
    epoch: int = 0
    decode_ms: float = 0.0
