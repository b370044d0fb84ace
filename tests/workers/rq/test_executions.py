"""Taking, renewing and ending executions, in every order that two workers can do it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from redis.commands.core import Script
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import current_timestamp

from streamer import redis_keys
from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.results import Published, Results
from streamer.redis_client.connections import connect
from streamer.settings import Settings
from tests.support.forgetful_redis import ForgetfulLine
from workers.rq.executions import DELETED, AbandonedJob, Executions, Taken
from workers.rq.job import Slot

LEASE = 60
NOW = datetime(2026, 11, 25, tzinfo=UTC)


class Desk:
    """A queue with a job, and workers that take it, each step on command."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self.queue = Queue("queries", connection=client, serializer=JSONSerializer)
        self.executions = Executions(client, LEASE)

    def put(self, job_id: str = "j", retries: int | None = 5, **fields: Any) -> None:
        retry = Retry(max=retries, enqueue_at_front=True) if retries else None
        self.queue.enqueue_call("f", job_id=job_id, retry=retry, **fields)

    def look(self, worker: str, executions: Executions | None = None) -> Taken:
        """Let a worker take what is next in the queue, whatever it is."""
        taken = (executions or self.executions).take([self.queue], worker, NOW)
        assert isinstance(taken, Taken)
        return taken

    def take(self, worker: str, executions: Executions | None = None) -> Slot:
        taken = self.look(worker, executions)
        assert taken.slot is not None, taken.reason
        return taken.slot

    def expire(self, slot: Slot) -> None:
        """Let the lease of an execution run out."""
        key = slot.execution.composite_key
        assert self.redis.zadd(self.started.key, {key: current_timestamp() - 1}, xx=True) == 0
        self.redis.delete(slot.execution.key)

    def now(self) -> datetime:
        """Return the time of Redis."""
        return to_datetime(float(self.redis.time()[0]))

    def abandon(self) -> list[AbandonedJob]:
        abandoned = self.executions.abandon(self.queue, self.now())
        assert abandoned is not None
        return abandoned

    def renew(self, slot: Slot) -> bool:
        class Worker:
            key, executions_key = "rq:worker:w", slot.execution.worker_executions_key
            name = slot.execution.worker_name

        return self.executions.renew(Worker, [slot])[0]  # type: ignore[arg-type]

    @property
    def started(self) -> StartedJobRegistry:
        return self.queue.started_job_registry

    @property
    def queued(self) -> list[str]:
        return self.queue.get_job_ids()

    @property
    def running(self) -> list[str]:
        return self.started.get_job_ids(cleanup=False)

    @property
    def failures(self) -> int:
        return len(self.job().results())

    def job(self, job_id: str = "j") -> Job:
        return Job.fetch(job_id, self.redis, JSONSerializer)


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


@pytest.fixture
def line(valkey: EmbeddedServer) -> Iterator[ForgetfulLine]:
    with ForgetfulLine(valkey.port) as line:
        yield line


@contextmanager
def executions_on(line: ForgetfulLine, valkey: EmbeddedServer, **options: Any) -> Iterator[Any]:
    """Executions with a client as the programs have it, on the line that loses answers."""
    parts = urlsplit(valkey.url)
    login = parts.netloc.rpartition("@")[0]
    url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{line.port}"))
    with connect(url, **options) as client:
        executions = Executions(client, LEASE)
        for script in vars(executions).values():
            if isinstance(script, Script):
                client.script_load(script.script)  # the answer to be lost is not NOSCRIPT
        yield executions


@pytest.fixture
def forgetful(line: ForgetfulLine, valkey: EmbeddedServer) -> Iterator[Executions]:
    """Executions whose client repeats what was not answered."""
    with executions_on(line, valkey) as executions:
        yield executions


@pytest.fixture
def impatient(line: ForgetfulLine, valkey: EmbeddedServer) -> Iterator[Executions]:
    """Executions whose client gives up at the first answer that is lost."""
    with executions_on(line, valkey, retries=0) as executions:
        yield executions


def test_an_execution_that_is_renewed_after_it_expired_is_not_taken_over(desk: Desk) -> None:
    # given a job whose lease has run out while Redis was silent
    desk.put()
    slot = desk.take("a")
    desk.expire(slot)
    # when its worker renews it before any other one cleans up
    assert desk.renew(slot)
    assert desk.abandon() == []
    # then it goes on alone
    assert (desk.queued, desk.running) == ([], ["j"])
    assert desk.executions.succeed(slot, NOW)


