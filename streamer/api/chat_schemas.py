"""Bodies of the OpenAI-compatible calls, in the words of OpenAI's API.

Clients send many fields that mean nothing here: unknown ones are ignored, in these bodies alone.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from streamer.api.schemas import TimeText
from streamer.domain.conversation import Detail, Role
from streamer.domain.record import unstorable
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError, about
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CLIP_FRAMES,
    MAX_LOGPROBS,
    MAX_STOP,
    MAX_STOPS,
    MAX_TURNS,
)
from streamer.questions.chats import (
    MAX_LAST,
    STREAM_SCHEME,
    CameraView,
    ChatMessage,
    ChatPart,
    SentPicture,
)
from streamer.queues.deltas import DeltaToken
from streamer.response_format import ChoiceFormat, JsonFormat, ResponseFormat, TextFormat
from streamer.times import RELATIVE_PATTERN

CAMERA_PREFIX = "stream/"
"""Begins the names of models that are cameras."""

DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer, if the caller does not limit it."""

_MAX_CHOICES = 16
"""Answers to one request (`n`)."""

MAX_PARTS = 1024
"""Parts of one message."""


_CHECKED_ELSEWHERE = {
    *("max_tokens", "max_completion_tokens", "seed"),  # numbers of any size
    *("messages", "content", "image_url", "video_url", "stream_options"),  # bodies of their own
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, fields: Any) -> Any:
        """Refuse what JSON, Redis or a database cannot store; what is ignored may be anything."""
        kept = fields
        if isinstance(fields, dict):
            names = {field.alias or name for name, field in cls.model_fields.items()} | {"file_id"}
            kept = {name: fields[name] for name in fields.keys() & names - _CHECKED_ELSEWHERE}
        reason = unstorable(kept)
        if reason is not None:
            raise PydanticCustomError("unstorable", "{reason}", {"reason": reason})
        return fields


def _as_object(value: Any) -> Any:
    """Return an address that stands alone, or a file's id, as the object that OpenAI's clients
    send."""
    if isinstance(value, dict) and "url" not in value and "file_id" in value:
        return value | {"url": value["file_id"]}
    return {"url": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_LAST = (
    r"([1-9][0-9]{0,5}(\.[0-9]{1,6})?[sm]?|[1-9][0-9]{0,4}(\.[0-9]{1,6})?h"
    r"|[1-9][0-9]{0,3}(\.[0-9]{1,6})?d|0\.[0-9]{0,5}[1-9][smhd]?)"
)
"""Regular expression of the durations for :func:`streamer.times.parse_duration` that are longer
than 0 and at most MAX_LAST."""

_DATE = (
    "[12][0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)"
    "|(0[13578]|1[02])-31)"
)
_TIME = rf"({RELATIVE_PATTERN}|{_DATE}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?Z)"
"""Regular expression of the times that an address has, but for 29 February."""

_VIEW = rf"(last={_LAST}|since={_TIME}(&until={_TIME})?)"
_ADDRESS = (
    rf"^(data:[!-~]+|https?://[!-~]+|file_[0-9a-f]{{16}}|stream://[A-Za-z0-9._-]+(\?{_VIEW})?)$"
)


class Address(_Body):
    """Where a picture or video is."""

    url: str = Field(
        description="data:, https://, stream://NAME[?last=10s|since=&until=], or the id of a file",
        json_schema_extra={"pattern": _ADDRESS},
    )
    detail: Detail | None = Field(
        default=None, description="low: one tile; high: tiles; auto: what the policy plans"
    )


_Seconds = Annotated[str, Field(json_schema_extra={"pattern": f"^{_LAST}$"})]

_RANGE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"properties": {name: {"type": "null"} for name in ("since", "until")}},
        {
            "required": ["since"],
            "properties": {"last": {"type": "null"}, "since": {"type": "string"}},
        },
    ]
}
"""`last` or a range, whose end needs a start, as JSON schema."""


