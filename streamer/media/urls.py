"""Parse, normalise and redact the addresses of streams.

A password may contain any character, percent-encoded or raw. If a text is ambiguous, `redact`
hides more rather than less.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from streamer.errors import ErrorCode, StreamerError
from streamer.media.harmless_parameters import HARMLESS

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps"})
SCHEMES = LIVE_SCHEMES | {"http", "https"}
TLS_SCHEMES = frozenset({"rtsps", "rtmps", "https"})
MASK = "***"

_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_RECORDINGS = re.compile(
    r"\.(mp4|m4v|mov|mkv|webm|avi|m?ts|m2ts|mpe?g|flv|wmv|3gp|ogv|gif)", re.IGNORECASE
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DEVICE = re.compile(r"/dev/video\d+")
_IPV6 = r"\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]"
_ZONE = re.compile(r"^(\[[0-9A-Fa-f:.]+)%25(?=[^\]])")
"""The start of an IPv6 address with a zone as RFC 6874 wants it written."""
_HOST = re.compile(rf"(?:{_IPV6}|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::(\d{{1,5}}))?(?=[/?#]|$)")
_CERTAIN_HOST = re.compile(
    rf"(?:{_IPV6}|\d{{1,3}}(?:\.\d{{1,3}}){{3}}|localhost|[A-Za-z0-9._-]+(?=:\d))"
    r"(?::\d{1,5})?(?=[/?#]|$)"
)
_PORT = re.compile(r"\d{1,5}(?=[/?#]|$)")
_SECRET_PARAMETER = re.compile(
    r"""([\w.-]*(?:passw(?:or)?d|pwd|pass|pas|pw|token|jwt|secret|session|sid|hmac|api_?key|key"""
    r"""|auth|credential|sig(?:nature)?)=)[^&\s"']+""",
    re.IGNORECASE,
)
"""Parameters that are masked in any text, also outside URLs."""

_VALUE = r"""[^&;#\s"'<>`]*"""
_PARAMETER = re.compile(rf"(?<=[?#&;])([^=?#&;\s\"'<>`/]+)=({_VALUE})")
_ENCODED_PARAMETER = re.compile(
    r"((?:%3F|%26|%23|%3B)[\w.-]+%3D)((?:(?!%26|%23|%3B)[^\s\"'&])*)", re.IGNORECASE
)
_QUERY = re.compile(r"""(://[^\s"'<>`?#]*\?)([^\s"'<>`]+)""")
_PLAIN_VALUE = re.compile(rf"[\w.,:+-]{{0,32}}(?:=?{re.escape(MASK)})?")
_TRAILING = re.compile(r"[)\]}>.,:!]+$")
"""Punctuation of the sentence in which a URL stands."""

_PATH = re.compile(
    r"""([A-Za-z][A-Za-z0-9+.-]*://(?:[^\s"'<>`/?#@]*@)?[^\s"'<>`/?#]*)(/[^\s"'<>`?#]*)"""
)
_LONE_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"'<>`/?#@:]+)(?=@)")
_PIECE = re.compile(r"[A-Za-z0-9_.~-]+")
_UUID = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE)
_STREAM_KEY = re.compile(r"(?:[a-z0-9]{4}-){3,}[a-z0-9]{4}", re.IGNORECASE)
_MIN_TOKEN = 16
"""Characters of the shortest piece of a path that may be a token."""
_ENCODED = re.compile(
    r"(%3A%2F%2F(?:(?!%3A|%2F|%40)[^\s&@:/])*(?:%3A|:))[^\s&\"']*(?=%40|@)", re.IGNORECASE
)


def redact(url_or_text: str) -> str:
    """Replace every secret by `***`.

    Secrets are passwords in URLs, values of parameters that are not known to be harmless, pieces
    of a URL's path that look like a token, and parameters such as `password=` in any text.

    >>> redact("cannot open rtsp://admin:p@ss/w rd@cam/live?channel=1&st=abc")
    'cannot open rtsp://admin:***@cam/live?channel=1&st=***'
    """
    lines = [_redact_line(line) for line in url_or_text.splitlines(keepends=True)]
    text = _ENCODED.sub(rf"\1{MASK}", "".join(lines))
    text = _SECRET_PARAMETER.sub(rf"\1{MASK}", text)
    if "=" in text or "?" in text:
        text = _PARAMETER.sub(_redact_parameter, text)
        text = _QUERY.sub(_redact_bare_parameters, text)
    if "%3" in text or "%2" in text:
        text = _ENCODED_PARAMETER.sub(_redact_encoded_parameter, text)
    if "://" in text:
        text = _PATH.sub(lambda m: m[1] + _PIECE.sub(_redact_piece, m[2]), text)
        text = _LONE_USER.sub(lambda m: m[1] + _PIECE.sub(_redact_piece, m[2]), text)
    return text


