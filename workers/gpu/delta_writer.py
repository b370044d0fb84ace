"""Publish the text of a query's answer while the engine generates it."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import redis
import structlog

from streamer.queues.deltas import Delta, Deltas, DeltaToken
from workers.context import WorkerContext

if TYPE_CHECKING:
    from nvila_core import Handle, TokenLogprob

MIN_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON cannot hold, as in OpenAI's API."""

_log = structlog.get_logger(__name__)


class DeltaWriter:
    """Writes the pieces of one answer, for those who wait for it.

    There may be no reader, and the result has the whole text: so pieces that Redis refuses are
    written with the next ones, and never stop the job.
    """

    def __init__(self, context: WorkerContext, request_id: str) -> None:
        assert context.engine is not None
        self._deltas = Deltas(context.connections.main)
        self._request_id = request_id
        self._stop_ids = context.engine.model.tokenizer.stop_ids
        self._read = self._characters = self._tokens = 0

    def write(self, handle: "Handle") -> None:
        """Publish what has been generated since the last call."""
        pieces = handle.pieces(self._read)
        if not pieces:
            return
        drawn = chain.from_iterable(piece.logprobs for piece in pieces)
        delta = Delta(
            at=self._characters,
            text="".join(piece.text for piece in pieces).replace("\0", "\ufffd"),
            first_token=self._tokens,
            tokens=_records([token for token in drawn if token.token_id not in self._stop_ids]),
        )
        try:
            self._deltas.add(self._request_id, delta)
        except redis.exceptions.RedisError as error:
            _log.debug("delta_not_written", request=self._request_id, reason=str(error))
            return
        self._read += len(pieces)
        self._characters += len(delta.text)
        self._tokens += len(delta.tokens)


def _records(tokens: "Sequence[TokenLogprob]") -> list[DeltaToken]:
    return [
        DeltaToken(
            bytes=list(token.token),
            logprob=max(token.logprob, MIN_LOGPROB),
            top=_records(token.top),
        )
        for token in tokens
    ]
