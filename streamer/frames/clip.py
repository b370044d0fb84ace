"""Encode stored frames as a video that every browser plays."""

import io
from collections.abc import Sequence
from fractions import Fraction

from streamer.domain.frame import FrameRef

MAX_CLIP_WIDTH = 1280
"""Width to which larger frames are scaled."""

LAST_SHOWN = 1.0
"""Seconds for which the last frame of a clip is shown."""

_TICKS = 1000


def encode_clip(frames: Sequence[tuple[FrameRef, bytes]]) -> bytes:
    """Return an MP4 file (H.264) of at least one frame and its JPEG, oldest first.

    Each is shown until the next one, as long as it was between them. Raises ValueError for a JPEG
    that cannot be read.
    """
    import av

    from streamer.frames.jpeg import from_jpeg

    first, last = frames[0][0], frames[-1]
    width, height = first.width, first.height
    scale = min(1.0, MAX_CLIP_WIDTH / width)
    size = _even(width * scale), _even(height * scale)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_TICKS)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "bf": "0"}
        shown = -1
        ends = last[0].model_copy(update={"time": last[0].time + LAST_SHOWN})
        for ref, jpeg in [*frames, (ends, last[1])]:
            picture = av.VideoFrame.from_ndarray(from_jpeg(jpeg, ref.width, ref.height, size))
            picture = picture.reformat(*size, format="yuv420p")
            shown = max(shown + 1, round((ref.time - first.time) * _TICKS))
            picture.pts, picture.time_base = shown, Fraction(1, _TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
