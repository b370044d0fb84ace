"""Tell what a file is by its first bytes, whatever its name says."""

from dataclasses import dataclass
from pathlib import Path

MAX_PIXELS = 100_000_000
"""Pixels of a picture or a recorded frame at most, by default."""

HEAD_BYTES = 1024
"""First bytes of a file that are enough to tell what it is."""

HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
PRINTABLE = frozenset({*range(32, 127), *b"\t\n\r\f", *range(128, 256)})


@dataclass(frozen=True)
class FileKind:
    """What a file is, and what to do where a picture, a video or weights were expected.

    Attributes:
        name: the end of a sentence that begins with "The file is ...".
        remedy: an instruction.
        picture: whether it is a still or animated picture, which Pillow may read.
    """

    name: str
    remedy: str
    picture: bool = False


EMPTY = FileKind("empty", "give the complete file")
GIT_LFS = FileKind("a Git LFS pointer, not the file itself", "run `git lfs pull` where it is from")
HTML = FileKind(
    "an HTML page, perhaps an error or a login page saved by a download",
    "download the file itself",
)
SVG = FileKind("an SVG drawing", "export it as PNG")
JSON = FileKind("JSON text", "give the file itself")
TEXT = FileKind("text", "give the file itself")
HEIC = FileKind(
    "a HEIC picture", "install pillow-heif (pip install pillow-heif), or export it as JPEG", True
)
JPEG = FileKind("a JPEG picture", "give a video", True)
WEBP = FileKind("a WebP picture", "convert it to MP4 to use it as a video", True)

SIGNATURES = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", FileKind("a PNG picture", "give a video", True)),
    (b"GIF8", FileKind("a GIF picture", "give a video", True)),
    (b"BM", FileKind("a BMP picture", "give a video", True)),
    (b"II*\0", FileKind("a TIFF picture", "give a video", True)),
    (b"MM\0*", FileKind("a TIFF picture", "give a video", True)),
    (b"\xff\x0a", FileKind("a JPEG XL picture", "export it as JPEG or PNG")),
    (b"\0\0\0\x0cJXL ", FileKind("a JPEG XL picture", "export it as JPEG or PNG")),
    (b"8BPS", FileKind("a Photoshop document", "export it as PNG", True)),
    (b"%PDF", FileKind("a PDF document", "export its pages as pictures")),
    (b"PK\x03\x04", FileKind("a ZIP archive", "unpack it")),
    (b"\x1f\x8b", FileKind("a gzip archive", "unpack it")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", "unpack it")),
    (b"Rar!", FileKind("a RAR archive", "unpack it")),
    (b"\xfd7zXZ", FileKind("an xz archive", "unpack it")),
    (b"\x28\xb5\x2f\xfd", FileKind("a Zstandard archive", "unpack it")),
)


def read_head(path: str | Path) -> bytes:
    """Return the first HEAD_BYTES bytes of a file, b"" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def file_kind(head: bytes) -> FileKind | None:
    """Return what a file is that begins with `head`; None for videos and for what is not known."""
    for signature, kind in SIGNATURES:
        if head.startswith(signature) and (signature != b"BM" or _is_bmp(head)):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        return HEIC if _is_heic(head) else None
    return _kind_of_text(head)


def describe(path: str | Path) -> str | None:
    """Return "is a ...: do ..." for a file of a kind that is known, else None."""
    try:
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            return f"is {EMPTY.name}: {EMPTY.remedy}"
    except (OSError, ValueError):
        return None
    kind = file_kind(read_head(path))
    return None if kind is None else f"is {kind.name}: {kind.remedy}"


def _is_bmp(head: bytes) -> bool:
    return head[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")


def _is_heic(head: bytes) -> bool:
    box = head[8 : max(8, min(len(head), int.from_bytes(head[:4], "big")))]
    brands = {box[i : i + 4] for i in range(0, len(box), 4) if i != 4}
    return bool(brands & HEIC_BRANDS) and box[:4] in HEIC_BRANDS and not brands & {b"avif", b"avis"}


def _kind_of_text(head: bytes) -> FileKind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:256].lower()
    if text.startswith((b"#EXTM3U", b"YUV4MPEG2")):
        return None  # FFmpeg reads them
    if text.startswith(b"version https://git-lfs"):
        return GIT_LFS
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")):
        return HTML
    if lower.startswith(b"<svg") or (lower.startswith(b"<?xml") and b"<svg" in text.lower()):
        return SVG
    if lower.startswith(b"<?xml") and b"<html" in text.lower():
        return HTML
    if not text or not PRINTABLE.issuperset(text):
        return None
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(text) - 4:  # else the head ends within a character
            return None
    return JSON if text.startswith((b"{", b"[")) else TEXT
