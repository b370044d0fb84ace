"""Conversations about pictures and cameras: what is shown in them, and their requests."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from streamer.clock import Clock, SystemClock
from streamer.domain.conversation import ChatRequest, Detail, FramesPart, Role, TextPart, Turn
from streamer.domain.frame import MAX_GAPS, FrameRef, Gap
from streamer.domain.ids import new_id
from streamer.domain.query import Query
from streamer.domain.question import Question
from streamer.domain.stream import Stream
from streamer.domain.timestamp import to_datetime
from streamer.errors import ErrorCode, StreamerError, about
from streamer.frames.store import FrameStore, Retention
from streamer.limits import MAX_CLIP_FRAMES, MAX_PROMPT
from streamer.questions.queries import Queries
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from streamer.sources.admission import Admission
from streamer.sources.files import Files
from streamer.sources.streams import StreamRegistry
from streamer.times import parse_duration
from streamer.validation import validated

FILE_PREFIX = "file_"
"""Begins the ids of uploaded files."""

STREAM_SCHEME = "stream://"

MAX_LAST = 999_999_999
"""Seconds that `last` of a camera's view may have."""

_VIEW_FIELDS = ("last", "since", "until", "max_frames", "stale_ok")


@dataclass(frozen=True)
class SentPicture:
    """A picture or a video that the caller sends or names.

    Attributes:
        address: a `data:` or http(s) address, or the id of an uploaded file.
        video: whether it is a video, of which several frames are shown.
        detail: how closely the model looks at it.
    """

    address: str
    video: bool = False
    detail: Detail = "auto"


@dataclass(frozen=True)
class CameraView:
    """What an attached stream shows: now or, with `since`, in a past range; see `Question`."""

    question: Question
    detail: Detail = "auto"

    @classmethod
    def of(cls, stream: str, fields: dict[str, Any], detail: Detail = "auto") -> "CameraView":
        """Return the view of `stream`, an id or a name, with `last`, `since`, `until`,
        `max_frames` and `stale_ok` as a caller writes them.

        Raises StreamerError(INVALID_REQUEST).
        """
        unknown = sorted(fields.keys() - set(_VIEW_FIELDS))
        if unknown:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"'{str(unknown[0])[:80]}' is not known about a stream: write "
                f"{', '.join(_VIEW_FIELDS)}.",
            )
        asked = {name: value for name, value in fields.items() if value is not None}
        last = asked.pop("last", None)
        if last is not None:
            if "since" in asked or "until" in asked:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    "'last' replaces 'since' and 'until': give either it or them.",
                )
            seconds = parse_duration(last) if isinstance(last, str) else float(last)
            if not 0 < seconds <= MAX_LAST:
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'last' must be longer than 0 and at most {MAX_LAST:,} s, such as 10s.",
                )
            asked["since"] = f"-{max(seconds, 0.001):f}s"
        # What is asked stands in the conversation.
        return cls(validated(Question, prompt="chat", stream=stream, **asked), detail)

    @classmethod
    def at(cls, address: str, detail: Detail = "auto") -> "CameraView":
        """Return the view at an address `stream://NAME[?last=10s|since=&until=]`.

        Raises StreamerError(INVALID_REQUEST).
        """
        parts = urlsplit(address)
        name = unquote(parts.netloc) or unquote(parts.path.strip("/"))
        if not name or (parts.netloc and parts.path.strip("/")):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"'{address[:80]}' names no stream: write stream://NAME or stream://NAME?last=10s.",
            )
        return cls.of(name, dict(parse_qsl(parts.query, keep_blank_values=True)), detail)


ChatPart = str | SentPicture | CameraView


@dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation: its texts, and what it shows."""

    role: Role
    parts: Sequence[ChatPart]


@dataclass(frozen=True)
class _Shown:
    """The frames of one part."""

    frames: list[FrameRef]
    stream: Stream | None = None
    gaps: Sequence[Gap] = ()
    stale: bool = False
    stored_bytes: int = 0


class Chats:
    """The conversations of an installation: their pictures and their requests."""

    def __init__(
        self,
        connections: Connections,
        settings: Settings,
        registry: StreamRegistry,
        queries: Queries,
        admission: Admission,
        files: Files,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._queries = queries
        self._admission = admission
        self._files = files
        self._clock = clock or SystemClock()
        retention = Retention(
            age=max(settings.frame_ttl, 2 * settings.job_timeout),
            max_frames=MAX_CLIP_FRAMES,
            max_bytes=settings.max_query_bytes,
            min_frames=1,
        )
        self._pictures = FrameStore(
            connections.frames, retention, memory=connections.frame_memory, clock=clock
        )

    def prepare(
        self, messages: Sequence[ChatMessage], *, request_id: str | None = None, **fields: Any
    ) -> ChatRequest:
        """Make the request of a conversation: choose the frames of its cameras, fetch and store its
        pictures. Call :meth:`discard` when they are no longer needed.

        `fields` are others of a :class:`ChatRequest`: `max_tokens`, `temperature`, ... A request
        that was submitted with the same `request_id` before is not submitted again.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES and STREAM_STALE, as the subclass NotYet if
        a frame may come soon; INVALID_REQUEST, PROMPT_EMPTY, PROMPT_TOO_LONG, REQUEST_TOO_LARGE,
        STREAM_URL_FORBIDDEN, and the codes of a source that cannot be read.
        """
        request_id = request_id or new_id("qry")
        found: dict[int, _Shown] = {}
        parts = [
            (f"messages.{number}.content.{index}", part)
            for number, message in enumerate(messages)
            for index, part in enumerate(message.parts)
            if not isinstance(part, str)
        ]
        try:
            # Cameras first: a frame that is late is waited for before any picture is stored.
            for kind in (CameraView, SentPicture):
                for place, (field, part) in enumerate(parts):
                    if isinstance(part, kind):
                        with about(field):
                            found[place] = self._show(request_id, part)
            shown = [found[place] for place in range(len(parts))]
            return self._request(request_id, messages, shown, fields)
        except BaseException:
            if any(isinstance(part, SentPicture) for _, part in parts):
                self._pictures.discard(request_id)
            raise

    def _request(
        self,
        request_id: str,
        messages: Sequence[ChatMessage],
        shown: Sequence[_Shown],
        fields: dict[str, Any],
    ) -> ChatRequest:
        """Build the request of messages whose pictures and cameras, in order, are `shown`."""
        counts = iter([len(each.frames) for each in shown])
        turns = [
            Turn(role=message.role, content=_content(message.parts, counts)) for message in messages
        ]
        frames = [frame for each in shown for frame in each.frames]
        cameras = {each.stream.id: each.stream for each in shown if each.stream is not None}
        only = next(iter(cameras.values())) if len(cameras) == 1 else None
        times = [frame.time for frame in frames] or [self._clock.time()]
        if only is not None and fields.get("model") is None:
            fields["model"] = only.model
        request = validated(
            ChatRequest,
            id=request_id,
            stream_id=only.id if only is not None else "",
            stream_name=only.name if only is not None else "",
            start=to_datetime(min(times)),
            end=to_datetime(max(times)),
            prompt=_last_question(messages),
            frames=frames,
            turns=turns,
            gaps=[gap for each in shown for gap in each.gaps][:MAX_GAPS],
            stale=any(each.stale for each in shown),
            picture_bytes=sum(each.stored_bytes for each in shown),
            **fields,
        )
        request.check()
        with about("response_format"):
            request.response_format.check()
        return request

    def submit(self, request: ChatRequest) -> Query:
        """Submit a request as a query. Raises StreamerError(TOO_MANY_QUERIES)."""
        return self._queries.submit(request)

    def discard(self, request: ChatRequest) -> None:
        """Delete the pictures that :meth:`prepare` stored for a request."""
        if request.picture_bytes:
            self._pictures.discard(request.id)

    def _show(self, request_id: str, part: SentPicture | CameraView) -> _Shown:
        if isinstance(part, CameraView):
            with about("stream"):
                stream = self._registry.get(part.question.stream or "")
            seen = self._queries.admit(part.question, stream)
            return _Shown(seen.frames, stream, seen.gaps, seen.stale)
        return self._store(request_id, part)

    def _store(self, request_id: str, picture: SentPicture) -> _Shown:
        from streamer.frames.pictures import decode_picture, decode_video, fetch, read_picture

        settings = self._settings
        sent: bytes | Path
        if picture.address.startswith(FILE_PREFIX):
            sent = self._files.path(picture.address)
        else:
            sent = fetch(picture.address, self._admission.access(), settings.read_timeout)
        if picture.video:
            stills = decode_video(
                sent, settings.max_frames, settings.jpeg_quality, settings.max_pixels
            )
        else:
            data = sent if isinstance(sent, bytes) else read_picture(sent)
            stills = [decode_picture(data, settings.jpeg_quality, settings.max_pixels)]
        now = math.floor(1000 * self._clock.time()) / 1000
        frames = [
            self._pictures.put(
                request_id, still.jpeg, still.measures, time=now + still.pts, pts=still.pts
            )
            for still in stills
        ]
        stored = sum(len(still.jpeg) for still in stills)
        return _Shown(frames, stored_bytes=stored)


def _content(parts: Sequence[ChatPart], counts: Iterator[int]) -> list[TextPart | FramesPart]:
    """Return the content of a turn; texts that follow one another become one, line by line."""
    content: list[TextPart | FramesPart] = []
    for part in parts:
        if not isinstance(part, str):
            content.append(FramesPart(count=next(counts), detail=part.detail))
        elif content and isinstance(content[-1], TextPart):
            content[-1] = TextPart(text=f"{content[-1].text}\n{part}")
        else:
            content.append(TextPart(text=part))
    return content


def _last_question(messages: Sequence[ChatMessage]) -> str:
    """Return the text of the last message that has one, as records and lists show it."""
    for message in reversed(messages):
        text = "\n".join(part for part in message.parts if isinstance(part, str)).strip()
        if text and message.role == "user":
            return text[:MAX_PROMPT]
    return ""
