"""A chat: a request whose prompt is a conversation, with pictures in its turns."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.domain.kinds import RequestKind, ResultKind
from streamer.domain.record import Record
from streamer.domain.request import ClipRequest
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CHAT_TEXT,
    MAX_CLIP_FRAMES,
    MAX_STOP,
    MAX_STOPS,
    MAX_TURNS,
)

Role = Literal["system", "user", "assistant"]

Detail = Literal["auto", "low", "high"]
"""How closely the model looks at a picture: `low`: one tile; `high`: the tiles that the published
model gives a single picture; `auto`: what the worker's policy plans."""


class TextPart(Record):
    """Text of a turn."""

    type: Literal["text"] = "text"
    text: str


class FramesPart(Record):
    """The next `count` frames of the request: a picture, or several frames of a video."""

    type: Literal["frames"] = "frames"
    count: int = Field(ge=1, le=MAX_CLIP_FRAMES)
    detail: Detail = "auto"


class Turn(Record):
    """What one side said."""

    role: Role
    content: list[Annotated[TextPart | FramesPart, Field(discriminator="type")]]


class ChatRequest(ClipRequest):
    """A conversation to continue, as a job carries it.

    `frames` are those of all turns, in order; a turn says where they stand. Its job has a name of
    its own, so that a worker of a release without chats refuses it.
    """

    kind: RequestKind = RequestKind.QUERY
    stream_id: str = ""
    stream_name: str = ""
    turns: list[Turn] = Field(min_length=1, max_length=MAX_TURNS)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP)]] = Field(
        default_factory=list, max_length=MAX_STOPS
    )
    picture_bytes: int = Field(
        default=0, ge=0, description="bytes of the pictures that were stored for it alone"
    )

    @model_validator(mode="after")
    def _place_frames(self) -> Self:
        placed = sum(
            part.count for turn in self.turns for part in turn.content if part.type == "frames"
        )
        if placed != len(self.frames):
            raise PydanticCustomError(
                "frames",
                "the turns have {placed} frames, and the request {frames}",
                {"placed": placed, "frames": len(self.frames)},
            )
        return self

    deltas_of: str | None = Field(
        default=None, description="the query that this ends, whose readers get the pieces of it"
    )

    @property
    def answer_kind(self) -> ResultKind:
        """See `ClipRequest.answer_kind`."""
        return ResultKind.ANSWER if self.part_of is None else ResultKind.SUMMARY

    @property
    def delta_id(self) -> str | None:
        """See `ClipRequest.delta_id`."""
        return self.deltas_of or super().delta_id

    @property
    def sampling(self) -> dict[str, Any]:
        """See `ClipRequest.sampling`."""
        return super().sampling | {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
        }

    @property
    def details(self) -> list[Detail]:
        """How closely the model looks at each of the frames."""
        return [
            part.detail
            for turn in self.turns
            for part in turn.content
            if part.type == "frames"
            for _ in range(part.count)
        ]

    def check(self) -> None:
        """Check the size of the request, before a worker spends anything on it.

        Raises StreamerError: PROMPT_EMPTY, PROMPT_TOO_LONG, INVALID_REQUEST.
        """
        texts = [p.text for turn in self.turns for p in turn.content if p.type == "text"]
        if sum(map(len, texts)) > MAX_CHAT_TEXT:
            raise StreamerError(
                ErrorCode.PROMPT_TOO_LONG,
                f"The messages have more than {MAX_CHAT_TEXT:,} characters: shorten them.",
                param="messages",
            )
        asked = (part for turn in self.turns if turn.role == "user" for part in turn.content)
        if not any(part.type == "frames" or part.text.strip() for part in asked):
            raise StreamerError(
                ErrorCode.PROMPT_EMPTY,
                "No message of the user has a text or a picture: ask a question.",
                param="messages",
            )
        if len(self.frames) > MAX_CLIP_FRAMES:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The messages have {len(self.frames)} pictures, more than {MAX_CLIP_FRAMES}: send "
                "fewer.",
                param="messages",
            )
        if self.max_tokens > MAX_ANSWER_TOKENS:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The request asks for {self.max_tokens} tokens, more than {MAX_ANSWER_TOKENS}: "
                "lower max_tokens.",
            )
        if self.response_format.type == "choice":
            self.response_format.check()
