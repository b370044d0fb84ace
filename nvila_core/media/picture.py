"""Open pictures as people have them, and bring them to upright, opaque RGB of 8 bits a channel.

The original ignores EXIF orientation and drops alpha; docs/model.md lists both differences.
"""

import math
import struct
import warnings
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    JpegImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from nvila_core.errors import MediaError, MediaWarning, first_line
from nvila_core.file_kind import HEIC, JPEG, MAX_PIXELS, describe, file_kind, read_head
from nvila_core.media.levels import to_levels

REDUCTIONS = (1, 2, 4, 8)
"""Factors by which a JPEG can be reduced while it is decoded."""

DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    struct.error,
    cv2.error,
    Image.DecompressionBombError,
)
"""What Pillow and OpenCV raise for a damaged file."""


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture file as upright RGB on white, whatever its name says it is.

    Args:
        path: JPEG (also MPO, as phones write it), PNG, WebP, TIFF or what else Pillow reads.
        max_pixels: a JPEG with more is reduced while it is decoded, and a MediaWarning says so.

    Raises:
        MediaError: the file does not exist, is not a picture, is damaged, or has too many pixels.
    """
    try:
        with open(path, "rb") as file:
            return _decode(file, path, max_pixels)
    except FileNotFoundError:
        raise MediaError(f"There is no image at {path}; check the path.") from None
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(f"There is no memory left to decode the image {path}.") from None
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture that is in memory, as :func:`open_image` reads one from a file.

    Args:
        data: JPEG, PNG, WebP or what else Pillow reads.
        name: what errors and warnings call it.
        max_pixels: a JPEG with more is reduced while it is decoded, and a MediaWarning says so.

    Raises:
        MediaError: it is not a picture, is damaged, or has too many pixels.
    """
    try:
        return _decode(BytesIO(data), name, max_pixels)
    except MediaError:
        raise
    except MemoryError:
        raise MediaError(f"There is no memory left to decode {name}.") from None
    except UNREADABLE as error:
        kind = file_kind(data[:1024])
        what = f"is {kind.name}" if kind is not None else "is not a picture that can be read"
        damaged = kind is not None and kind.picture
        raise MediaError(
            f"{name} {what}{', but damaged' if damaged else ''}: send a JPEG, PNG or WebP."
        ) from error


def unreadable(path: str | Path, error: Exception) -> MediaError:
    """Return the error for a file that cannot be read as a picture, which names what it is."""
    kind = file_kind(read_head(path))
    if kind is None or not kind.picture or kind is HEIC:
        what = describe(path)
        if what is not None:
            return MediaError(f"The file {path} {what}.")
        return MediaError(
            f"The image {path} cannot be read ({_without_path(error)}); give a JPEG, PNG or WebP."
        )
    return MediaError(
        f"The image {path} is damaged: it begins as {kind.name}, but cannot be read "
        f"({_without_path(error)}); copy or download it again."
    )


def open_lazily(file: BinaryIO, path: str | Path) -> Image.Image:
    """Open a picture without decoding it and without Pillow's own limit of pixels."""
    kind = file_kind(file.read(1024))
    file.seek(0)
    if kind is HEIC:
        _register_heif()
    if kind is JPEG:  # the first picture of an MPO; the others are previews or the other eye's
        return JpegImagePlugin.JpegImageFile(file, str(path))
    Image.init()
    name = kind.name.split()[1] if kind is not None else ""
    name = {"WebP": "WEBP"}.get(name, name)
    if name in ("PNG", "WEBP", "TIFF", "GIF", "BMP"):
        image: Image.Image = Image.OPEN[name][0](file, str(path))
        return image
    return Image.open(file)


def is_animated(path: str | Path) -> bool:
    """Return whether a file is a picture of several frames that are shown one after another."""
    try:
        with open(path, "rb") as file:
            image = open_lazily(file, path)
            frames = getattr(image, "n_frames", 1)
    except UNREADABLE:
        return False
    return frames > 1 and image.format not in ("TIFF", "MPO", "JPEG", "ICO", "PSD")


