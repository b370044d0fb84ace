"""A service for the web page: the real API, recorder and stores; a test plays camera and model."""

import threading
import time
from contextlib import ExitStack
from typing import Any, Self

import cv2

from nvila_core.demo.video import StreetVideo
from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameRef, FrameResolution
from streamer.domain.ids import new_id
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamCounters, StreamState, StreamStatus
from streamer.domain.timestamp import to_datetime, utc_now
from streamer.domain.watch import Watch
from streamer.frames.store import FrameStore, Retention
from streamer.incidents.store import Incidents
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from tests.support.api_server import ApiServer
from workers.recorder.incidents import incident_thread
from workers.recorder.worker import Recorder

SIZE = (640, 360)


class Camera:
    """A stream whose pictures, captions and states come from a test."""

    def __init__(self, client: Service, stream: Stream, seed: int) -> None:
        self.client, self.stream = client, stream
        self.film = StreetVideo(seed, 600.0, size=SIZE)
        self.frames: list[FrameRef] = []
        self._began = time.time()
        self._counters = StreamCounters(
            packets=18_000, bytes=92_000_000, decoded=18_000, fps=25.0, measured_fps=24.97,
            bit_rate=2_350_000.0, width=1920, height=1080, codec="h264",
        )  # fmt: skip

    def show(self, *times: float) -> None:
        """Store the pictures of some moments (seconds since the Unix epoch; now without any)."""
        for moment in times or (time.time(),):
            picture = self.film.frame_at(moment % 600)
            jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
            measures = Measures(*SIZE, change=0.05)
            self.frames.append(
                self.client.frames.put(
                    self.stream.id,
                    jpeg.tobytes(),
                    measures,
                    time=moment,
                    pts=moment - self._began,
                )
            )
        self.report(StreamState.RUNNING)

    def report(self, state: StreamState, error: ErrorInfo | None = None) -> None:
        """Report a state, as the ingest worker does."""
        self._counters.sampled = len(self.frames)
        newest = to_datetime(self.frames[-1].time) if self.frames else None
        status = StreamStatus(
            state=state,
            error=error,
            last_frame_at=newest,
            reported_at=utc_now(),
            worker="ingest-1",
            counters=self._counters,
        )
        assert self.client.registry.save_status(self.stream.id, status)

    def watch(self, *, alert: bool = False) -> Watch:
        """The first watch that is an alert, or is not."""
        return next(each for each in self.stream.watches if (each.alert is not None) == alert)

    def caption(self, text: str, frames: int = 4, **fields: Any) -> Result:
        """Publish the caption of the newest frames, as the model worker does."""
        return self._publish("caption", self.watch(), frames, text=text, **fields)

    def answer_alert(self, probability: float) -> Result:
        """Publish the answer to a window of the alert: a new picture."""
        self.show()
        watch = self.watch(alert=True)
        yes = probability > 0.5
        data = {"yes": yes, "probability": probability}
        return self._publish(
            "alert", watch, 1, text="yes" if yes else "no", data=data, alert=watch.alert
        )

    def answer(self, query_id: str, text: str, frames: int = 4, **fields: Any) -> Result:
        """Publish the answer to a query."""
        return self._publish("answer", None, frames, text=text, request_id=query_id, **fields)

    def _publish(self, kind: str, watch: Watch | None, frames: int, **fields: Any) -> Result:
        seen = self.frames[-frames:]
        times = [to_datetime(frame.time) for frame in seen]
        plan = [
            FrameResolution(
                grid=(2, 2) if number == len(seen) - 1 else (1, 1),
                reason="detail that one tile would lose"
                if number == len(seen) - 1
                else "shown in more tiles by another frame",
            )
            for number in range(len(seen))
        ]
        tiles = sum(5 if frame.grid == (2, 2) else 1 for frame in plan)
        values: dict[str, Any] = {
            "request_id": new_id("req"),
            "kind": kind,
            "stream_id": self.stream.id,
            "stream_name": self.stream.name,
            "watch_id": watch.id if watch is not None else None,
            "prompt": watch.prompt if watch is not None else "What happens?",
            "start": times[0],
            "end": times[-1],
            "frames": len(seen),
            "frames_from": times[0],
            "frames_to": times[-1],
            "frame_times": times,
            "newest_frame_age": 0.4,
            "plan": plan,
            "tiles": tiles,
            "vision_tokens": 121 * tiles,
            "prompt_tokens": 121 * tiles + 42,
            "cached_tokens": 121 * (len(seen) - 1),
            "completion_tokens": 18,
            "queue_ms": 12.0,
            "encode_ms": 210.0,
            "generate_ms": 340.0,
            "total_ms": 812.0,
            "model": "demo",
        }
        result = Result.model_validate(values | fields)
        owner = watch.id if watch is not None else None
        assert self.client.queue.publish(result, owner_id=owner)
        return result


class PageService:
    """The API and a recorder over an installation, and cameras that a test plays."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self.settings = settings
        self.api = ApiServer(settings, port)
        self.client = self.api.client
        self.url = self.api.url
        self._stopping = threading.Event()
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        connections, settings = self.client.connections, self.settings
        clock = connections.clock
        timeline = Timeline(settings.timeline_url, upgrade=True)
        self._cleanup.callback(timeline.close)
        incidents = Incidents(timeline.database, [])
        keeper = incident_thread(
            settings, connections, timeline, incidents, {}, self._stopping, clock
        )
        recorder = Recorder(
            connections.main,
            timeline,
            stopping=self._stopping,
            clock=clock,
            incidents=incidents,
            frames=FrameStore(connections.frames, Retention.of(settings), clock=clock),
            on_incident=keeper.wake.set,
        )
        thread = threading.Thread(target=recorder.run, name="recorder")
        thread.start()
        keeper.start()
        self._cleanup.callback(thread.join)
        self._cleanup.callback(keeper.end)
        self._cleanup.callback(self._stopping.set)
        self.api.__enter__()
        self._cleanup.callback(self.api.__exit__)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def camera(self, name: str, seed: int = 7, *, alert: str | None = None) -> Camera:
        """Attach a camera; with `alert`, it has an alert with this question."""
        watches = [Watch(prompt="Describe the scene.", window=4)]
        if alert is not None:
            rule = AlertRule(severity="warning", title=alert.rstrip("?"))
            watches.append(Watch(prompt=alert, window=4, alert=rule))
        stream = self.client.attach(
            f"rtsp://viewer:secret@192.0.2.{seed % 250}/{name}",
            name,
            watches=watches,
            sampling=Sampling(fps=1.0),
            probe=False,
        )
        return Camera(self.client, stream, seed)
