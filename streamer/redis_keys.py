"""Define every Redis key of the service. Each is bounded by length, TTL or both."""

KEY_PREFIX = "streamer:"

RESULTS = KEY_PREFIX + "results"
"""Redis Stream, field `json`: every result once. Bounded by `results_maxlen`, but for results that
are not recorded yet: with those by `results_max_bytes`."""

RECORDER_GROUP = "recorder"
"""The consumer group of `RESULTS` in which any number of recorders share the work."""

RESULTS_LOST = KEY_PREFIX + "results-lost"
"""Hash: `count` results were given up before they were recorded, the last of them at `last`, epoch
seconds."""

EVENTS = KEY_PREFIX + "events"
"""Redis Stream: what happened, for listeners. Bounded in length and age."""

EVENTS_LOST = KEY_PREFIX + "events-lost"
"""String: how many events a full server has given up."""

KNOWN_WORKERS = KEY_PREFIX + "known-workers"
"""Hash: name of a worker -> the state that was announced last, and its kind. Under a TTL."""

RECORD_VERSION_KEY = KEY_PREFIX + "record-version"
"""String: the highest version of the records, see `streamer/redis_client/record_version.py`."""

STREAMS = KEY_PREFIX + "streams"
"""Hash: stream id -> StreamSpec as JSON, without the password."""

NAMES = KEY_PREFIX + "names"
"""Hash: stream name -> stream id; makes names unique."""

DETACHED_COUNTERS = KEY_PREFIX + "detached-counters"
"""Hash: name of a counter -> the sum of all streams that were detached. As many as there are
names."""

SECRETS = KEY_PREFIX + "secrets"
"""Hash: stream id -> the full URL with its password, encrypted if there is a key; `key-check`: a
known word encrypted with that key. Only ingest workers read it."""


def status(stream_id: str) -> str:
    """Return the key of a string: StreamStatus as JSON, written by the stream's ingest slot."""
    return f"{KEY_PREFIX}status:{stream_id}"


def frame_index(stream_id: str) -> str:
    """Return the key of a Redis Stream of frame references; ids are capture times in ms."""
    return f"{KEY_PREFIX}frames:{stream_id}"


def frame_state(stream_id: str) -> str:
    """Return the key of a hash: how far frames have been thinned with age. Under a TTL."""
    return f"{KEY_PREFIX}frame-state:{stream_id}"


def frame_dates(stream_id: str) -> str:
    """Return the key of a list: `<id> <shift>` per step of the capture clock.

    From that frame id on, ids are capture times plus `shift` milliseconds. Bounded, under a TTL.
    """
    return f"{frame_state(stream_id)}:dates"


def frame_token(stream_id: str) -> str:
    """Return the key of a string: the highest token with which a frame was stored. Under a TTL."""
    return f"{frame_state(stream_id)}:token"


FRAME_BYTES = KEY_PREFIX + "frame-bytes"
"""Hash: stream id -> bytes of its frames; `total`: of all streams. Under a TTL."""

FRAME_AGES = KEY_PREFIX + "frame-ages"
"""Sorted set: stream ids by the arrival of their oldest frame, in ms. Under a TTL."""


def jpeg(stream_id: str, frame_id: str) -> str:
    """Return the key of a string: the JPEG of one frame, under a TTL."""
    return f"{KEY_PREFIX}jpeg:{stream_id}:{frame_id}"


VIDEO_WANTED = KEY_PREFIX + "video-wanted"
"""Sorted set: ids of the streams whose video is watched, by until when, epoch seconds. Bounded in
length, under a TTL."""


def video_pieces(stream_id: str) -> str:
    """Return the key of a Redis Stream: the newest pieces of a video that is watched. Bounded in
    bytes, under a TTL."""
    return f"{KEY_PREFIX}video:{stream_id}"


def in_flight(owner_id: str) -> str:
    """Return the key of a sorted set: unanswered requests of a watch or recording, by time."""
    return f"{KEY_PREFIX}in-flight:{owner_id}"


def asked_until(watch_id: str) -> str:
    """Return the key of a string: when the newest window ends that a live watch was asked about,
    epoch seconds. Under a TTL."""
    return f"{KEY_PREFIX}asked-until:{watch_id}"


def recorded_windows(stream_id: str) -> str:
    """Return the key of a hash: request id -> `<start> <end> <watch>`, a window of a recording.

    One field for each window that was asked about, until the recording is detached. Under a TTL.
    """
    return f"{KEY_PREFIX}recorded-windows:{stream_id}"


def query(request_id: str) -> str:
    """Return the key of a string: a Query as JSON, under `query_ttl`."""
    return f"{KEY_PREFIX}query:{request_id}"


QUERIES = KEY_PREFIX + "query-ids"
"""Sorted set: ids of the newest 1000 queries, by time; under `query_ttl`."""


def survey(query_id: str) -> str:
    """Return the key of a hash: `answer:<request>` or `unknown:<request>` -> the Result of a window
    of a query, and `windows`: how many there are. Bounded in length, under `query_ttl`."""
    return f"{KEY_PREFIX}survey:{query_id}"


OPEN_SURVEYS = KEY_PREFIX + "open-surveys"
"""Sorted set: ids of the queries about several windows that may not have ended, by time. Bounded in
length, under `query_ttl`."""


def answer(request_id: str) -> str:
    """Return the key of a string: the Result of a request as JSON. It exists once published."""
    return f"{KEY_PREFIX}answer:{request_id}"


