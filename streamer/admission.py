"""Which sources may be attached, and whether they work."""

from typing import TYPE_CHECKING

from streamer.domain import Stream, Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

if TYPE_CHECKING:
    from streamer.media.access_policy import Access
    from streamer.media.source import SourceInfo


class Admission:
    """Looks at what users name as a source, before anything is stored or changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.remote = False
        """Whether those who name sources do so over HTTP: they may name `allowed_dirs` only."""

    def split(self, source: str) -> tuple[str, str]:
        """The URL to show and the URL to open of `source`.

        Raises StreamerError(STREAM_URL_FORBIDDEN | INVALID_REQUEST) when it may not be opened.
        """
        from streamer.media.urls import parse_source, split_secret

        return split_secret(self._access().check(parse_source(source)))

    def probe(self, source: str, transport: Transport) -> "SourceInfo":
        """Open `source`, decode one picture and close it again.

        Raises StreamerError with the stream code that says why it cannot be used.
        """
        from streamer.media.source import probe

        full_url = self.split(source)[1]
        return probe(full_url, self._settings.open_timeout, self._access(), transport)

    def replacement(
        self, stream: Stream, source: str, transport: Transport, probe: bool
    ) -> tuple[str, str]:
        """Like :meth:`split`, of a `source` that is to take the place of that of `stream`.

        Raises StreamerError: as :meth:`split`; INVALID_REQUEST for one that cannot take it; with
        `probe` a stream code when it does not work.
        """
        from streamer.media.urls import MASK, is_live

        if f":{MASK}@" in source:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The URL has {MASK} where its password should be: write the password.",
            )
        public_url, full_url = self.split(source)
        if not (stream.live and is_live(full_url)):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "Only a live stream can be given another URL, and only that of a live stream: "
                f"detach '{stream.name}' and attach the other source.",
            )
        if probe:
            self.probe(source, transport)
        return public_url, full_url

    def require_recording(self, source: str) -> None:
        """Raise StreamerError(INVALID_REQUEST) for a live source."""
        from streamer.media.urls import is_live, parse_source, redact

        if is_live(parse_source(source)):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"{redact(source)} is a live source without an end: use `streamer attach` for it.",
            )

    def _access(self) -> "Access":
        from streamer.media.access_policy import Access

        return Access.of(self._settings, remote=self.remote)
