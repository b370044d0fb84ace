"""Choose how many positions and requests an engine holds by the memory that a model leaves free."""

from dataclasses import dataclass

from nvila_core.errors import NVILAError

CACHE_SHARE = {"cpu": 0.25, "cuda": 0.85}
"""Share of the memory that is free with the model loaded, for the key-value cache."""

MIN_WORKSPACE = 3 * 2**29
"""Bytes of a GPU that steps, tiles and graphs need beside the cache, at least.

Measured on an H100: 1.2 GB with 2B, of which graphs of 32 rows are a part."""

DEFAULT_POSITIONS = {"cpu": 2**16, "cuda": 2**21}
"""Positions at most that are chosen: on a GPU 200 clips of 80 frames."""

MIN_POSITIONS = {"cpu": 2**8, "cuda": 2**12}
"""Fewer positions do not hold a clip with its answer."""

DEFAULT_SEQUENCES = {"cpu": 32, "cuda": 256}
"""Requests at once, at most. Decode steps of more than 256 have no graph."""

POSITIONS_OF_A_SEQUENCE = 2**10
"""Positions for each request that may run at once, at least."""

POSITIONS_OF_A_SLOT = 2**12
MAX_SLOTS = {"cpu": 16, "cuda": 64}
"""Clips that a worker prepares and waits for at once, at most: each is a thread."""


@dataclass(frozen=True)
class EngineSize:
    """What an engine holds, and for how many clips at once its worker has slots.

    Attributes:
        reason: why it is so, in a few words.
    """

    kv_cache_tokens: int
    max_num_seqs: int
    worker_slots: int
    reason: str


def size_engine(
    device: str,
    free: int,
    position_bytes: int,
    *,
    share: float | None = None,
    kv_cache_tokens: int | None = None,
    max_num_seqs: int | None = None,
    worker_slots: int | None = None,
) -> EngineSize:
    """Return the size that suits the free memory; what is given stays as it is.

    Args:
        device: type of the device; others than "cuda" count as "cpu".
        free: bytes that are free with the model loaded.
        position_bytes: bytes of the keys and values of a position.
        share: of the free memory for the cache on a GPU; None: CACHE_SHARE.
        kv_cache_tokens, max_num_seqs, worker_slots: sizes that the user has set.

    Raises:
        NVILAError: the memory does not hold a clip beside the model.
    """
    device = device if device in CACHE_SHARE else "cpu"
    reason = "as set"
    if kv_cache_tokens is None:
        usable = free * (share or CACHE_SHARE[device])
        if device == "cuda":
            usable = min(usable, free - MIN_WORKSPACE)
        room = max(0, int(usable) // position_bytes)
        if room < MIN_POSITIONS[device]:
            raise NVILAError(
                f"The model leaves {free / 1e9:.1f} GB of the device's memory free, which does not "
                "hold the keys and values of one clip: choose a smaller model, set quantize to "
                "int8 or int4, or end other programs that use the device."
            )
        kv_cache_tokens = min(room, DEFAULT_POSITIONS[device])
        kv_cache_tokens = kv_cache_tokens // 1024 * 1024 or kv_cache_tokens
        reason = f"by {free / 1e9:.1f} GB free, {position_bytes} bytes a position"
    if max_num_seqs is None:
        fitting = max(1, kv_cache_tokens // POSITIONS_OF_A_SEQUENCE)
        max_num_seqs = DEFAULT_SEQUENCES[device]
        max_num_seqs = min(max_num_seqs, fitting) if device == "cuda" else max_num_seqs
    if worker_slots is None:
        fitting = max(1, kv_cache_tokens // POSITIONS_OF_A_SLOT)
        worker_slots = MAX_SLOTS[device]
        worker_slots = min(worker_slots, fitting) if device == "cuda" else worker_slots
    return EngineSize(kv_cache_tokens, max_num_seqs, worker_slots, reason)
