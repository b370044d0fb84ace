"""Every Redis key of the service, in one place. Each is bounded by length, TTL or both."""

PREFIX = "streamer:"

RESULTS = PREFIX + "results"
"""Redis Stream, field `json`: every result, once. Bounded by `results_maxlen`."""

STREAMS = PREFIX + "streams"
"""Hash: stream id -> StreamSpec as JSON, without the password."""

NAMES = PREFIX + "names"
"""Hash: stream name -> stream id; makes names unique."""

SECRETS = PREFIX + "secrets"
"""Hash: stream id -> the full URL, password and all, sealed if there is a key; `key-check`: a word
under that key. Read by the ingest worker only."""


def status(stream_id: str) -> str:
    """String: StreamStatus as JSON, written by the ingest slot that owns the stream."""
    return f"{PREFIX}status:{stream_id}"


def frame_index(stream_id: str) -> str:
    """Redis Stream of frame references; ids are capture times, so XRANGE selects by time."""
    return f"{PREFIX}frames:{stream_id}"


def frame_state(stream_id: str) -> str:
    """Hash: how far the frames of a stream have been thinned with age. Under a TTL."""
    return f"{PREFIX}frame-state:{stream_id}"


def frame_dates(stream_id: str) -> str:
    """List: `<id> <shift>` for each time the capture clock was set: from that frame id on, ids are
    capture times plus so many milliseconds. Bounded, under a TTL."""
    return f"{frame_state(stream_id)}:dates"


FRAME_BYTES = PREFIX + "frame-bytes"
"""Hash: stream id -> bytes of its frames; `total`: of all. Under a TTL."""

FRAME_AGES = PREFIX + "frame-ages"
"""Sorted set: stream ids by arrival of their oldest frame, in milliseconds. Under a TTL."""


def jpeg(stream_id: str, frame_id: str) -> str:
    """String: the JPEG bytes of one frame, under a TTL."""
    return f"{PREFIX}jpeg:{stream_id}:{frame_id}"


def in_flight(owner_id: str) -> str:
    """Sorted set: requests of a watch or recording not yet answered, by time of submission."""
    return f"{PREFIX}in-flight:{owner_id}"


def query(request_id: str) -> str:
    """String: a Query as JSON, under `query_ttl`."""
    return f"{PREFIX}query:{request_id}"


QUERIES = PREFIX + "query-ids"
"""Sorted set: ids of the newest thousand queries, by time of asking; under `query_ttl`."""


def answer(request_id: str) -> str:
    """String: the Result of a request as JSON; its existence means 'already published'."""
    return f"{PREFIX}answer:{request_id}"


def wake(queue: str) -> str:
    """List: one token for each job pushed, which wakes one idle worker. Bounded, under a TTL."""
    return f"{PREFIX}wake:{queue}"


def worker(name: str) -> str:
    """Hash: what a worker process says of itself, numbers; under a TTL of its lease."""
    return f"{PREFIX}worker:{name}"


def answered(request_id: str) -> str:
    """Pub/sub channel: says that the answer of a request is there."""
    return f"{PREFIX}answered:{request_id}"
