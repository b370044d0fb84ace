"""Send events to webhooks, in threads of the recorder.

The relay moves events from Redis into the outbox, a table of the database. What is due there is
claimed and sent by RQ jobs, one for each attempt. Neither the recorder nor another receiver waits
for one that does not answer.
"""

import contextlib
import threading
import time

import redis
import structlog

from streamer.clock import Clock
from streamer.errors import StreamerError
from streamer.events import Events, event_order
from streamer.health.worker_states import WorkerStates
from streamer.queues.jobs import WEBHOOK_JOB, WEBHOOKS, Jobs
from streamer.redis_client.connections import Connections
from streamer.redis_client.errors import will_pass
from streamer.redis_client.memory_reserve import in_reserve
from streamer.redis_client.outage import Outage
from streamer.settings import Settings
from streamer.timeline.database import Database
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.message import MAX_ATTEMPT_SECONDS
from streamer.webhooks.outbox import Fact
from streamer.webhooks.store import MAX_WEBHOOKS, Webhooks
from workers.rq.thread_worker import ThreadWorker

SLOTS = MAX_WEBHOOKS + 14
"""Attempts at the same time: more than webhooks that fail, which get one each."""

_BLOCK = 1.0
"""Seconds to wait for an event, and between two looks at what is due."""

_TRIM_INTERVAL = 600.0

_INCIDENTS = "incident."
"""Events that are written to the outbox with the incident."""

_log = structlog.get_logger(__name__)


class WebhookSender:
    """Sends events to webhooks; any number of recorders may share the work.

    Args:
        client: the Redis server of events and jobs.
        webhooks: the webhooks and their outbox.
        addresses: where webhooks may be sent.
        stopping: set when it is to end.
        outage: what Redis refuses at the moment.
        database_outage: what the database refuses at the moment.
        time_limit: seconds that an attempt may take.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        webhooks: Webhooks,
        addresses: WebhookAddresses,
        *,
        stopping: threading.Event,
        outage: Outage | None = None,
        database_outage: Outage | None = None,
        clock: Clock | None = None,
        time_limit: float = MAX_ATTEMPT_SECONDS,
    ) -> None:
        self._webhooks = webhooks
        self._addresses = addresses
        self._stopping = stopping
        self._time_limit = time_limit
        self._outage = outage or Outage(client=client)
        self._database_outage = database_outage or Outage("timeline")
        self._events = Events(client)
        self._workers = WorkerStates(client)
        self._jobs = Jobs(in_reserve(client), settings)
        self._trimmed_at = float("-inf")
        self._prepared = False
        self._worker = ThreadWorker(
            [WEBHOOKS],
            client,
            slots=SLOTS,
            functions={WEBHOOK_JOB: self.deliver},
            stopping=stopping,
            lease=settings.lease,
            # Whatever became of the job: the outbox knows what is still to be sent.
            on_failed=lambda job, _code, message: _log.warning(
                "webhook_attempt_lost", job=job.id, reason=message
            ),
            outage=self._outage,
            clock=clock,
        )
        self._threads = [
            threading.Thread(target=self._worker.work, name="webhooks", daemon=True),
            threading.Thread(target=self._run, name="webhook-relay", daemon=True),
        ]

    def start(self) -> None:
        """Begin, in threads that `stopping` ends."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the threads that began have ended, `timeout` seconds at most for each."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout)

    def _run(self) -> None:
        pauses = self._outage.pauses()
        while not self._stopping.is_set():
            try:
                if not self.relay(_BLOCK):
                    self._stopping.wait(_BLOCK)  # nothing is to be relayed
                self.dispatch()
            except StreamerError as error:
                self._database_outage.failed("webhooks", error)
            except redis.exceptions.RedisError as error:
                if not will_pass(error):
                    _log.error("redis_refuses", reason=str(error))
                self._outage.failed("webhooks", error)
            else:
                self._outage.worked("webhooks")
                self._database_outage.worked("webhooks")
                pauses = self._outage.pauses()
                continue
            self._stopping.wait(next(pauses))

    def relay(self, block: float | None = None) -> bool:
        """Move events to the outbox; wait up to `block` seconds for one.

        Return False, without waiting, if there is no webhook. Raises StreamerError, RedisError.
        """
        if not self._webhooks.has_any():
            return False
        self._workers.look()
        position = self._webhooks.position()
        after = position if position is not None else self._events.position()
        if not self._prepared:
            # here: it imports an HTTP client, which a recorder without webhooks does not need
            from streamer.webhooks.sender import load_certificates

            load_certificates()
            self._prepared = True
        if position is None:
            self._webhooks.relay(None, [], after)
            return True
        if not self._events.kept_since(after):
            _log.warning("webhook_events_lost", after=after)
        events = self._events.read(after, block)
        if not events:
            return True
        if any(event.lost for event in events):
            _log.warning("webhook_events_lost", after=after)
        facts = [
            Fact(e.id, e.type, e.time, e.stream_id, e.stream_name, e.data)
            for e in events
            if not e.lost and not e.type.startswith(_INCIDENTS)
        ]
        self._webhooks.relay(position, facts, max((e.id for e in events), key=event_order))
        return True

    def dispatch(self) -> int:
        """Queue an attempt for what is due; return for how many. Raises StreamerError, RedisError.

        An attempt that cannot be queued is made when its claim has ended.
        """
        due = self._webhooks.claim()
        self._jobs.deliver(due)
        if time.monotonic() - self._trimmed_at >= _TRIM_INTERVAL:
            self._trimmed_at = time.monotonic()
            self._webhooks.trim()
        return len(due)

    def deliver(self, delivery_id: str) -> None:
        """Make one attempt: the function of a job."""
        try:
            message = self._webhooks.outgoing(delivery_id)
        except StreamerError as error:  # the claim ends, and another attempt is made
            _log.error("webhook_not_sent", delivery=delivery_id, reason=error.message)
            return
        if message is None:
            return
        from streamer.webhooks.sender import send

        outcome = send(message, self._addresses, time_limit=self._time_limit)
        if outcome.error is not None:
            _log.info("webhook_not_taken", delivery=delivery_id, reason=outcome.error)
        # Without a note the message is sent again, with the same id.
        with contextlib.suppress(StreamerError):
            self._webhooks.note(delivery_id, outcome)
        with contextlib.suppress(StreamerError, redis.exceptions.RedisError):
            self.dispatch()  # there may be more for this webhook


def webhook_sender_of(
    settings: Settings,
    connections: Connections,
    database: Database,
    database_outage: Outage,
    stopping: threading.Event,
) -> WebhookSender:
    """Return the sender of webhooks of a recorder."""
    from streamer.secret_box import SecretBox

    addresses = WebhookAddresses.of(settings)
    webhooks = Webhooks(database, addresses, SecretBox(settings.secret_key))
    return WebhookSender(
        connections.main,
        settings,
        webhooks,
        addresses,
        stopping=stopping,
        outage=connections.outage,
        database_outage=database_outage,
        clock=connections.clock,
    )