def check_pixels(path: object, width: int, height: int, max_pixels: int) -> None:
    """Raise MediaError where a picture of `width` x `height` has more than `max_pixels`."""
    if width * height > max_pixels:
        raise MediaError(
            f"{path} has {width} x {height} pixels, more than the {max_pixels / 1e6:g} million "
            "that are allowed; give a smaller one or raise the limit."
        )


def as_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """Convert a PIL image of any mode to RGB: turned upright by its EXIF, laid on white.

    Warns with MediaWarning where values of more than 8 bits are scaled by their range.

    Raises:
        OSError, ValueError: it cannot be decoded.
    """
    image = _upright(image)
    if image.mode in DEEP_MODES:
        levels, scaled = to_levels(np.asarray(image))
        warn_scaled(name, scaled)
        return Image.fromarray(levels).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def warn_scaled(name: str, scaled: str | None) -> None:
    """Warn that values from `scaled` became black to white; None: nothing was scaled."""
    if scaled is not None:
        warnings.warn(
            f"{name} has more than 8 bits a pixel and fills little of them: its values from "
            f"{scaled} are shown as black to white.",
            MediaWarning,
            stacklevel=4,
        )


def _decode(file: BinaryIO, path: str | Path, max_pixels: int) -> Image.Image:
    try:
        image = open_lazily(file, path)
    except (*UNREADABLE, MemoryError):
        deep = _deep_picture(file, path, max_pixels)
        if deep is None:
            raise
        return deep
    width, height = image.size
    if isinstance(image, JpegImagePlugin.JpegImageFile) and width * height > max_pixels:
        _reduce(image, path, max_pixels)
    check_pixels(f"The image {path}", *image.size, max_pixels)
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0].args) if tiles else ""
    if image.mode in ("RGB", "RGBA") and ";16" in raw:
        deep = _deep_picture(file, path, max_pixels)
        if deep is not None:
            return deep
        file.seek(0)
        image = open_lazily(file, path)
    image.load()
    return as_rgb(image, f"The image {path}")


def _reduce(image: JpegImagePlugin.JpegImageFile, path: str | Path, max_pixels: int) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth, if that makes it small enough."""
    width, height = image.size
    if image.info.get("progressive"):
        return  # its coefficients are all held at full size, whatever the scale
    for factor in REDUCTIONS:
        if math.ceil(width / factor) * math.ceil(height / factor) <= max_pixels:
            image.draft(image.mode, (width // factor, height // factor))
            warnings.warn(
                f"The image {path} has {width} x {height} pixels and is used at "
                f"{image.width} x {image.height}.",
                MediaWarning,
                stacklevel=4,
            )
            return


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error):
        return image  # its EXIF data is damaged


def _deep_picture(file: BinaryIO, path: str | Path, max_pixels: int) -> Image.Image | None:
    """Decode colours of 16 bits or floats, which Pillow cuts to 8 bits or refuses; None if not so.

    Raises:
        MediaError: it has too many pixels.
    """
    file.seek(0)
    head = file.read(8)
    if head[:4] in (b"II*\0", b"MM\0*"):
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            check_pixels(f"The image {path}", int(tags[256]), int(tags[257]), max_pixels)
        except (*UNREADABLE, AttributeError):
            return None
    elif not head.startswith(b"\x89PNG"):
        return None
    file.seek(0)
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype == np.uint8:
        return None
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    colours = pixels if channels < 3 else pixels[..., 2::-1]
    levels, scaled = to_levels(np.ascontiguousarray(colours if channels != 2 else pixels[..., 0]))
    warn_scaled(f"The image {path}", scaled)
    picture = Image.fromarray(levels).convert("RGB")
    if channels == 4:
        alpha, _ = to_levels(pixels[..., 3])
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=Image.fromarray(alpha))
        picture = white
    return picture


def _register_heif() -> None:
    """Let Pillow read HEIC where the optional package pillow-heif is installed."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return


def _without_path(error: Exception) -> str:
    """Return the first line of an error's message, without the file object that Pillow names."""
    if isinstance(error, UnidentifiedImageError):
        return "its format is not known"
    return first_line(error)
