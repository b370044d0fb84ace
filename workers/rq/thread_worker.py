"""Run many RQ jobs at once, in threads of one process that never forks.

A process that holds a model cannot fork (CUDA does not survive it, OpenMP deadlocks), and one that
holds thirty camera streams should not have to. RQ keeps jobs, retries and registries; this class
replaces how jobs are taken and run, for three properties that RQ's own workers do not have:

* at every moment a job is in the queue or in the started registry, so that a worker killed at any
  instant loses none;
* a killed worker's jobs are taken over after `lease` seconds, not minutes;
* only functions in a table are run: a job's name comes from a Redis that others can write to.
"""

import contextlib
import math
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import redis
import structlog
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from streamer.domain.timestamp import to_datetime
from streamer.errors import ErrorCode
from streamer.logging_setup import log_about
from streamer.media.urls import redact
from streamer.queues.results import Ending
from streamer.redis_client.errors import will_pass
from streamer.redis_client.memory_reserve import in_reserve
from streamer.redis_client.outage import Outage
from workers.context import Abandon, BrokeDown, GiveBack, enter_slot
from workers.rq.executions import DELETED, UNREADABLE_RECORD, Executions, Taken
from workers.rq.heartbeat import Heartbeat
from workers.rq.job import NoDeathPenalty, PlainJob, Slot
from workers.rq.maintenance import Maintenance, OnFailed
from workers.rq.slot_threads import SlotThreads

_T = TypeVar("_T")

_RESTING_PER_SLOT = 8
"""Jobs that a worker may hold without a slot, for each of its slots."""

_DEFER = 0.2
"""Seconds that other workers get to take the next job."""

_TURNS = (0, 1, 0, 1, 0, 1, 0, 2)
"""Which priority is asked first when a job is taken, and at the next, and so on; 0 is the highest.
When all have work, each gets its share: none starves, and what waits for the highest waits for one
other job at most. The turn of one without work passes to the highest that has some."""

# It deletes first: then a full server lets it write.
_PUSH_NUDGE = """
redis.call('DEL', KEYS[1])
redis.call('LPUSH', KEYS[1], 1)
redis.call('EXPIRE', KEYS[1], 5)
"""

_log = structlog.get_logger(__name__)

_BROKE_DOWN = (
    "The model worker broke down each time it worked on this request, the last time on it alone: "
    "see the worker's log, and ask about other frames."
)


@dataclass(frozen=True)
class _Place:
    """The place of a slot's job in its worker; see `workers.context.Place`."""

    worker: "ThreadWorker"
    slot: Slot

    def rest(self) -> None:
        self.worker.rest(self.slot)

    def resume(self) -> bool:
        return self.worker.resume(self.slot)

    def allow_moves(self) -> None:
        self.slot.movable = True

    def ending(self) -> Ending:
        return self.worker.ending(self.slot)

    def note_end(self, owned: bool) -> None:
        self.worker.note_end(self.slot, owned)


@dataclass(frozen=True)
class WorkerLoad:
    """What a worker has to do.

    Attributes:
        slots: how many jobs may run at once; none when the worker is ending.
        busy: jobs that have a slot.
        jobs: all jobs, those that rest too.
        wanting: jobs that rest only because no slot is free.
        movable: jobs that another worker can continue.
        leaving: of these, jobs that were asked to end and have not yet.
    """

    slots: int
    busy: int
    jobs: int
    wanting: int
    movable: int
    leaving: int


