"""Requests for the tests of the model worker."""

import time

import cv2
import numpy as np

from nvila_core.resolution.policy import Measures
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.timestamp import utc_now
from streamer.frames.store import FrameStore, Retention
from streamer.queues.jobs import Jobs
from streamer.queues.results import Results


class Service:
    """The service as a user's program sees it."""

    def __init__(self, client, settings, start, checkpoint):
        self.jobs = Jobs(client, settings)
        self.results = Results(client, settings)
        self.frames = FrameStore(client, Retention(age=300, max_frames=500))
        self._start = start
        self._checkpoint = checkpoint

    def worker(self, *arguments, program="gpu", **env):
        return self._start(program, *arguments, **{"STREAMER_MODEL": str(self._checkpoint)} | env)

    def request(self, kind=RequestKind.QUERY, **kwargs):
        now = time.time()
        ok, jpeg = cv2.imencode(".jpg", np.full((120, 160, 3), 128, np.uint8))
        assert ok
        refs = [
            self.frames.put(
                "str_1",
                jpeg.tobytes(),
                Measures(160, 120, change=0.0),
                time=now + i,
                pts=i,
                decode_ms=1,
            )
            for i in range(2)
        ]
        values = {
            "kind": kind,
            "stream_id": "str_1",
            "stream_name": "yard",
            "watch_id": "wch_1" if kind is RequestKind.WATCH else None,
            "start": utc_now(),
            "end": utc_now(),
            "prompt": "What is there?",
            "frames": refs,
            "max_tokens": 4,
        }
        return ClipRequest(**values | kwargs)

    def submit(self, count=1, **kwargs):
        asked = [self.request(**kwargs) for _ in range(count)]
        for request in asked:
            self.jobs.submit(request)
        return asked
