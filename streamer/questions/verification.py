"""Ask the model again, about the frames of a hit, whether they show what a search is for."""

import contextlib
import hashlib
from collections.abc import Sequence

import redis

from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.query import QueryStatus
from streamer.domain.request import VERIFIES, ClipRequest
from streamer.domain.result import Match, Result
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import ALERT_FORMAT
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.selection import select_frames
from streamer.frames.stored_frames import StoredFrames
from streamer.queues.jobs import Jobs
from streamer.queues.results import Results
from streamer.redis_client.errors import is_full
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry

MAX_VERIFIED = 16
"""Hits of a page that are verified: each takes the model as long as a question."""

_MAX_TOKENS = 8


class Verifier:
    """Verifies hits. The question about a hit is asked once while its answer is kept."""

    def __init__(
        self,
        settings: Settings,
        registry: StreamRegistry,
        jobs: Jobs,
        results: Results,
        pictures: StoredFrames,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._results = results
        self._pictures = pictures

    def verify(self, q: str, hits: Sequence[Result], matches: Sequence[Match]) -> list[Match]:
        """Return `matches`, one for each hit, with what is known by now; ask what is not.

        The first MAX_VERIFIED are asked about, as questions that wait in the queue like others. A
        match that has a verdict stays as it is, unless that is `pending`.

        Raises redis.exceptions.RedisError.
        """
        asked = hits[:MAX_VERIFIED]
        ids = [_question_id(q, hit) for hit in asked]
        found = []
        for hit, match, request_id, answer in zip(
            asked, matches, ids, self._results.get_many(ids), strict=False
        ):
            if match.verdict in (None, "pending"):
                known = self._ask(q, hit, request_id) if answer is None else _told(hit, answer)
                match = match.model_copy(update=known)
            found.append(match)
        late = _unverified(f"Only the first {MAX_VERIFIED} results are verified: lower the limit.")
        return found + [match.model_copy(update=late) for match in matches[len(asked) :]]

    def _ask(self, q: str, hit: Result, request_id: str) -> dict[str, object]:
        """Ask about a hit, unless it has been done; return the fields of its match."""
        with contextlib.suppress(StreamerError):  # it has no job yet, or Redis lost it
            if self._jobs.status(request_id) in (QueryStatus.QUEUED, QueryStatus.RUNNING):
                return {"verdict": "pending"}
            answer = self._results.get(request_id)  # it has come meanwhile
            if answer is not None:
                return _told(hit, answer)
            return _unverified("The model's answer is not kept any more: search again later.")
        frames = self._pictures.kept(hit)
        if not frames:
            return _unverified("Its frames are not kept any more.")
        try:
            self._jobs.submit(self._question(q, hit, request_id, frames))
        except StreamerError as error:
            if error.code is not ErrorCode.TOO_MANY_QUERIES:
                raise
            return _unverified("Too many questions wait for an answer: search again later.")
        except redis.exceptions.RedisError as error:
            if not is_full(error):
                raise
            return _unverified("Redis has no room for the question: search again later.")
        return {"verdict": "pending"}

    def _question(
        self, q: str, hit: Result, request_id: str, frames: list[FrameRef]
    ) -> ClipRequest:
        model = None
        with contextlib.suppress(StreamerError):  # it is detached, or cannot be read
            model = self._registry.get(hit.stream_id or "").model
        return ClipRequest(
            id=request_id,
            kind=RequestKind.QUERY,
            stream_id=hit.stream_id or "",
            stream_name=hit.stream_name or "",
            start=hit.start or to_datetime(frames[0].time),
            end=hit.end or to_datetime(frames[-1].time),
            prompt=f"Does the video show this: {q}? Answer yes or no.",
            frames=select_frames(frames, max(1, min(hit.frames, self._settings.max_frames))),
            max_tokens=_MAX_TOKENS,
            model=model,
            response_format=ALERT_FORMAT,
            logprobs=0,
            data={VERIFIES: hit.request_id},
        )


def _question_id(q: str, hit: Result) -> str:
    digest = hashlib.sha256(f"{hit.request_id}\n{q}".encode()).hexdigest()
    return f"qry_{digest[:32]}"


def _told(hit: Result, answer: Result) -> dict[str, object]:
    """Return the fields of a match whose question has its answer."""
    if answer.error is not None:
        return _unverified(f"{answer.error.code}: {answer.error.message}")
    shares = (answer.data or {}).get("probabilities") or {}
    probability = shares.get("yes", float(answer.text == "yes"))
    left = len(hit.frame_times)
    return {
        "verdict": "yes" if probability >= 0.5 else "no",
        "probability": round(probability, 4),
        "reason": f"The model saw {answer.frames} of {left} frames: the others are not kept."
        if answer.frames < left
        else None,
    }


def _unverified(reason: str) -> dict[str, object]:
    return {"verdict": "unverified", "reason": reason}
