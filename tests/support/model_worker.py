"""A model worker in a thread of the test process, which has PyTorch already."""

import threading
import time
from typing import Self

from streamer.service import Service
from streamer.settings import Settings

START = 120.0
"""Seconds that loading a small model may take on a busy machine."""


class ModelWorker:
    """Answers the clips and chats of an installation; one at a time in a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-worker", daemon=True)
        self._failure: BaseException | None = None

    def _run(self) -> None:
        from workers.gpu.worker import serve_clips

        try:
            serve_clips(self._settings, self._stopping)
        except BaseException as error:
            self._failure = error
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START
        with Service(self._settings) as client:
            while not client.jobs.models():
                assert self._thread.is_alive(), self._failure
                assert time.monotonic() < deadline, "the worker did not start"
                time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        from workers import context

        self._stopping.set()
        self._thread.join()
        context.install(None)
