"""Check sources before they are attached: whether they are allowed, and whether they work."""

from typing import TYPE_CHECKING

from streamer.domain.stream import Stream, Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

if TYPE_CHECKING:
    from streamer.media.access_policy import AccessPolicy
    from streamer.media.source import SourceInfo


class Admission:
    """Checks of the sources that users name, before anything is stored or changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.remote = False
        """Whether sources come over HTTP; files must then be in `allowed_dirs`."""

    def split(self, source: str) -> tuple[str, str]:
        """Return the URL of `source` to show, without password, and the one to open.

        Raises StreamerError(STREAM_URL_FORBIDDEN | INVALID_REQUEST) if it may not be opened.
        """
        from streamer.media.urls import MASK, is_remote, parse_source, split_secret

        if is_remote(source) and MASK in source:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"The URL has {MASK} in place of its password or token: write the whole URL.",
            )
        return split_secret(self.access().check(parse_source(source)))

    def is_live(self, full_url: str, live: bool | None = None) -> bool:
        """Return `live` if it is given, else whether the end of `full_url` is a lost connection.

        Opens http(s) URLs; one that cannot be opened is judged by its form.
        """
        from streamer.media.urls import guess_live

        if live is not None or not full_url.startswith(("http://", "https://")):
            return guess_live(full_url) if live is None else live
        from streamer.media.liveness import is_live_source

        timeout = self._settings.open_timeout
        return is_live_source(full_url, None, access=self.access(), timeout=timeout)

    def probe(self, source: str, transport: Transport, live: bool | None = None) -> "SourceInfo":
        """Open `source`, decode one frame and close it.

        Raises StreamerError with the stream code that says why it cannot be used.
        """
        from streamer.media.source import inspect_source

        full_url = self.split(source)[1]
        timeout = self._settings.open_timeout
        return inspect_source(full_url, timeout, self.access(), transport, live)

    def replacement(
        self, stream: Stream, source: str, transport: Transport, probe: bool
    ) -> tuple[str, str]:
        """Like :meth:`split`, for a `source` that replaces the one of `stream`.

        Raises StreamerError: as :meth:`split`; INVALID_REQUEST if it cannot replace the old one;
        with `probe`, a stream code if it does not work.
        """
        public_url, full_url = self.split(source)
        if not (stream.live and self.is_live(full_url)):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "Only a live stream can get a new URL, and only that of another live stream: "
                f"detach '{stream.name}' and attach the new source.",
            )
        if probe:
            self.probe(source, transport, live=True)
        return public_url, full_url

    def require_recording(self, source: str, live: bool | None = None) -> None:
        """Raise StreamerError(INVALID_REQUEST) for a live source; see `is_live` for `live`."""
        from streamer.media.urls import redact

        if self.is_live(self.split(source)[1], live):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                f"{redact(source)} is a live stream and does not end: use `streamer attach`, or "
                "give --recording if it does end.",
            )

    def access(self) -> "AccessPolicy":
        """Return the rules for the sources that may be opened."""
        from streamer.media.access_policy import AccessPolicy

        return AccessPolicy.of(self._settings, remote=self.remote)