def test_a_late_worker_is_refused_after_a_take_over(desk: Desk) -> None:
    # given a job that another worker takes over
    desk.put(retries=5)
    first = desk.take("a")
    desk.expire(first)
    (abandoned,) = desk.abandon()
    assert (abandoned.job_id, abandoned.worker, abandoned.retried) == ("j", "a", True)
    # then its former worker is refused, before and after the job is taken again
    assert not desk.renew(first)
    second = desk.take("b")
    assert second.token > first.token
    assert not desk.renew(first)
    assert not desk.executions.give_back(first)
    assert not desk.executions.succeed(first, NOW)
    assert not desk.executions.fail(first, "trace", NOW)
    # and the job stays with the other
    assert (desk.queued, desk.running) == ([], ["j"])
    assert desk.job().get_status() is JobStatus.STARTED
    assert desk.job().retries_left == 4
    assert desk.renew(second)
    assert desk.executions.succeed(second, NOW)
    assert desk.job().get_status() is JobStatus.FINISHED
    assert desk.running == []


def test_a_job_that_is_queued_twice_is_run_once(desk: Desk) -> None:
    # given a job id that is in the queue three times
    desk.put()
    desk.redis.rpush(desk.queue.key, "j", "j")
    slot = desk.take("a")
    # then the second one is not taken while it runs
    assert desk.look("b").reason == "running"
    assert desk.renew(slot)
    # nor the third one when it has ended
    assert desk.executions.succeed(slot, NOW)
    assert desk.look("b").reason == "ended"
    assert (desk.queued, desk.running) == ([], [])
    assert desk.redis.llen(desk.queue.intermediate_queue_key) == 0


def test_a_job_that_rq_queued_although_it_is_renewed_stays_with_its_worker(desk: Desk) -> None:
    """`rq info` reads which executions have expired, and puts their jobs back in a later step."""
    # given a program that has read that an execution has expired
    desk.put()
    slot = desk.take("a")
    desk.expire(slot)

    class Reader(StartedJobRegistry):
        def get_expired_job_ids(self, timestamp: float | None = None) -> list[str]:
            found = super().get_expired_job_ids(timestamp)
            assert desk.renew(slot)  # in between
            return found

    Reader("queries", desk.redis, serializer=JSONSerializer).cleanup()
    assert desk.queued == ["j"]
    # then no other worker takes it
    assert desk.look("b").reason == "running"
    assert desk.job().get_status() is JobStatus.STARTED
    assert desk.executions.succeed(slot, NOW)


def test_a_job_that_another_release_left_between_queue_and_registry_is_recovered(
    desk: Desk,
) -> None:
    # given a job that a worker of an earlier release has reached for, but not begun
    desk.put()
    assert desk.redis.lmove(desk.queue.key, desk.queue.intermediate_queue_key) == b"j"
    assert desk.executions.take([desk.queue], "b", NOW) is False
    # when it is put back, then another worker takes it
    desk.executions.recover(desk.queue, "j")
    assert desk.renew(desk.take("b"))
    assert desk.redis.llen(desk.queue.intermediate_queue_key) == 0


def test_workers_that_are_suspended_take_nothing(desk: Desk) -> None:
    desk.put()
    desk.redis.set(WORKERS_SUSPENDED, 1)
    assert desk.executions.take([desk.queue], "a", NOW) is True
    assert (desk.queued, desk.running) == (["j"], [])


def test_a_job_whose_record_is_unreadable_has_failed(desk: Desk) -> None:
    # given a job whose record no worker can read
    desk.put()
    desk.redis.hset("rq:job:j", "created_at", "today")
    # when a worker takes it
    taken = desk.look("a")
    # then it does not run it, and neither does the next one
    assert taken.slot is None
    assert taken.reason == "unreadable: ValueError"
    assert desk.redis.hget("rq:job:j", "status") == b"failed"
    assert desk.redis.ttl("rq:job:j") > 0
    assert (desk.queued, desk.running) == ([], [])