def _redact_parameter(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    trailing = _TRAILING.search(value)
    plain = value[: trailing.start()] if trailing else value
    if not plain or (name.lower() in HARMLESS and _PLAIN_VALUE.fullmatch(plain)):
        return match[0]
    return f"{name}={MASK}"


def _redact_encoded_parameter(match: re.Match[str]) -> str:
    name = unquote(match[1])[1:-1]
    harmless = name.lower() in HARMLESS and _PLAIN_VALUE.fullmatch(unquote(match[2]))
    return match[0] if harmless or not match[2] else match[1] + MASK


def _redact_bare_parameters(match: re.Match[str]) -> str:
    """Mask the parameters of a query that have no name, such as `?abcdef`."""
    trailing = _TRAILING.search(match[2])
    end = trailing.start() if trailing else len(match[2])
    parts = re.split(r"([&;#])", match[2][:end])
    shown = [
        part if "=" in part or part in "&;#" or part.lower() in HARMLESS else MASK for part in parts
    ]
    return match[1] + "".join(shown) + match[2][end:]


def _redact_piece(match: re.Match[str]) -> str:
    return MASK if looks_random(match[0]) else match[0]


def looks_random(piece: str) -> bool:
    """Return whether a piece of a URL looks like a token and not like a name that people chose.

    Tokens are UUIDs, stream keys such as `abcd-1234-efgh-5678`, JSON Web Tokens, and runs of at
    least 16 letters and digits: mixed case, or at least a quarter digits.
    """
    if piece.startswith("eyJ") or _UUID.fullmatch(piece) or _STREAM_KEY.fullmatch(piece):
        return len(piece) >= _MIN_TOKEN
    return any(_is_random_run(run) for run in re.findall(r"[A-Za-z0-9]{16,}", piece))


def _is_random_run(run: str) -> bool:
    digits = sum(character.isdigit() for character in run)
    if not digits or digits == len(run):
        return False
    mixed = run != run.lower() and run != run.upper() and digits >= 2
    return mixed or 4 * digits >= len(run)


def _redact_line(line: str) -> str:
    # A scheme inside a word may be part of a password; after a blank or a quote, a URL begins.
    schemes = enumerate(_SCHEME.finditer(line))
    starts = [m for n, m in schemes if n == 0 or line[m.start() - 1] in " \t\"'`(<[{,;|"]
    if not starts:
        return line
    pieces = [line[: starts[0].start()]]
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        end = following.start() if following else len(line)
        before = line[match.start() - 1] if match.start() else ""
        whole = match.start() == 0 and following is None
        pieces += [match[0], _redact_authority(line[match.end() : end], before, whole)]
    return "".join(pieces)


def _redact_authority(text: str, before: str, whole: bool) -> str:
    """Redact `text`, which follows `scheme://`; `before` is the character before the scheme."""
    colon = re.match(r"[^\s/?#:]*:", text)
    if colon is None:
        return text
    end = len(text.rstrip("\r\n"))
    if before in ('"', "'"):
        quote_at = text.find(before, text.find("@") + 1)
        end = quote_at if quote_at >= 0 else end
    region = text[colon.end() : end]
    blank = re.search(r"\s", region[region.rfind("@") + 1 :])
    if _PORT.match(region) and not (whole and blank is None):
        region = re.split(r"\s", region, maxsplit=1)[0]
    at = region.rfind("@")
    if at < 0:
        return text
    return colon[0] + MASK + text[colon.end() + at :]


def split_secret(url: str) -> tuple[str, str]:
    """Return the URL to show, and the URL to open with user and password percent-encoded."""
    full = normalise(url)
    return redact(full), full


def normalise(url: str) -> str:
    """Rewrite `url` for FFmpeg: percent-encode a raw `@`, `/`, `#` or blank in the password.

    A `%` followed by two hexadecimal digits counts as encoded. A password that could also be a
    port and a path (`12/34`) must be given encoded.
    """
    if _SCHEME.match(url) is None:
        return url
    scheme, _, rest = url.partition("://")
    at = _end_of_user(rest)
    user, host = (rest[:at], rest[at + 1 :]) if at >= 0 else (None, rest)
    host = _encode_query(_ZONE.sub(r"\1%", host.replace(" ", "%20")))
    if user is None:
        return f"{scheme.lower()}://{host}"
    name, colon, password = user.partition(":")
    return f"{scheme.lower()}://{_encode(name)}{colon}{_encode(password)}@{host}"


def with_password(url: str) -> str:
    """Return `url` with an empty password if it has only a user: FFmpeg ignores a lone user."""
    scheme, _, rest = url.partition("://")
    user, at, _ = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    return f"{scheme}://{user}:{rest[len(user) :]}" if at and ":" not in user else url


def with_host(url: str, host: str) -> str:
    """Return `url` at another host: user, password, port and path stay."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port is not None else ""
    return parts._replace(netloc=f"{user}{at}{host}{port}").geturl()


def _end_of_user(rest: str) -> int:
    """Return the position of the `@` between user and host in `rest` (after `://`), or -1."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    standard = authority.rfind("@")
    if standard < 0 and _HOST.fullmatch(authority):
        return -1
    found = [m.start() for m in re.finditer("@", rest) if _HOST.match(rest, m.start() + 1)]
    if standard < 0:
        return found[-1] if found and ":" in authority else -1
    host = authority[standard + 1 :]
    if "." in host or _CERTAIN_HOST.fullmatch(host):
        return standard
    certain = [at for at in found if _CERTAIN_HOST.match(rest, at + 1)]
    # No path contains a raw blank or `#`: such text is still the password.
    certain += [at for at in found if re.search(r"[\s#]", rest[standard:at])]
    return max(certain, default=standard)


def _encode_query(host: str) -> str:
    """Percent-encode what would end a URL in a sentence, where `redact` stops to mask."""
    before, question, query = host.partition("?")
    return before + question + re.sub(r"""["'<>`]""", lambda m: quote(m[0]), query)


def _encode(part: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", part):
        return quote(part, safe="")
    return quote(unquote(part), safe="")


def guess_live(url: str) -> bool:
    """Return whether the form of `url` suggests a live source: a camera, a webcam, an HTTP stream.

    `streamer.media.liveness` decides by opening it.
    """
    scheme = _scheme_of(url)
    if scheme in LIVE_SCHEMES:
        return True
    if scheme in {"http", "https"}:
        path = re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]
        return _RECORDINGS.fullmatch(Path(path).suffix) is None
    return _DEVICE.fullmatch(url) is not None


def local_source(path: str) -> str:
    """Return the source that names the file at `path`.

    That is the path; if its name is not UTF-8, which neither JSON nor Redis can store, `file:` and
    the path with its bytes percent-encoded.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file:" + quote(os.fsencode(path))
    return path


def path_of(source: str) -> str:
    """Return the path of a local source; see `local_source`."""
    if not source.startswith("file:"):
        return source
    return os.fsdecode(unquote_to_bytes(os.fsencode(source.removeprefix("file:"))))


def is_remote(url: str) -> bool:
    """Return whether `url` is reached over a network: it is neither a file nor a webcam."""
    return "://" in url


def port_of(url: str) -> int:
    """Return the port of `url`, or the default port of its scheme (0 without one)."""
    parts = urlsplit(url)
    return parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


def is_device(url: str) -> bool:
    """Return whether `url` is a webcam such as /dev/video0."""
    return _DEVICE.fullmatch(url) is not None


def parse_source(text: str) -> str:
    """Return the URL for a source that a user wrote: paths absolute, passwords percent-encoded.

    Raises StreamerError: STREAM_URL_FORBIDDEN for a scheme that is not allowed, INVALID_REQUEST
    for an address that is empty, has a control character or has no host.
    """
    text = text.strip()
    if not text:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "The source is empty: give the URL of a camera or the path of a file.",
        )
    if any(ord(character) < 32 for character in text):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "The source has a control character, such as a line break: remove it.",
        )
    scheme = _scheme_of(text)
    if scheme == "file":
        text = path_of(re.sub(r"(?i)^file:(//(localhost)?(?=/))?", "file:", text))
        scheme = ""
    if not scheme:
        return local_source(str(Path(text).expanduser().absolute()))
    if scheme not in SCHEMES:
        raise forbidden_scheme(text)
    url = normalise(text)
    rest = url.partition("://")[2]
    host = _HOST.match(rest, _end_of_user(rest) + 1)
    if host is None or int(host[1] or 0) > 65535:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{redact(text)} names no valid host: write {scheme}://host:port/path.",
        )
    return url


def forbidden_scheme(url: str) -> StreamerError:
    """Return the error for a scheme that is not allowed."""
    return StreamerError(
        ErrorCode.STREAM_URL_FORBIDDEN,
        f"Sources with '{url.partition(':')[0]}:' are not allowed: give rtsp://, rtsps://, "
        "rtmp://, rtmps://, http://, https://, the path of a file, or /dev/video0.",
    )


def _scheme_of(text: str) -> str:
    if match := _SCHEME.match(text):
        return match[0][:-3].lower()
    # FFmpeg also has protocols without slashes (`concat:`, `pipe:`); a file name may have a colon.
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text):
        return "" if Path(text).exists() else match[1].lower()
    return ""