class StreamView(BaseModel):
    """What an attached stream shows; without `last` or `since`: now."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_RANGE_SCHEMA)

    stream_id: str = Field(min_length=1, description="id or name of the stream")
    last: _Seconds | Annotated[float, Field(ge=0.001, le=MAX_LAST)] | None = Field(
        default=None, description="the last seconds, such as 10s"
    )
    since: TimeText | None = Field(default=None, description="start of a range: RFC 3339 or -10m")
    until: TimeText | None = Field(default=None, description="end of the range; default: now")
    max_frames: int | None = Field(default=None, ge=1, le=MAX_CLIP_FRAMES)
    stale_ok: bool = False
    detail: Detail | None = None


class TextContent(_Body):
    """A text."""

    type: Literal["text"]
    text: str


class ImageContent(_Body):
    """A picture."""

    type: Literal["image_url"]
    image_url: Annotated[Address, BeforeValidator(_as_object, json_schema_input_type=Address | str)]


class VideoContent(_Body):
    """A video, of which several frames are shown."""

    type: Literal["video_url"]
    video_url: Annotated[Address, BeforeValidator(_as_object, json_schema_input_type=Address | str)]


class StreamContent(_Body):
    """Frames of an attached stream."""

    type: Literal["stream"]
    stream: StreamView


Content = Annotated[
    TextContent | ImageContent | VideoContent | StreamContent, Field(discriminator="type")
]


def _as_content(value: Any) -> Any:
    """Return content as parts: a text alone, or among parts, is a part too (Frigate 0.15)."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return parts
    return [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]


_TEXTS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"required": ["type"], "properties": {"type": {"const": "text"}}},
}
_PICTURES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"properties": {"role": {"const": "user"}}},
        {"properties": {"content": {"anyOf": [{"type": ["string", "null"]}, _TEXTS_SCHEMA]}}},
    ]
}
"""Only messages of the user have pictures, as JSON schema."""


class MessageBody(_Body):
    """A message of a conversation."""

    model_config = ConfigDict(json_schema_extra=_PICTURES_SCHEMA)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Content] | None,
        Field(max_length=MAX_PARTS),
        BeforeValidator(_as_content, json_schema_input_type=str | list[Content | str] | None),
    ] = None


class TextAnswer(_Body):
    """Any text."""

    type: Literal["text"]


class JsonAnswer(_Body):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Body):
    """A JSON schema."""

    name: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")


class SchemaAnswer(_Body):
    """JSON that matches a schema. Strings and arrays without bounds are given some."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class ChoiceAnswer(ChoiceFormat):
    """One of the given choices, word for word; not in OpenAI's API."""


_Stop = Annotated[str, Field(max_length=MAX_STOP)]


class ChunkOptions(_Body):
    """How an answer is streamed."""

    include_usage: bool | None = None


def _as_seed(number: int) -> int:
    return number if abs(number) < 2**63 else number % 2**63


