"""A service with one camera, what its workers would do, and the MQTT bridge that shows it."""

import asyncio
import io
import threading
import time
from datetime import timedelta

import pytest
from PIL import Image

from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.incidents.delivery import Deliveries
from streamer.incidents.store import Incidents
from streamer.mqtt_address import MqttAddress
from streamer.response_format import ChoiceFormat, JsonFormat
from streamer.service import Service
from streamer.timeline.results import Timeline
from workers.recorder.incidents import _publisher
from workers.recorder.worker import Recorder

_file = io.BytesIO()
Image.new("RGB", (320, 240), "green").save(_file, "JPEG")
JPEG = _file.getvalue()

ALERT = Watch(
    id="wch_car",
    prompt="Is a car parked in front of the gate?",
    window=5,
    alert=AlertRule.model_validate({"raise": {"k": 1, "n": 1}, "clear": {"m": 1}}),
)
CAPTION = Watch(id="wch_text", prompt="Describe the scene.")
GATE = Watch(
    id="wch_door",
    prompt="Is the gate open?",
    response_format=ChoiceFormat(choices=["open", "shut"]),
)
COUNT = Watch(
    id="wch_many",
    prompt="Count.",
    response_format=JsonFormat(
        json_schema={
            "type": "object",
            "properties": {
                "people": {"type": "integer", "title": "People"},
                "colour": {"enum": ["red", "blue"]},
                "note": {"type": "string"},
            },
        }
    ),
)


class Yard:
    """A service with one stream, and what its workers would do."""

    def __init__(self, service):
        self.service = service
        self.timeline = Timeline(service.settings.timeline_url)
        incidents = Incidents(self.timeline.database)
        self.recorder = Recorder(
            service.connections.main,
            self.timeline,
            stopping=threading.Event(),
            incidents=incidents,
        )
        self.recorder.join()
        publisher = _publisher(service.connections.main)
        self.deliveries = Deliveries(self.timeline.database, incidents, publisher, {}, None)
        self.stream_id = ""
        self.made, self.newest = 0, utc_now() - timedelta(seconds=30)

    def attach(self, name="gate", watches=(ALERT, CAPTION, GATE, COUNT), live=True):
        spec = StreamSpec(name=name, url="rtsp://camera/1", live=live, watches=list(watches))
        self.stream_id = self.service.registry.create(spec, "rtsp://camera/1").id
        self.become(StreamState.RUNNING)
        return self.stream_id

    def become(self, state, code=None):
        error = ErrorInfo(code=code, message="It is lost.") if code else None
        # a worker would report it again and again
        reported_at = utc_now() + timedelta(hours=1)
        status = StreamStatus(state=state, error=error, reported_at=reported_at)
        self.service.registry.save_status(self.stream_id, status)

    def store_frame(self):
        return self.service.frames.put(
            self.stream_id,
            JPEG,
            Measures(320, 240, change=0.0),
            time=time.time(),
            pts=0.0,
            decode_ms=1.0,
        )

    def answer(self, watch, kind="caption", record=True, **fields):
        self.made += 1
        # windows follow one another, and none is old
        soonest = utc_now() - timedelta(seconds=30)
        now = self.newest = max(self.newest + timedelta(seconds=5), soonest)
        given = {
            "request_id": f"req_{self.made}",
            "kind": kind,
            "stream_id": self.stream_id,
            "stream_name": "gate",
            "watch_id": watch.id,
            "start": now - timedelta(seconds=watch.window),
            "end": now,
            "prompt": watch.prompt,
            "alert": watch.alert,
        }
        self.service.queue.publish(Result(**given | fields), owner_id=watch.id)
        if record:
            self.recorder.step()
            self.deliveries.tell_events()

    def car(self, probability):
        data = {"yes": probability > 0.5, "probability": probability}
        self.answer(ALERT, "alert", data=data, text="yes" if probability > 0.5 else "no")

    def close(self):
        self.timeline.close()


@pytest.fixture
def yard(settings):
    with Service(settings) as service:
        made = Yard(service)
        yield made
        made.close()


@pytest.fixture
def start_bridge(broker, settings):
    """Run bridges; all end with the test."""
    stopping, threads = [], []

    def run(url=broker.url, **changed):
        settings_of_it = settings.model_copy(update={"mqtt_url": url} | changed)
        stop = threading.Event()

        def serve():
            from workers.mqtt.bridge import Bridge

            with Service(settings_of_it) as service:
                asyncio.run(Bridge(service, MqttAddress.of(url), stop, poll=0.2).run())

        thread = threading.Thread(target=serve)
        thread.start()
        stopping.append(stop)
        threads.append(thread)

        def end():
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

        return end

    yield run
    for stop in stopping:
        stop.set()
    for thread in threads:
        thread.join(60)
