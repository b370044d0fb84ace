"""Bodies that the API takes and gives, beside the records of `streamer.domain`."""

from pydantic import Field

from streamer.domain import ErrorInfo, Model, Query, Result, Sampling, Stream


class WatchBody(Model):
    """A standing question; what is left out comes from the settings."""

    prompt: str
    window: float | None = Field(default=None, gt=0, le=3600, description="seconds")
    max_frames: int | None = Field(default=None, ge=1, le=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)


class StreamBody(Model):
    """What to attach."""

    url: str = Field(min_length=1, max_length=4096, description="URL, or a file on the server")
    name: str | None = Field(default=None, description="default: from the URL")
    sampling: Sampling | None = None
    watches: list[WatchBody] | None = Field(
        default=None, max_length=64, description="default: a caption every window; []: none"
    )
    probe: bool = Field(default=True, description="try the source before attaching it")


class QueryBody(Model):
    """A question about a stream now or, with `since`, about a past range."""

    prompt: str
    stream: str | None = Field(
        default=None, description="id or name; may be left out when one stream is attached"
    )
    since: str | None = Field(default=None, description="RFC 3339, or relative such as -10m")
    until: str | None = Field(default=None, description="likewise; default: now")
    max_frames: int | None = Field(default=None, ge=1, le=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)


class StreamList(Model):
    """All attached streams, oldest first."""

    streams: list[Stream]


class QueryList(Model):
    """Queries, newest first."""

    queries: list[Query]


class ResultPage(Model):
    """Results, newest first; pass `next_cursor` as `cursor` to get older ones."""

    results: list[Result]
    next_cursor: str | None


class ErrorBody(Model):
    """What every failure looks like."""

    error: ErrorInfo


class Health(Model):
    """The process is alive."""

    status: str = "ok"
