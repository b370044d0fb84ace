"""The backend that asks a server with OpenAI's API."""

import threading
from collections.abc import Mapping, Sequence
from typing import Self

from nvila_core.generation.completion import Completion, Timings
from nvila_core.resolution.policy import Budget, Measures, Plan, parse_policy
from streamer.clock import Clock
from streamer.domain.conversation import Detail
from streamer.domain.request import ClipRequest
from streamer.settings import Settings
from workers.backend import plan_by_details
from workers.context import GiveBack, cancel_check, current, last_attempt, stop_check
from workers.remote.answer import read_answer
from workers.remote.question import TILING, chat_body, scaled
from workers.remote.server import ChatServer
from workers.remote.streamed import PieceWriter
from workers.time_limit import out_of_time, time_left

_FIRST_LOOK = 5.0  # seconds that the worker waits for the server before it says that it is ready


class RemoteBackend:
    """Answers clips by the model `settings.model` of a server; see `workers.backend`.

    The job slots of the worker limit how many requests the server gets at once.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._server = ChatServer(settings, clock)
        self._policy = parse_policy(settings.policy)
        self._lock = threading.Lock()
        self._counts = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def __enter__(self) -> Self:
        self._server.start(_FIRST_LOOK)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def facts(self) -> dict[str, str]:
        """What the worker logs when it is ready."""
        return {"backend": "openai", "server": self._server.server.url}

    def closed(self) -> bool:
        """Return whether no job should be taken now, because the server cannot answer it."""
        return self._server.closed()

    def plan(
        self, frames: Sequence[Measures], budget: Budget, details: Sequence[Detail] | None = None
    ) -> Plan:
        """See `Backend.plan`. A tile is `question.TILING`."""
        policy = self._policy
        return plan_by_details(
            frames, details, TILING, lambda free: policy.plan(free, TILING, budget)
        )

    def waiting(self) -> float:
        """See `Backend.waiting`: 1 while the server asks to be left alone."""
        return float(self._server.closed())

    def answer(self, clip: ClipRequest, jpegs: Sequence[bytes], plan: Plan) -> Completion:
        """See `Backend.answer`."""
        context = current()
        deadline = self._clock.monotonic() + time_left(context, clip)
        stopping = stop_check()

        def seconds_left() -> float:
            return deadline - self._clock.monotonic()

        def check() -> None:
            if seconds_left() <= 0:
                raise out_of_time(clip, self._settings.job_timeout)
            if stopping():
                raise GiveBack

        pictures = [
            scaled(jpeg, frame, choice.grid, self._settings.jpeg_quality)
            for jpeg, frame, choice in zip(jpegs, clip.frames, plan.frames, strict=True)
        ]
        body = chat_body(self._settings.model, clip, pictures)
        readers = clip.delta_id
        with_tokens = clip.logprobs is not None
        writer = PieceWriter(context, readers, with_tokens=with_tokens) if readers else None
        try:
            with context.isolation.enter(alone=last_attempt(), check=check):
                check()
                started = self._clock.monotonic()
                # an answer in a form is put into that form when it is whole
                streamed = writer is not None and clip.response_format.type == "text"
                heard = writer.write if writer is not None and streamed else None
                reply = self._server.ask(body, seconds_left, cancel_check(), stopping, heard)
        except TimeoutError:
            raise out_of_time(clip, self._settings.job_timeout) from None
        completion = read_answer(
            reply,
            clip.allowed_format,
            tiles=sum(columns * rows for columns, rows in (f.grid for f in plan.frames)),
            timings=Timings(generate_ms=1000 * (self._clock.monotonic() - started)),
        )
        with self._lock:
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += completion.usage.prompt_tokens
            self._counts["completion_tokens"] += completion.usage.completion_tokens
        if writer is not None:
            writer.end(completion.text, reply)
        return completion

    def stats(self) -> Mapping[str, float | str]:
        """Return counts since the start, and what keeps the server from answering, if anything."""
        trouble, length = self._server.trouble, self._server.max_model_len
        with self._lock:
            counts: dict[str, float | str] = dict(self._counts)
        return {
            **counts,
            "retries": self._server.retries,
            "model_server_up": float(trouble is None),
            "trouble": "" if trouble is None else trouble.message,
            "max_model_len": "" if length is None else length,
        }