class ThreadWorker(BaseWorker):
    """Runs several jobs at once, each in a thread.

    Queues of a lower priority get a share of the takes, not only what those of a higher one leave.
    They never fill all slots: the last one is kept for the highest priority. Queues may come in
    tiers of equal priority, which take turns. A job that waits for something can rest meanwhile,
    without a slot. What a job's function returns is not stored.

    Args:
        queues: names of the queues, by priority.
        tier: how many queues of each priority there are.
        kind: name of a queue under which RQ also lists the worker, whether or not it serves it.
        connection: the Redis server of the queues.
        slots: how many jobs may run at once.
        functions: the function that runs each job name. A name is a contract with the queue, not
            an import path; jobs of other names fail.
        stopping: set on SIGTERM or SIGINT, or by the program; no job is taken from then on.
        lease: seconds after which the jobs of a silent worker are taken over.
        on_failed: called with each job that has failed for good.
        on_missing: called with the id of a job that is queued, but has no record any more.
        sweep: called about three times in each lease.
        defer: called before a job is taken; returns whether other workers should take it.
        grace: seconds that jobs have to finish, once `stopping` is set, before they are cancelled
            and return to the queue.
        resting: jobs that it may hold without a slot; default: eight for each slot.
        poll: seconds until a stop is noticed, or a job whose wake-up was lost.
        measure: returns what to report with each heartbeat, beside the numbers of the process.
        outage: what Redis refuses at the moment.
        clock: the time.
        channels: further pub/sub channels, and what is called with each of their messages. While
            the connection is lost, messages are too.
        kept_threads: how many threads wait for the next jobs; for jobs that are short.

    Attributes:
        signalled: whether a signal stopped the worker.
    """

    death_penalty_class = NoDeathPenalty
    job_class = PlainJob
    log_job_description = False
    log_result_lifespan = False

    def __init__(
        self,
        queues: Sequence[str],
        connection: redis.Redis,
        *,
        slots: int,
        tier: int = 1,
        kind: str | None = None,
        functions: Mapping[str, Callable[..., object]],
        stopping: threading.Event,
        lease: float,
        on_failed: OnFailed,
        on_missing: Callable[[str], None] = lambda _: None,
        sweep: Callable[[], object] = lambda: None,
        defer: Callable[[], bool] = lambda: False,
        resting: int | None = None,
        grace: float = 3.0,
        poll: float = 1.0,
        measure: Callable[[], Mapping[str, float | str]] = dict,
        outage: Outage | None = None,
        clock: Clock | None = None,
        channels: Mapping[str, Callable[[bytes], None]] | None = None,
        kept_threads: int = 0,
    ) -> None:
        self._poll = poll  # first, because RQ derives a time-out from it
        self._kind = kind or queues[0]
        connection = in_reserve(connection)
        super().__init__(
            list(queues),
            name=f"{self._kind}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=math.ceil(lease),
            log_job_description=False,
        )
        self.stopping = stopping
        self.signalled = False
        self._outage = outage or Outage(client=connection)
        self._clock = clock or SystemClock()
        self._slot_count = slots
        self._max_resting = _RESTING_PER_SLOT * slots if resting is None else resting
        self._tiers = [self.queues[at : at + tier] for at in range(0, len(queues), tier)]
        # RQ compares queues by their names, in Python: names are compared faster.
        self._tier_of = {queue.name: tier for tier in self._tiers for queue in tier}
        self._highest = frozenset(queue.name for queue in self._tiers[0])
        self._turns = [turn for turn in _TURNS if turn < len(self._tiers)]
        self._turn = 0
        self._empty: set[str] = set()  # names of queues that had no job when one was last taken
        self._reserved = 1 if slots > 1 and len(self._tiers) > 1 else 0
        self._functions = dict(functions)
        self._channels = dict(channels or {})
        self._grace = grace
        self._on_failed = on_failed
        self._on_missing = on_missing
        self._defer = defer
        self._taking = 0
        self._bulk = 0  # jobs of a lower priority that ran when one was last taken
        self._slots: dict[str, Slot] = {}
        self._changed = threading.Condition()
        self._threads = SlotThreads(most=kept_threads)
        self._wants_nudge = False
        self._registered = False
        self._nudge_key = redis_keys.wake(self.name)
        self._push_nudge = connection.register_script(_PUSH_NUDGE)
        self._jobs = Executions(connection, math.ceil(lease))
        self._maintenance = Maintenance(
            connection,
            self.queues,
            self._jobs,
            lease=lease,
            idle=poll,
            on_failed=on_failed,
            job_class=self.job_class,
            sweep=sweep,
            clock=self._clock,
        )
        self._asked_at = 0.0
        self._forced = threading.Event()
        self._heartbeat = Heartbeat(
            self,
            self._jobs,
            self._slots.values,
            slot_count=slots,
            lease=lease,
            measure=measure,
            outage=self._outage,
            clock=self._clock,
        )

    def work(  # type: ignore[override]
        self, burst: bool = False, on_ready: Callable[[], None] = lambda: None, **_: Any
    ) -> bool:
        """Run jobs until asked to stop; with `burst`, until the queues are empty.

        `on_ready` is called once the worker is registered and handles signals. Returns whether
        any job was run. While Redis refuses work, the worker waits.
        """
        try:
            self._insist(self._register)
        except redis.exceptions.RedisError as error:
            if not will_pass(error):
                raise
            return False
        if threading.current_thread() is threading.main_thread():
            self._install_signal_handlers()
        on_ready()
        worked = False
        try:
            while not self.stopping.is_set():
                outcome = self._insist(self._step_or_rest)
                worked = worked or bool(outcome)
                if burst and outcome is False and not self._slots:
                    break
        except redis.exceptions.RedisError as error:
            if not will_pass(error):
                raise
        finally:
            self._drain()
            self._threads.close()
            self._heartbeat.stop()
            with contextlib.suppress(redis.exceptions.RedisError):
                self._heartbeat.forget()
                self.teardown()
        return worked

    def _insist(self, call: Callable[[], _T]) -> _T:
        """Return `call()`, repeated while Redis refuses it. Raises its error when the worker is to
        stop meanwhile."""
        return self._outage.insist("jobs", call, self.stopping.wait)

    def _register(self) -> None:
        if not self._registered:
            self.connection.delete(self.key)  # of an attempt that failed half-way
            try:
                self.bootstrap(logging_level=None)
            except redis.exceptions.RedisError:
                self.unsubscribe()
                self.pubsub_thread = None
                raise
            self._registered = True
        self._heartbeat.start()

    def queue_names(self) -> list[str]:
        """Return the names under which RQ lists this worker: those of its queues, and its kind."""
        return list(dict.fromkeys([self._kind, *super().queue_names()]))

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: at the first take no more jobs and let those that run finish, at the
        second stop waiting for them."""
        self.signalled = True
        if not self.stopping.is_set():
            self._asked_at = time.monotonic()
            self.stopping.set()
        elif time.monotonic() - self._asked_at > 1.0:  # a terminal and a parent may both signal
            self._forced.set()

    def request_stop_execution(self, execution_id: str) -> None:
        """Ask one running job to stop (RQ's `stop-execution` command)."""
        slot = self._slots.get(execution_id)
        if slot is not None:
            slot.stopped = True
            slot.cancelled.set()

    def _drain(self) -> None:
        """Wait for the running jobs, within `grace`; put the others back for the next worker."""
        with contextlib.suppress(redis.exceptions.RedisError):
            self._heartbeat.retire()
            self.connection.delete(redis_keys.has_room(self.name))
        self._wait_until_idle(self._grace)
        for slot in list(self._slots.values()):
            slot.cancelled.set()
        self._wait_until_idle(1.0)
        for slot in list(self._slots.values()):
            if slot.close():
                _log.warning("job_left_behind", job=slot.job.id)
                with contextlib.suppress(redis.exceptions.RedisError):
                    self._give_back(slot)

    def _wait_until_idle(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._slots and not self._forced.is_set():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return
                self._changed.wait(min(0.2, remaining))

    def _step_or_rest(self) -> bool | None:
        try:
            return self._step()
        except redis.exceptions.RedisError:
            self._maintenance.postpone()
            raise

    def _step(self) -> bool | None:
        """Take one job, or wait for one. Return False if there is none, None if none may run."""
        self._maintenance.tick()
        if self._defer():
            self.stopping.wait(_DEFER)
            return None
        queues = self._open_queues()
        if not queues:
            return None
        try:
            # What is pushed to an empty queue wakes this worker: it need not ask before it waits.
            known_empty = self._empty.issuperset(queue.name for queue in queues)
            taken = False if known_empty else self._take(queues)
        finally:
            self._taking = 0
        if taken is None:
            self.stopping.wait(self._poll)
            return None
        if taken:
            return True
        self._empty = set()
        wakes = [redis_keys.wake(queue.name) for queue in queues]
        self.connection.blpop([self._nudge_key, *wakes], timeout=self._poll)
        return False if len(queues) == len(self.queues) and not known_empty else None

    def _take(self, queues: Sequence[Queue]) -> bool | None:
        """Begin the next job of `queues`; return False if there is none, None if all workers are
        suspended."""
        taken = self._jobs.take(
            queues,
            self.name,
            self._now(),
            room=(
                self._has_room(queues, self._free + 1, self._bulk),
                self._has_room(queues, self._free, self._bulk + 1),
            ),
            room_ms=math.ceil(2000 * self._poll),
        )
        if isinstance(taken, bool):
            return None if taken else False
        # those before its queue were found to be empty
        names = [queue.name for queue in queues]
        before = names.index(taken.queue.name) if taken.queue.name in names else 0
        self._empty = set(names[:before] if taken.left else names)
        self._pass_turn(taken.queue)
        if taken.slot is not None:
            self._start(taken.slot)
        else:
            self._pass_over(taken)
        return True

    def _has_room(self, queues: Sequence[Queue], free: int, bulk: int) -> bool:
        """Return whether jobs of `queues` may be left to this worker, with `free` slots and `bulk`
        jobs of a lower priority."""
        takes_all = len(queues) == len(self.queues) and bulk < self._slot_count - self._reserved
        return takes_all and 2 * free >= self._slot_count

    def _open_queues(self) -> list[Queue]:
        """Return the queues to take jobs from; wait a while when all slots are busy."""
        with self._changed:
            if self._takes() <= 0:
                self._changed.wait(self._poll)
                return []  # ask `defer` again: the job that left the slot may be for another worker
            if self.stopping.is_set():
                return []
            self._bulk = sum(
                not slot.resting and slot.queue.name not in self._highest
                for slot in list(self._slots.values())
            )
            self._wants_nudge = self._bulk >= self._slot_count - self._reserved
            self._taking = 1
            return list(self._tiers[0]) if self._wants_nudge else self._in_turn()

    def _in_turn(self) -> list[Queue]:
        """Return all queues in the order in which they are asked for the next job."""
        tiers = list(self._tiers)
        tiers.insert(0, tiers.pop(self._turns[self._turn % len(self._turns)]))
        return [queue for tier in tiers for queue in tier]

    def _pass_turn(self, queue: Queue) -> None:
        """Note that a job of `queue` was taken: the next is taken elsewhere first."""
        self._turn += 1
        tier = self._tier_of[queue.name]
        if len(tier) > 1:
            tier.remove(queue)
            tier.append(queue)

    def _takes(self) -> int:
        """Return how many jobs the worker may take."""
        crowded = len(self._slots) >= self._slot_count + self._max_resting
        return 0 if crowded else self._free

    @property
    def _free(self) -> int:
        """Slots without a job."""
        busy = sum(not slot.resting for slot in list(self._slots.values()))
        return self._slot_count - self._taking - busy

    def rest(self, slot: Slot) -> None:
        """Free a slot whose job waits for something."""
        with self._changed:
            slot.resting, slot.wanting = True, False
            self._changed.notify_all()

    def resume(self, slot: Slot) -> bool:
        """Let a resting job have a slot again; return False if none is free."""
        with self._changed:
            slot.wanting = slot.resting and self._free <= 0
            slot.resting = slot.wanting
            return not slot.wanting

    def load(self) -> WorkerLoad:
        """Return what this worker has to do."""
        slots = list(self._slots.values())
        return WorkerLoad(
            slots=0 if self.stopping.is_set() else self._slot_count,
            busy=sum(not slot.resting for slot in slots),
            jobs=len(slots),
            wanting=sum(slot.wanting for slot in slots),
            movable=sum(slot.movable for slot in slots),
            leaving=sum(slot.movable and slot.cancelled.is_set() for slot in slots),
        )

    def hand_over(self) -> str | None:
        """Put a job back for another worker: one that waits for a slot, else one that rests, else
        the newest. Return its id; None if no job is movable."""
        slots = [slot for slot in list(self._slots.values()) if slot.movable]
        if any(slot.cancelled.is_set() for slot in slots):
            return None  # the last one has not ended yet
        slot = min(reversed(slots), key=lambda s: (not s.wanting, not s.resting), default=None)
        if slot is None:
            return None
        slot.cancelled.set()
        return slot.job.id

    def _pass_over(self, taken: Taken) -> None:
        """Note that a job that was taken is not to be run."""
        if taken.reason == DELETED:  # cancelled or lost meanwhile
            self._on_missing(taken.job_id)
            taken.queue.intermediate_queue.remove(taken.job_id)
        elif taken.reason.startswith(UNREADABLE_RECORD):
            _log.error("job_unreadable", job=taken.job_id, reason=taken.reason)
        else:
            _log.info("job_not_taken", job=taken.job_id, reason=taken.reason)

    def _start(self, slot: Slot) -> None:
        with self._changed:
            self._slots[slot.execution.id] = slot
            self.executions[slot.execution.id] = slot.execution
        self._threads.start(f"slot-{slot.job.id}", lambda: self._run(slot))

    def _run(self, slot: Slot) -> None:
        last_attempt = slot.job.retries_left == 0
        enter_slot(
            slot.cancelled,
            slot.token,
            last_attempt,
            _Place(self, slot),
            first_attempt=slot.first_attempt,
            wait=slot.wait,
        )
        try:
            with log_about(job=slot.job.id):
                self.perform_job(slot.job, slot.queue, slot.execution)
        except Exception as error:
            # Its end could not be recorded: the job is run again after its lease.
            if not isinstance(error, redis.exceptions.RedisError) or not will_pass(error):
                _log.warning("job_not_recorded", job=slot.job.id, reason=str(error))
            else:
                self._outage.failed("jobs", error)
        finally:
            with self._changed:
                self._slots.pop(slot.execution.id, None)
                self.executions.pop(slot.execution.id, None)
                nudge, self._wants_nudge = self._wants_nudge, False
                self._changed.notify_all()
            if nudge and not self.stopping.is_set():
                with contextlib.suppress(redis.exceptions.RedisError):
                    self._nudge()

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run one job in the calling thread and record its end. Return whether it succeeded."""
        slot = self._slots[execution.id]
        try:
            self._function_of(job)(*job.args, **job.kwargs)
        except GiveBack:
            if slot.close():
                if slot.stopped:
                    self._succeed(slot)
                else:
                    self._give_back(slot)
        except Abandon:
            slot.close()
            return False
        except BrokeDown as error:
            if slot.close():
                self._break_down(slot, error)
            return False
        except BaseException as error:
            if slot.close():
                self._fail(slot, error)
            return False
        else:
            if slot.close():
                self._succeed(slot)
        return True

    def _function_of(self, job: Job) -> Callable[..., object]:
        function = self._functions.get(job.func_name or "")
        if function is None:
            raise PermissionError(f"this worker does not run '{job.func_name}'")
        return function

    def ending(self, slot: Slot) -> Ending:
        """Return what ends a job that has succeeded, to be done with its last step."""
        return self._jobs.success(slot, self._now())

    def note_end(self, slot: Slot, owned: bool) -> None:
        """Note that a job was ended with its last step; `owned`: it was still that of its slot."""
        slot.ended = True
        self._note(slot, owned)

    def _succeed(self, slot: Slot) -> None:
        if not slot.ended:
            self._note(slot, self._jobs.succeed(slot, self._now()))

    def _now(self) -> datetime:
        return to_datetime(self._clock.time())

    @staticmethod
    def _note(slot: Slot, owned: bool) -> None:
        """Log that the end of a job was not recorded, because another worker has it."""
        if not owned:
            _log.warning("job_taken_over", job=slot.job.id)

    def _break_down(self, slot: Slot, error: BrokeDown) -> None:
        """Put a job back that may have broken its worker, while it has retries."""
        if slot.stopped:
            self._succeed(slot)
        elif slot.job.retries_left:
            slot.job.retries_left -= 1
            self._give_back(slot)
        else:
            self._fail(slot, error, ErrorCode.WORKER_LOST, _BROKE_DOWN)

    def _fail(
        self,
        slot: Slot,
        error: BaseException,
        code: ErrorCode = ErrorCode.INTERNAL,
        message: str | None = None,
    ) -> None:
        job = slot.job
        trace = redact("".join(traceback.format_exception(error)))
        _log.error("job_failed", job=job.id, trace=trace)
        reason = redact(str(error)) or type(error).__name__
        if not self._jobs.renew(self, [slot])[0]:  # its new owner may yet answer
            self._note(slot, owned=False)
            return
        self._on_failed(job, code, message or f"The job failed: {reason}.")
        # It is not retried: retries are for jobs whose worker died, an error would recur.
        self._note(slot, self._jobs.fail(slot, trace, self._now()))

    def _give_back(self, slot: Slot) -> None:
        """Put a job back at the front of its queue, as if it had not been taken."""
        self._note(slot, self._jobs.give_back(slot))

    def _nudge(self) -> None:
        """Wake the main loop: a slot is free again while it waits for one queue only."""
        self._push_nudge(keys=[self._nudge_key])

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that the worker blocks at most; RQ derives the socket time-out from them."""
        return math.ceil(self._poll)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Return the seconds after which a job without a heartbeat is taken over."""
        return self._heartbeat.ttl

    def heartbeat(
        self, timeout: int | None = None, pipeline: redis.client.Pipeline | None = None
    ) -> None:
        """Report that this worker is alive, for the length of its lease."""
        super().heartbeat(timeout or self._heartbeat.ttl, pipeline)

    def subscribe(self) -> None:
        """Listen to RQ's commands, and to the other channels."""
        handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            name: partial(_call_with_data, call) for name, call in self._channels.items()
        }
        handlers[self.pubsub_channel_name] = self.handle_payload
        self.pubsub = self.connection.pubsub()
        self.pubsub.subscribe(**handlers)
        thread: Any = self.pubsub.run_in_thread(
            sleep_time=60, daemon=True, exception_handler=self._pubsub_exception_handler
        )
        self.pubsub_thread = thread

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        # RQ's own handler lets the thread die on a time-out, and the worker then gets no command.
        passes = isinstance(exc, redis.exceptions.RedisError | OSError) and will_pass(exc)
        if self._heartbeat.ended.is_set() or not passes:
            pubsub_thread.stop()
        else:
            self._heartbeat.ended.wait(2.0)


def _call_with_data(call: Callable[[bytes], None], message: dict[str, Any]) -> None:
    call(message["data"])
