"""The largest requests that are accepted, wherever they come from: API, CLI, client or queue.

A limit that a user may have to change is a setting instead (`max_body_bytes`, `max_pixels`).
Stored records are not checked, so that what an earlier version accepted stays readable.
"""

from typing import TYPE_CHECKING

from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from pydantic.config import JsonDict

MAX_PROMPT = 32_768
"""Characters of a prompt."""

_VISIBLE = r"[^\s\u0000-\u001f]"
SOURCE_SCHEMA: "JsonDict" = {"pattern": rf"^\s*{_VISIBLE}([^\u0000-\u001f]*{_VISIBLE})?\s*$"}
"""What :func:`streamer.media.urls.parse_source` asks of every address and path, as JSON schema."""

PROMPT_SCHEMA: "JsonDict" = {
    "minLength": 1,
    "maxLength": MAX_PROMPT,
    "pattern": r"^[^\u0000]*[^\s\u0000\u001c-\u001f\u0085][^\u0000]*$",
}
"""What :func:`check_prompt` asks of a prompt, as JSON schema: not empty or blank."""

MAX_SOURCE = 4096
"""Characters of a URL or path."""

MAX_ENDPOINT_REFERENCE = 256
"""Characters of what a camera is called at every address."""

MAX_WEBHOOK_URL = 2048
"""Characters of the address of a webhook."""

MAX_SEARCH = 1000
"""Characters of a text to search the results for, and of other parameters of a list."""

MAX_CHOICES = 256
MAX_CHOICE = 1000
"""Characters of one choice."""

MAX_CHOICES_LENGTH = 65_536
"""Characters of all choices together; they travel in every job."""

MAX_CLIP_FRAMES = 256
"""Frames that one request is about."""

MAX_ANSWER_TOKENS = 4096

MIN_WINDOW = 0.1
"""Seconds of the shortest window that can be asked for."""

MAX_WINDOW = 3600
"""Seconds of the longest window."""

MAX_QUERY_STREAMS = 64
"""Streams that one query is about."""

MAX_QUERY_WINDOWS = 500
"""Windows that one query is about, of all its streams together, where their number is known before;
and the entries of its answer."""

MAX_RECORDING_WINDOWS = 10_000
"""Windows of a query about a recording whose length is not known before it has been read."""

MAX_MODEL_NAME = 200
"""Characters of the name of a model; its queues in Redis are named after it."""

MAX_LOGPROBS = 20
"""Alternatives of one token whose log-probabilities a request may ask for."""

MAX_WATCHES = 64
"""Watches that one stream may have; each adds one request per window."""

MAX_TURNS = 1024
"""Messages of a chat."""

MAX_CHAT_TEXT = 262_144
"""Characters of all messages of a chat together; they travel in every job."""

MAX_STOPS = 16
MAX_STOP = 200
"""Characters of one text that ends an answer."""

MAX_DATA = 16_384
"""Characters of the data that a job carries to its result, as JSON."""

MAX_JOB_BYTES = 4 << 20
"""Bytes of a job; the largest that the service itself submits has a quarter of it."""


def check_length(name: str, text: str, most: int) -> None:
    """Raise StreamerError(INVALID_REQUEST) if `text`, called `name`, has over `most` characters."""
    if len(text) > most:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The {name} has {len(text):,} characters, more than {most:,}: shorten it.",
        )


def check_prompt(prompt: str) -> None:
    """Raise StreamerError: PROMPT_EMPTY for white space; PROMPT_TOO_LONG above MAX_PROMPT."""
    if len(prompt) > MAX_PROMPT:
        raise StreamerError(
            ErrorCode.PROMPT_TOO_LONG,
            f"The prompt has {len(prompt):,} characters, more than {MAX_PROMPT:,}: shorten it.",
            "prompt",
        )
    if not prompt.strip():
        raise StreamerError(
            ErrorCode.PROMPT_EMPTY, "The prompt is empty: write a question.", "prompt"
        )