ANSWERS = KEY_PREFIX + "answers"
"""Sorted set: ids of the requests whose answers are kept whole, by time. Bounded in length."""

OPEN_QUERIES = KEY_PREFIX + "open-queries"
"""Hash: id of an unanswered query -> the bytes that it and its answer need; `total`: of all.
Bounded by `max_queries` and `max_query_bytes`, under a TTL."""


def wake(queue: str) -> str:
    """Return the key of a list: one token per job pushed, which wakes one idle worker.

    Bounded in length, under a TTL.
    """
    return f"{KEY_PREFIX}wake:{queue}"


def pace(queue: str) -> str:
    """Return the key of a hash: `taken` jobs of a queue in `seconds` in which others waited, and
    `since` when some wait. Under a TTL."""
    return f"{KEY_PREFIX}pace:{queue}"


def worker(name: str) -> str:
    """Return the key of a hash: statistics of a worker process. Its TTL is the lease."""
    return f"{KEY_PREFIX}worker:{name}"


def last_worker(stream_id: str) -> str:
    """Return the key of a string: the worker that last took a clip of a stream; with `:<model>`
    behind it, a clip that names its model. Under a TTL."""
    return f"{KEY_PREFIX}last-worker:{stream_id}"


def has_room(worker_name: str) -> str:
    """Return the key of a string, which exists while at least half of a worker's slots are free.
    Its TTL is seconds."""
    return f"{KEY_PREFIX}has-room:{worker_name}"


TOKENS = KEY_PREFIX + "tokens"
"""String: the highest token given to the taker of a job. It grows, even when it is lost: it is at
least the time in ms."""


def stream_job(stream_id: str) -> str:
    """Return the id of the RQ job that runs a stream.

    Field `token` of a job's hash is that of its owner, `execution` the id of what it runs.
    """
    return f"ingest-{stream_id}"


RECORDER = KEY_PREFIX + "recorder"
"""String: JSON `{"trouble"}`, what keeps a recorder from recording, or null. Its TTL is the lease
of the recorders."""

CAMERA_SEARCH = KEY_PREFIX + "camera-search"
"""String: held by the ingest worker that searches for moved cameras, or has just done so; under a
TTL."""

VECTORS = KEY_PREFIX + "vectors"
"""String: held by the recorder that makes the vectors of search by meaning, under a TTL."""

MQTT_BRIDGE = KEY_PREFIX + "mqtt-bridge"
"""String: JSON `{"name", "trouble"}`, the program that serves MQTT, and what keeps it from that, or
null. Its TTL is the lease: one program serves at a time."""

LOADING = KEY_PREFIX + "loading"
"""String: host of the model worker that last reported that it is loading its model. Its TTL is the
lease."""

MODELS = KEY_PREFIX + "models"
"""Sorted set: models that workers serve or have served, by when, epoch seconds. Bounded in length,
under a TTL."""

SICK_GPUS = KEY_PREFIX + "sick-gpus"
"""Hash: `<host> <gpu>` -> a SickGpu as JSON, with when it was reported. One field for each GPU that
is out of service, under a TTL."""

LAST_SEEN = KEY_PREFIX + "last-seen"
"""Hash: when each part of the installation last worked, epoch seconds; one field per kind."""


API_KEYS = KEY_PREFIX + "api-keys"
"""Hash: name of an API key -> ApiKey as JSON, with the key's SHA-256. Bounded in length."""

API_KEYS_USED = KEY_PREFIX + "api-keys-used"
"""Hash: name of an API key -> when it was last used, epoch seconds. Bounded as `API_KEYS` is."""


def session(token_digest: str) -> str:
    """Return the key of a string: the digest of the API key of a browser's session. Under a TTL."""
    return f"{KEY_PREFIX}session:{token_digest}"


def rate(key_name: str) -> str:
    """Return the key of a string: when an API key may again make all calls of a minute. Under a
    TTL."""
    return f"{KEY_PREFIX}rate:{key_name}"


def idempotency(digest: str) -> str:
    """Return the key of a hash: a call with an `Idempotency-Key`, and its answer. Under a TTL.

    The newest `MAX_IDEMPOTENCY_KEYS` of each API key are kept.
    """
    return f"{KEY_PREFIX}idempotency:{digest}"


def idempotency_index(key_name: str) -> str:
    """Return the key of a sorted set: the idempotency keys of an API key, by time. Under a TTL."""
    return f"{KEY_PREFIX}idempotency-index:{key_name}"


STREAM_EDITED = KEY_PREFIX + "stream-edited"
"""Pub/sub channel that announces, as its id, each stream that was edited or detached."""


def answered(request_id: str) -> str:
    """Return the name of a pub/sub channel that announces the answer to a request."""
    return f"{KEY_PREFIX}answered:{request_id}"


def deltas(request_id: str) -> str:
    """Return the key of a Redis Stream, and the name of the channel that announces its entries:
    pieces of the answer to a query while it is generated. Bounded in length, under a TTL."""
    return f"{KEY_PREFIX}deltas:{request_id}"


ROOM = KEY_PREFIX + "room"
"""String: how many bytes of new work may come before the server is asked for its memory again.
Under a TTL of a second."""

REPLICATED = KEY_PREFIX + "replicated"
"""String: written after what a failover must not lose, to wait for a replica. Under a TTL."""