class ChatBody(_Body):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"top_logprobs": {"type": "null"}}},
                {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
            ]
        }
    )

    model: str = Field(
        default="",
        description=f"a model that is served, or {CAMERA_PREFIX}NAME: what that camera shows now; "
        "any other name stands for the model that is there",
    )
    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_TURNS)
    max_tokens: int | None = Field(
        default=None, ge=1, description="maximum tokens of the answer; reduced to what is possible"
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="newer name of max_tokens"
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="default: 0, the likeliest answer; 1 with n above 1"
    )
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: Annotated[int, AfterValidator(_as_seed)] | None = None
    stop: Annotated[
        list[_Stop] | None,
        Field(max_length=MAX_STOPS),
        BeforeValidator(_as_list, json_schema_input_type=_Stop | list[_Stop] | None),
    ] = None
    n: int | None = Field(default=None, ge=1, le=_MAX_CHOICES)
    response_format: (
        Annotated[
            TextAnswer | JsonAnswer | SchemaAnswer | ChoiceAnswer, Field(discriminator="type")
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream: bool | None = None
    stream_options: ChunkOptions | None = None
    tool_choice: Any = Field(
        default=None,
        description="auto and none; tools are not called",
        json_schema_extra={"enum": ["auto", "none", None]},
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "'top_logprobs' needs 'logprobs': true.",
                param="top_logprobs",
            )
        if self.tool_choice not in (None, "auto", "none"):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The model calls no tools: leave out 'tool_choice', or send auto or none.",
                param="tool_choice",
            )
        return self

    @property
    def camera(self) -> str | None:
        """The stream that the model's name stands for."""
        return self.model.removeprefix(CAMERA_PREFIX) if self.asks_camera else None

    @property
    def asks_camera(self) -> bool:
        """Whether the model is a camera."""
        return self.model.startswith(CAMERA_PREFIX)

    @property
    def form(self) -> ResponseFormat:
        """The form that the answer must have."""
        match self.response_format:
            case JsonAnswer():
                return JsonFormat(json_schema={"type": "object"})
            case SchemaAnswer(json_schema=named):
                return JsonFormat(json_schema=named.json_schema)
            case ChoiceAnswer(choices=choices):
                return ChoiceFormat(choices=choices)
        return TextFormat()

    @property
    def sampling(self) -> dict[str, Any]:
        """How to answer, as fields of a `ChatRequest`."""
        several = (self.n or 1) > 1
        warm = 1.0 if several else 0.0
        temperature = warm if self.temperature is None else self.temperature
        wanted = self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS
        return {
            "max_tokens": min(wanted, MAX_ANSWER_TOKENS),
            "temperature": temperature if temperature >= _MIN_TEMPERATURE else 0.0,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, MIN_TOP_P),
            "stop": [text for text in self.stop or () if text],
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "response_format": self.form,
        }

    def conversation(self) -> list[ChatMessage]:
        """Return the messages, with the camera in the last one of the user if the model is one and
        nothing else is shown.

        Raises StreamerError(INVALID_REQUEST).
        """
        messages = []
        for number, message in enumerate(self.messages):
            with about(f"messages.{number}.content"):
                messages.append(_message(message))
        shown = any(not isinstance(part, str) for message in messages for part in message.parts)
        if self.camera is None or shown:
            return messages
        with about("model"):
            view = CameraView.of(self.camera, {})
        asked = [n for n, message in enumerate(messages) if message.role == "user"]
        if asked:
            last = messages[asked[-1]]
            messages[asked[-1]] = ChatMessage("user", [view, *last.parts])
        return messages


_MIN_TEMPERATURE = 1e-5
"""A lower temperature is greedy."""

MIN_TOP_P = 1e-6
"""0 stands for the likeliest token alone, as this does."""


def _message(message: MessageBody) -> ChatMessage:
    role: Role = "system" if message.role == "developer" else message.role
    parts: list[ChatPart] = []
    for number, content in enumerate(message.content or ()):
        with about(str(number)):
            if role != "user" and not isinstance(content, TextContent):
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"Only messages of the user can have pictures, not those of the {role}.",
                )
            parts.append(_part(content))
    return ChatMessage(role, parts)


def _part(content: TextContent | ImageContent | VideoContent | StreamContent) -> ChatPart:
    match content:
        case TextContent():
            return content.text
        case StreamContent(stream=view):
            fields = view.model_dump(exclude={"stream_id", "detail"}, exclude_defaults=True)
            return CameraView.of(view.stream_id, fields, view.detail or "auto")
        case ImageContent(image_url=address):
            video = False
        case VideoContent(video_url=address):
            video = True
    detail = address.detail or "auto"
    if address.url[: len(STREAM_SCHEME)].lower() == STREAM_SCHEME:
        return CameraView.at(address.url, detail)
    return SentPicture(address.url, video, detail)


class ModelCard(BaseModel):
    """A model, or a camera that can be asked like one."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since the Unix epoch")
    owned_by: str
    max_model_len: int | None = Field(
        description="positions of prompt and answer together; null while no model worker runs"
    )


class ModelCards(BaseModel):
    """All models and cameras."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def token_logprob(token: DeltaToken, *, with_top: bool = True) -> dict[str, Any]:
    """Return a token and its probability in OpenAI's words."""
    record: dict[str, Any] = {
        "token": bytes(token.bytes).decode(errors="replace"),
        "logprob": token.logprob,
        "bytes": token.bytes,
    }
    if with_top:
        record["top_logprobs"] = [token_logprob(other, with_top=False) for other in token.top]
    return record


def logprobs_of(tokens: Sequence[DeltaToken]) -> dict[str, Any]:
    """Return the `logprobs` of a choice."""
    return {"content": [token_logprob(token) for token in tokens], "refusal": None}


def usage_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the `usage` of the answers to one request: the prompt counts once."""
    first = results[0]
    completion = sum(result.completion_tokens for result in results)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "vision_tokens": first.vision_tokens,
        "tiles": first.tiles,
    }