def test_an_expired_execution_that_is_still_registered_does_not_return(desk: Desk) -> None:
    # given a job that a program such as `rq requeue` queued, while its old execution is registered
    desk.put()
    first = desk.take("a")
    desk.expire(first)
    desk.redis.rpush(desk.queue.key, "j")
    second = desk.take("b")
    # then cleaning up does not start it a third time
    assert desk.abandon() == []
    assert desk.queued == []
    assert not desk.renew(first)
    assert desk.renew(second)


def test_an_abandoned_job_without_retries_has_failed_with_its_reason(desk: Desk) -> None:
    desk.put(retries=None, failure_ttl=100)
    slot = desk.take("a")
    desk.expire(slot)
    (abandoned,) = desk.abandon()
    assert not abandoned.retried
    job = desk.job()
    assert job.get_status() is JobStatus.FAILED
    result = job.latest_result()
    assert result is not None
    assert "AbandonedJobError" in (result.exc_string or "")
    assert desk.queue.failed_job_registry.get_job_ids() == ["j"]
    assert 0 < desk.redis.ttl(job.key) <= 100
    assert not desk.executions.succeed(slot, NOW)


def test_a_job_that_was_deleted_meanwhile_leaves_nothing_behind(desk: Desk) -> None:
    # given a detached stream: its job is deleted while a worker runs it, and before one takes it
    desk.put("running", result_ttl=0)
    slot = desk.take("a")
    desk.put("taken", result_ttl=0)
    desk.redis.delete("rq:job:running", "rq:job:taken")
    # when both go on
    assert not desk.renew(slot)
    taken = desk.look("b")
    assert (taken.slot, taken.job_id, taken.reason) == (None, "taken", DELETED)
    # and the id of the second is kept until its worker has reported the loss
    assert desk.redis.lrange(desk.queue.intermediate_queue_key, 0, -1) == [b"taken"]
    taken.queue.intermediate_queue.remove(taken.job_id)
    for end in (
        desk.executions.give_back,
        lambda slot: desk.executions.succeed(slot, NOW),
        lambda slot: desk.executions.fail(slot, "trace", NOW),
    ):
        assert not end(slot)
    # then no record comes back
    left = {key for key in desk.redis.keys("rq:*") if desk.redis.ttl(key) == -1}
    assert left == {b"rq:queues"}
    assert desk.running == desk.queued == []


@pytest.mark.parametrize("gone", ["execution", "everything but the job"])
def test_a_stream_job_ends_although_its_execution_has_expired(desk: Desk, gone: str) -> None:
    """RQ read the expired execution of a job with `result_ttl=0`, and raised, time and again."""
    desk.put(result_ttl=0)
    slot = desk.take("a")
    desk.redis.delete(slot.execution.key)
    if gone != "execution":
        desk.expire(slot)
        desk.abandon()
        slot = desk.take("b")
        desk.redis.delete(slot.execution.key)
    assert desk.executions.succeed(slot, NOW)
    assert not desk.redis.exists("rq:job:j", "rq:executions:j", "rq:results:j")
    assert desk.running == desk.queued == []


def test_a_token_grows_even_when_redis_has_lost_the_last_one(desk: Desk) -> None:
    desk.put()
    slot = desk.take("a")
    for _ in range(3):
        before = slot.token
        assert desk.executions.give_back(slot)
        desk.redis.delete(redis_keys.TOKENS)
        slot = desk.take("a")
        assert slot.token >= before
    # and when the server's clock was far ahead before
    desk.redis.set(redis_keys.TOKENS, 10**14)
    assert desk.executions.give_back(slot)
    assert desk.take("a").token == 10**14 + 1


def test_a_give_back_whose_answer_is_lost_puts_the_job_back_once(
    desk: Desk, line: ForgetfulLine, forgetful: Executions
) -> None:
    desk.put()
    slot = desk.take("a")
    line.lose_answer_to(b"EVALSHA")
    forgetful.give_back(slot)
    assert line.lost == 1
    assert desk.queued == ["j"]
    assert desk.running == []


def test_a_job_is_taken_once_when_the_answer_is_lost(
    desk: Desk, line: ForgetfulLine, forgetful: Executions
) -> None:
    # given two jobs
    desk.put()
    desk.put("k")
    # when the answer to the worker that takes the first is lost
    line.lose_answer_to(b"EVALSHA")
    slot = desk.take("a", forgetful)
    # then it has the first, and no other
    assert line.lost == 1
    assert slot.job.id == "j"
    assert desk.renew(slot)
    assert desk.running == ["j"]
    assert desk.queued == ["k"]


