"""Clip requests about stored pictures, answered as a model worker answers them."""

import time
from datetime import timedelta

import cv2
import numpy as np

from nvila_core.resolution.policy import Measures
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.timestamp import utc_now
from workers.gpu.clip_job import answer_clip


def picture(seed=0, width=320, height=240):
    """Return RGB uint8 [height, width, 3] that JPEG hardly changes."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg_of(image):
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def frames(own, count=4, **kwargs):
    now = time.time()
    return [
        own.frames.put(
            "str_1",
            jpeg_of(picture(i, **kwargs)),
            Measures(320, 240, change=0.0),
            time=now - count + i,
            pts=float(i),
            decode_ms=1.5,
        )
        for i in range(count)
    ]


def request(own, kind=RequestKind.WATCH, refs=None, **kwargs):
    now = utc_now()
    values = {
        "kind": kind,
        "stream_id": "str_1",
        "stream_name": "yard",
        "watch_id": "wch_1" if kind is RequestKind.WATCH else None,
        "start": now - timedelta(seconds=4),
        "end": now,
        "prompt": "What is there?",
        "frames": frames(own) if refs is None else refs,
        "max_tokens": 6,
    }
    return ClipRequest(**values | kwargs)


def run(own, asked):
    """Submit a request, run its job as a worker would, and return the result."""
    own.jobs.submit(asked)
    answer_clip(asked.model_dump(mode="json"))
    return own.results.get(asked.id)
