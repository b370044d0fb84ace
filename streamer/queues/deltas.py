"""The text of an answer while it is generated, for those who wait for it.

A model worker adds the pieces of each query's answer to the Redis Stream `redis_keys.deltas(id)` as
the model writes them, several tokens at a time, and announces each on the pub/sub channel of the
same name. The end is announced as that of every request: on `redis_keys.answered(id)`, when its
result is there. A program that waits therefore subscribes to both channels, reads what is there
(:meth:`Deltas.read`), and reads on after each announcement and once in a while besides, because
pub/sub loses messages with a connection. Joined, the pieces are the `text` of the result.

A worker that dies is replaced by one that writes the answer again from its beginning. Each piece
therefore says where in the answer it stands; :meth:`Delta.beyond` leaves out what was read before.
"""

from collections.abc import Sequence
from typing import Any, cast

import redis
from pydantic import Field

from streamer import redis_keys
from streamer.domain.record import Record
from streamer.limits import MAX_ANSWER_TOKENS

_TTL = 600
"""Seconds after its last piece for which the text is kept; the result lives longer."""

_FIELD = b"json"


class DeltaToken(Record):
    """A token of an answer, or an alternative to one, and how likely the model found it."""

    bytes: list[int] = Field(description="the token, which need not be whole characters")
    logprob: float = Field(description="natural logarithm of its probability; -9999 for 0")
    top: "list[DeltaToken]" = Field(
        default_factory=list, description="the most likely tokens in its place"
    )


class Delta(Record):
    """A piece of an answer."""

    at: int = Field(ge=0, description="characters of the answer before it")
    text: str
    first_token: int = Field(default=0, ge=0, description="tokens of the answer before `tokens`")
    tokens: list[DeltaToken] = Field(
        default_factory=list,
        description="the tokens generated since the last piece, if the request asked for "
        "log-probabilities; `text` may lag behind them",
    )

    def beyond(self, characters: int, tokens: int = 0) -> "Delta":
        """Return the part of this piece that stands after the first `characters` and `tokens` of
        the answer; its text and tokens may be empty."""
        return Delta(
            at=max(self.at, characters),
            text=self.text[max(0, characters - self.at) :],
            first_token=max(self.first_token, tokens),
            tokens=self.tokens[max(0, tokens - self.first_token) :],
        )


class Deltas:
    """The pieces of the answers that are being generated."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis

    def add(self, request_id: str, delta: Delta) -> None:
        """Add a piece, and announce it. Raises redis.exceptions.RedisError."""
        key = redis_keys.deltas(request_id)
        entry: dict[Any, Any] = {_FIELD: delta.model_dump_json(exclude_defaults=True)}
        with self._redis.pipeline() as pipeline:
            pipeline.xadd(key, entry, maxlen=2 * MAX_ANSWER_TOKENS)
            pipeline.expire(key, _TTL)
            pipeline.publish(key, "1")
            pipeline.execute()

    def read(self, request_id: str, after: str = "0-0") -> list[tuple[str, Delta]]:
        """Return the pieces after the entry `after`, each with the id of its own entry."""
        entries = self._redis.xrange(redis_keys.deltas(request_id), min=f"({after}")
        return [
            (entry_id.decode(), Delta.read(fields[_FIELD]))
            for entry_id, fields in cast("Sequence[tuple[bytes, dict[bytes, bytes]]]", entries)
        ]

    def discard(self, request_id: str) -> None:
        """Delete the pieces of an answer that no client waits for any more."""
        self._redis.unlink(redis_keys.deltas(request_id))