def test_a_job_that_was_taken_while_redis_went_away_is_taken_up_when_it_returns(
    desk: Desk, line: ForgetfulLine, impatient: Executions
) -> None:
    # given a worker whose taking was carried out, but never answered
    desk.put()
    desk.put("k")
    line.lose_answer_to(b"EVALSHA")
    with pytest.raises(redis.exceptions.ConnectionError):
        desk.take("a", impatient)
    assert desk.running == ["j"]
    # when it asks again, then it gets that job, which has lost no attempt
    slot = desk.take("a", impatient)
    assert slot.job.id == "j"
    assert slot.job.retries_left == 5
    assert desk.renew(slot)
    # and then the next one
    assert desk.take("a", impatient).job.id == "k"


def test_a_job_that_was_taken_while_redis_went_away_may_be_another_workers_by_now(
    desk: Desk, line: ForgetfulLine, impatient: Executions
) -> None:
    # given a worker whose taking was carried out, but not answered within its lease
    desk.put()
    line.lose_answer_to(b"EVALSHA")
    with pytest.raises(redis.exceptions.ConnectionError):
        desk.take("a", impatient)
    members: Any = desk.redis.zrange(desk.started.key, 0, -1)
    desk.redis.zadd(desk.started.key, dict.fromkeys(members, 1))
    assert [job.job_id for job in desk.abandon()] == ["j"]
    other = desk.take("b")
    # when it asks again, then it does not get the job
    assert desk.look("a", impatient).slot is None
    assert desk.renew(other)
    assert impatient.take([desk.queue], "a", NOW) is False


@pytest.mark.parametrize("step", ["succeed", "fail", "abandon"])
def test_no_end_is_recorded_twice_when_its_answer_is_lost(
    desk: Desk, line: ForgetfulLine, forgetful: Executions, step: str
) -> None:
    desk.put()
    slot = desk.take("a")
    desk.redis.hset("rq:worker:a", "birth", "today")
    if step == "abandon":
        desk.expire(slot)
    line.lose_answer_to(b"EVALSHA")
    if step == "succeed":
        forgetful.succeed(slot, NOW)
        assert desk.redis.hget("rq:worker:a", "successful_job_count") == b"1"
    elif step == "fail":
        forgetful.fail(slot, "trace", NOW)
        assert desk.redis.hget("rq:worker:a", "failed_job_count") == b"1"
        assert desk.failures == 1
    else:
        forgetful.abandon(desk.queue, desk.now())
        assert desk.queued == ["j"]
        assert desk.job().retries_left == 4
    assert line.lost == 1
    assert desk.running == []


def answer(text: str) -> Result:
    return Result(
        request_id="j", kind="caption", stream_id="s", stream_name="yard", prompt="?", text=text
    )


def texts(client: redis.Redis) -> list[str | None]:
    """Return the texts of all results that were published."""
    entries: Any = client.xrange(redis_keys.RESULTS)
    return [Result.model_validate_json(fields[b"json"]).text for _, fields in entries]


def test_a_result_is_published_and_its_job_ended_in_one_step(
    desk: Desk, settings: Settings
) -> None:
    # given a worker that runs a request's job
    desk.put(result_ttl=0)
    slot = desk.take("a")
    desk.redis.hset("rq:worker:a", "birth", "today")
    results = Results(desk.redis, settings)
    before = desk.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    # when it publishes the result
    ending = desk.executions.success(slot, NOW)
    published = results.publish_and_end(answer("two people"), ending, owner_id="wch_1")
    # then the result is there and the job is over, as after the two steps
    assert published == Published(first=True, ended=True)
    assert texts(desk.redis) == ["two people"]
    assert not desk.redis.exists("rq:job:j", slot.execution.key, "rq:executions:j")
    assert desk.running == desk.queued == []
    assert desk.redis.hget("rq:worker:a", "successful_job_count") == b"1"
    # and it took one script (the first try told that Redis had not seen it yet)
    assert desk.redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before <= 2


