"""Look after incidents and deliver their messages, in a thread of the recorder."""

import threading
from collections.abc import Callable

import redis
import structlog

from streamer.clock import Clock
from streamer.errors import StreamerError
from streamer.events import Events
from streamer.frames.store import FrameStore, Retention
from streamer.incidents.alertmanager import Alertmanager
from streamer.incidents.delivery import Channel, Deliveries
from streamer.incidents.keeper import Keeper
from streamer.incidents.messages import Message
from streamer.incidents.notify import Notifier
from streamer.incidents.store import Incidents
from streamer.queues.jobs import Jobs
from streamer.redis_client.connections import Connections
from streamer.redis_client.errors import will_pass
from streamer.redis_client.outage import Outage
from streamer.secret_box import SecretBox
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from streamer.timeline.results import Timeline

_PAUSE = 1.0
"""Seconds between two steps, unless something has happened."""

_MAX_END = 5.0
"""Seconds to wait for a message that is being sent when the recorder ends; it is sent again."""

_log = structlog.get_logger(__name__)


def channels_of(settings: Settings) -> dict[str, Channel]:
    """Return the takers of messages that the settings name. Raises StreamerError."""
    return {
        f"notify-{place}": Notifier(url, place) for place, url in enumerate(settings.notify_urls, 1)
    }


class IncidentThread(threading.Thread):
    """Does what incidents need beside counting windows. It never delays the recorder.

    Args:
        steps: what is done at each step; a step that fails does not keep the others from running.
        stopping: set when the thread is to end.
        outage: what Redis refuses at the moment.

    Attributes:
        wake: set when there is something to deliver.
    """

    def __init__(
        self, steps: "dict[str, Callable[[], None]]", stopping: threading.Event, outage: Outage
    ) -> None:
        super().__init__(name="incidents", daemon=True)
        self._steps = steps
        self._stopping = stopping
        self._outage = outage
        self._others = Outage("incidents")
        self.wake = threading.Event()

    def run(self) -> None:
        """Run all steps again and again until `stopping` is set."""
        while not self._stopping.is_set():
            for name, step in self._steps.items():
                self._try(name, step)
            self.wake.wait(_PAUSE)
            self.wake.clear()

    def end(self) -> None:
        """Wait until the thread, which `stopping` ends, has ended; but not for a slow receiver."""
        self.wake.set()
        self.join(_MAX_END)

    def _try(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except StreamerError as error:
            self._others.failed(name, error)
        except redis.exceptions.RedisError as error:
            if not will_pass(error):
                _log.error("redis_refuses", step=name, reason=str(error))
            self._outage.failed(name, error)
        except Exception:
            _log.exception("incidents_failed", step=name)  # the next step may work
        else:
            self._outage.worked(name)
            self._others.worked(name)


def incident_thread(
    settings: Settings,
    connections: Connections,
    timeline: Timeline,
    incidents: Incidents,
    channels: dict[str, Channel],
    stopping: threading.Event,
    clock: Clock,
) -> IncidentThread:
    """Return a thread that looks after the incidents of an installation."""
    main = connections.main
    alertmanager = None
    if settings.alertmanager_url:
        alertmanager = Alertmanager(settings.alertmanager_url, settings.public_url)
    keeper = Keeper(
        incidents,
        StreamRegistry(main, SecretBox(settings.secret_key)),
        Jobs(main, settings),
        FrameStore(connections.frames, Retention.of(settings), clock=clock),
        settings,
        clock,
    )
    deliveries = Deliveries(timeline.database, incidents, _publisher(main), channels, alertmanager)
    steps = {
        "events": deliveries.tell_events,
        "alertmanager": deliveries.tell_alertmanager,
        "messages": deliveries.tell_people,
        "incidents": keeper.step,
    }
    return IncidentThread(steps, stopping, connections.outage)


def _publisher(client: redis.Redis) -> Callable[[Message], None]:
    events = Events(client)

    def publish(message: Message) -> None:
        incident = message.incident
        events.publish(
            message.type,
            incident.model_dump(mode="json"),
            stream_id=incident.stream_id,
            stream_name=incident.stream_name,
        )

    return publish