def test_a_late_worker_publishes_its_result_but_does_not_end_the_job_of_another(
    desk: Desk, settings: Settings
) -> None:
    # given a worker that was silent for so long that another one has its job
    desk.put()
    late = desk.take("a")
    desk.expire(late)
    desk.abandon()
    owner = desk.take("b")
    results = Results(desk.redis, settings)
    # when both publish
    outcomes = [
        results.publish_and_end(answer(text), desk.executions.success(slot, NOW), owner_id="wch_1")
        for text, slot in (("late", late), ("second", owner))
    ]
    # then the first result stands, and the owner ends the job
    assert outcomes == [Published(first=True, ended=False), Published(first=False, ended=True)]
    assert texts(desk.redis) == ["late"]
    assert desk.job().get_status() is JobStatus.FINISHED
    assert desk.running == []


def test_a_result_whose_acknowledgement_is_lost_is_published_once_and_ends_its_job(
    desk: Desk, line: ForgetfulLine, forgetful: Executions, settings: Settings
) -> None:
    desk.put()
    slot = desk.take("a")
    results = Results(forgetful._redis, settings)
    ending = desk.executions.success(slot, NOW)
    forgetful._redis.script_load(results._script_with(ending).script)
    line.lose_answer_to(b"EVALSHA")
    results.publish_and_end(answer("two people"), ending, owner_id="wch_1")
    assert line.lost == 1
    assert texts(desk.redis) == ["two people"]
    assert desk.job().get_status() is JobStatus.FINISHED
    assert desk.running == []


def test_leases_do_not_depend_on_the_clock_of_a_worker(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ's registries hold times: ours come from Redis."""

    for ahead in (60, 3600, -60, -3600):
        monkeypatch.setattr(
            "rq.registry.current_timestamp", lambda a=ahead: current_timestamp() + a
        )
        monkeypatch.setattr(
            "rq.executions.current_timestamp", lambda a=ahead: current_timestamp() + a
        )
        desk.put()
        slot = desk.take("a")
        assert desk.abandon() == []
        assert desk.renew(slot)
        seconds, microseconds = desk.redis.time()
        ends = desk.redis.zscore(desk.started.key, slot.execution.composite_key)
        assert ends is not None
        assert 0 < ends - seconds - microseconds / 1e6 <= LEASE
        assert desk.executions.succeed(slot, NOW)
        desk.redis.flushall()


def test_a_job_is_given_back_to_the_front_of_its_queue(desk: Desk) -> None:
    desk.put("j")
    desk.put("k")
    slot = desk.take("a")
    assert desk.executions.give_back(slot)
    assert desk.queued == ["j", "k"]


@pytest.mark.parametrize("shift", [60, 3600])
def test_no_living_worker_is_given_up_when_the_clock_of_redis_is_set_forward(
    desk: Desk, shift: int
) -> None:
    # given a lease that ended when the clock was set forward
    desk.put(retries=None)
    slot = desk.take("a")
    desk.expire(slot)
    before = desk.now() - timedelta(seconds=shift)  # what another worker believes
    # then its job is left alone until the worker has had the time to renew
    assert desk.executions.abandon(desk.queue, before) is None
    assert desk.renew(slot)
    assert desk.abandon() == []
    assert desk.executions.succeed(slot, NOW)


@pytest.mark.parametrize("shift", [300, 3600])
def test_a_dead_worker_is_given_up_in_time_when_the_clock_of_redis_is_set_back(
    desk: Desk, shift: int
) -> None:
    # given leases that were given before the clock was set back, one of them of a dead worker
    desk.put("living")
    desk.put("dead")
    slots = {job_id: desk.take(job_id) for job_id in ("living", "dead")}
    ends = current_timestamp() + shift
    members = {slot.execution.composite_key: ends for slot in slots.values()}
    desk.redis.zadd(desk.started.key, members)
    # when the living one renews
    assert desk.abandon() == []
    assert desk.renew(slots["living"])
    # then both leases end after their usual time
    for slot in slots.values():
        score = desk.redis.zscore(desk.started.key, slot.execution.composite_key)
        assert score is not None
        assert score <= current_timestamp() + LEASE + 1
    desk.expire(slots["dead"])
    assert [job.job_id for job in desk.abandon()] == ["dead"]
    assert desk.renew(slots["living"])
