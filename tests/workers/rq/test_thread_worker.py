"""ThreadWorker, in real processes that are really stopped and killed."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time

import pytest
from rq import Queue, Retry
from rq.command import send_stop_execution_command
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.worker import Worker

PROGRAM = "tests.support.programs.jobs"
LEASE = 2
"""Seconds after which jobs of a worker that was killed are taken over."""

LONG = 60
"""The lease where nothing is taken over: a busy machine may silence a worker for a while."""


class Bench:
    """Queues to put jobs into, and what the jobs have reported."""

    def __init__(self, client, start, eventually):
        self.redis = client
        self.eventually = eventually
        self._start = start

    def worker(self, *arguments, slots=4, lease=LONG, **kwargs):
        return self._start(
            PROGRAM,
            *(arguments or ["queries", "watches", "files"]),
            SLOTS=str(slots),
            STREAMER_LEASE=str(lease),
            **kwargs,
        )

    def queue(self, name="queries"):
        return Queue(name, connection=self.redis, serializer=JSONSerializer)

    def put(self, function, name, queue="queries", **kwargs):
        return self.queue(queue).enqueue_call(
            f"{PROGRAM}.{function}", args=(name,), **{"job_id": name} | kwargs
        )

    def job(self, name):
        return Job.fetch(name, self.redis, JSONSerializer)

    def reported(self, key):
        return [value.decode() for value in self.redis.lrange(key, 0, -1)]

    def failures(self):
        return [json.loads(value) for value in self.reported("failed")]

    def release(self, *names):
        for name in names:
            self.redis.set(f"release:{name}", 1)


@pytest.fixture
def bench(redis_client, worker_process, eventually):
    return Bench(redis_client, worker_process, eventually)


def test_as_many_jobs_run_at_once_as_there_are_slots(bench):
    for i in range(5):
        bench.put("hold", f"h{i}")
    bench.worker("queries", slots=4)
    bench.eventually(lambda: len(bench.reported("started")) == 4)
    assert len(bench.queue()) == 1
    bench.release("h2")
    bench.eventually(lambda: len(bench.reported("started")) == 5)
    bench.release("h0", "h1", "h3", "h4")
    bench.eventually(lambda: len(bench.reported("ran")) == 5)


def test_a_job_that_rests_leaves_its_slot_to_others(bench):
    # given more resting jobs than slots
    for i in range(5):
        bench.put("rest", f"r{i}")
    bench.worker("queries", slots=2)
    bench.eventually(lambda: len(bench.reported("started")) == 5)
    # then others run meanwhile, as many as there are slots
    for i in range(3):
        bench.put("hold", f"h{i}")
    bench.eventually(lambda: len(bench.reported("started")) == 7)
    assert len(bench.queue()) == 1
    # when a rest is over and no slot is free, the job waits for one
    bench.release("r3")
    time.sleep(0.2)
    assert bench.reported("ran") == []
    # and when one is free, it goes on in it
    bench.release("h0", "h1", "h2")
    bench.eventually(lambda: sorted(bench.reported("ran")) == ["h0", "h1", "h2", "r3"])
    bench.release("r0")
    bench.eventually(lambda: "r0" in bench.reported("ran"))


def test_a_job_that_rests_can_be_stopped(bench):
    bench.put("rest", "r")
    worker = bench.worker("queries", slots=1)
    bench.eventually(lambda: bench.reported("started"))
    (execution,) = bench.job("r").get_executions()
    send_stop_execution_command(bench.redis, "r", execution.id)
    bench.eventually(lambda: bench.reported("stopped") == ["r"])
    bench.put("rest", "s")
    bench.eventually(lambda: len(bench.reported("started")) == 2)
    worker.terminate()
    assert worker.wait() == 0
    assert bench.queue().get_job_ids() == ["s"]


def test_one_slot_is_kept_for_queries_and_the_others_are_refilled_at_once(bench):
    # given more bulk work than slots
    for i in range(4):
        bench.put("hold", f"f{i}", "files")
    bench.worker(slots=3)
    bench.eventually(lambda: len(bench.reported("started")) == 2)
    # then a query need not wait for it
    bench.put("hold", "q")
    bench.eventually(lambda: "q" in bench.reported("started"))
    assert sorted(bench.reported("started")) == ["f0", "f1", "q"]
    # and a free slot is filled again from the bulk
    bench.release("q", "f0")
    bench.eventually(lambda: "f2" in bench.reported("started"))
    bench.release("f1", "f2", "f3")
    bench.eventually(lambda: len(bench.reported("ran")) == 5)


def test_a_finished_job_is_recorded_as_rq_does(bench):
    bench.put("note", "n")
    bench.worker("queries", "--burst").wait()
    job = bench.job("n")
    assert job.get_status() is JobStatus.FINISHED
    assert bench.queue().finished_job_registry.get_job_ids() == ["n"]
    assert bench.queue().started_job_registry.get_job_ids() == []
    assert bench.redis.keys("rq:execution*") == []
    assert bench.redis.llen(bench.queue().intermediate_queue_key) == 0
    assert Worker.count(connection=bench.redis) == 0


def test_rqs_own_tools_see_the_worker_and_its_jobs(bench, settings):
    bench.put("hold", "h")
    worker = bench.worker("queries")
    bench.eventually(lambda: bench.reported("started"))
    (seen,) = Worker.all(connection=bench.redis, serializer=JSONSerializer)
    assert seen.pid == worker.process.pid
    assert [e.job_id for e in seen.get_current_executions()] == ["h"]
    info = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--raw", "-u", settings.redis_url],
        env=os.environ | {"RQ_SERIALIZER": "json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "queue queries 0" in info.stdout
    assert str(worker.process.pid) in info.stdout
    bench.release("h")


def test_a_job_that_raises_fails_once_and_its_password_stays_secret(bench):
    bench.put("boom", "b", retry=Retry(max=3))
    bench.put("note", "after")
    worker = bench.worker("queries", "--burst")
    assert worker.wait() == 0
    ((job_id, code, message),) = bench.failures()
    assert (job_id, code) == ("b", "INTERNAL")
    assert "admin:***@camera" in message
    job = bench.job("b")
    assert job.get_status() is JobStatus.FAILED
    assert "RuntimeError" in job.latest_result().exc_string
    assert "s3cret" not in job.latest_result().exc_string + worker.output + message
    assert bench.reported("ran") == ["after"]


@pytest.mark.parametrize("function", ["os.system", "subprocess.call", f"{PROGRAM}.say"])
def test_a_function_that_is_not_in_the_table_is_never_called(bench, tmp_path, function):
    victim = tmp_path / "victim"
    bench.queue().enqueue_call(function, args=(f"touch {victim}",), job_id="evil")
    bench.put("note", "after")
    assert bench.worker("queries", "--burst").wait() == 0
    assert not victim.exists()
    assert bench.reported("ran") == ["after"]
    assert bench.job("evil").get_status() is JobStatus.FAILED
    assert "does not run" in bench.failures()[0][2]


def test_callbacks_that_a_job_names_are_never_called(bench, tmp_path):
    victim = tmp_path / "victim"
    for name, function in (("ok", "note"), ("bad", "boom")):
        bench.put(function, name)
        for when in ("success", "failure", "stopped"):
            bench.redis.hset(f"rq:job:{name}", f"{when}_callback_name", "os.system")
    assert bench.worker("queries", "--burst").wait() == 0
    assert not victim.exists()
    assert bench.job("ok").get_status() is JobStatus.FINISHED
    assert [f[0] for f in bench.failures()] == ["bad"]


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_a_pickled_job_is_refused_and_never_unpickled(bench, tmp_path):
    # given a pickled job of an attacker, which works when unpickled
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Bomb(victim)))
    assert victim.exists()
    victim.unlink()
    Queue("queries", connection=bench.redis).enqueue_call(
        f"{PROGRAM}.note", args=(Bomb(victim),), job_id="pickled", meta={"m": Bomb(victim)}
    )
    bench.put("note", "after")
    # when a worker takes it
    assert bench.worker("queries", "--burst").wait() == 0
    # then it fails, unread
    assert not victim.exists()
    assert bench.reported("ran") == ["after"]
    assert [(f[0], f[1]) for f in bench.failures()] == [("pickled", "INTERNAL")]


def test_an_unreadable_job_record_does_not_stop_the_worker(bench):
    bench.redis.hset("rq:job:odd", mapping={"data": b"\x00", "status": "no such status"})
    bench.redis.rpush(bench.queue().key, "odd", "gone")
    bench.put("note", "after")
    worker = bench.worker("queries", "--burst")
    assert worker.wait() == 0
    assert bench.reported("ran") == ["after"]
    assert "job_unreadable" in worker.output
    assert bench.redis.llen(bench.queue().intermediate_queue_key) == 0


def test_an_idle_worker_ends_at_once_on_sigterm(bench):
    worker = bench.worker()
    worker.terminate()
    assert worker.wait() == 0
    assert Worker.count(connection=bench.redis) == 0


def test_a_worker_that_stops_puts_its_jobs_back_first_in_line(bench):
    # given a job that runs and one that waits
    bench.put("hold", "h", retry=Retry(max=2))
    worker = bench.worker("queries", slots=1)
    bench.eventually(lambda: bench.reported("started"))
    bench.put("note", "n")
    # when the worker is stopped
    worker.terminate()
    assert worker.wait() == 0
    # then the job has stopped, and waits before the other, with all its retries
    assert bench.reported("stopped") == ["h"]
    assert bench.queue().job_ids == ["h", "n"]
    assert bench.job("h").retries_left == 2
    assert bench.job("h").get_status() is JobStatus.QUEUED
    assert bench.queue().started_job_registry.get_job_ids(cleanup=False) == []
    # and the next worker does both
    bench.release("h")
    bench.worker("queries", "--burst", slots=1).wait()
    assert bench.reported("ran") == ["h", "n"]


def test_a_job_that_ignores_the_stop_is_put_back_and_left_behind(bench):
    bench.put("stubborn", "s")
    worker = bench.worker("queries")
    bench.eventually(lambda: bench.reported("started"))
    worker.terminate()
    assert worker.wait() == 0
    assert bench.queue().job_ids == ["s"]


def test_a_second_signal_ends_the_wait_for_jobs(bench):
    # given a job that ignores the stop, and an hour for it to finish
    bench.put("stubborn", "s")
    worker = bench.worker("queries", GRACE="3600")
    bench.eventually(lambda: bench.reported("started"))
    # when a second signal comes, a moment after the first
    for _ in range(30):
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=1.5)
            break
    # then it ends without the job
    assert worker.wait() == 0
    assert bench.queue().job_ids == ["s"]


def test_one_running_job_can_be_stopped_and_does_not_come_back(bench):
    for name in ("a", "b"):
        bench.put("hold", name)
    bench.worker("queries")
    bench.eventually(lambda: len(bench.reported("started")) == 2)
    (execution,) = bench.job("b").get_executions()
    send_stop_execution_command(bench.redis, "b", execution.id)
    bench.eventually(lambda: bench.reported("stopped") == ["b"])
    bench.eventually(lambda: bench.job("b").get_status() is JobStatus.FINISHED)
    assert bench.job("a").get_status() is JobStatus.STARTED
    assert len(bench.queue()) == 0


def test_a_killed_workers_jobs_are_taken_over(bench):
    # given two workers, one of which is killed while it runs a job
    bench.put("hold", "h", retry=Retry(max=2, enqueue_at_front=True))
    first = bench.worker("queries", lease=LEASE)
    bench.eventually(lambda: bench.reported("started") == ["h"])
    second = bench.worker("queries", lease=LEASE)
    first.kill()
    # then the other runs it
    bench.eventually(lambda: bench.reported("started") == ["h", "h"])
    bench.release("h")
    bench.eventually(lambda: bench.reported("ran") == ["h"])
    assert "job_abandoned" in second.output
    bench.eventually(lambda: bench.job("h").get_status() is JobStatus.FINISHED)
    bench.eventually(lambda: Worker.count(connection=bench.redis) == 1)


@pytest.mark.parametrize("function", ["die", "abandon"])
def test_a_job_that_kills_its_workers_fails_after_its_retries(bench, function):
    bench.put(function, "d", retry=Retry(max=1, enqueue_at_front=True))
    for attempt in (1, 2):
        worker = bench.worker("queries", lease=LEASE)
        bench.eventually(lambda attempt=attempt: len(bench.reported("started")) == attempt)
        if function == "abandon":
            worker.kill()
        worker.wait()
    bench.worker("queries", lease=LEASE)
    bench.eventually(bench.failures)
    ((job_id, code, message),) = bench.failures()
    assert (job_id, code) == ("d", "WORKER_LOST")
    assert "ask again" in message
    assert bench.reported("started") == ["d", "d"]
    bench.eventually(lambda: bench.job("d").get_status() is JobStatus.FAILED)


def test_a_job_that_breaks_its_worker_is_retried_at_once_and_at_last_alone(bench):
    bench.put("break_down", "d", retry=Retry(max=2, enqueue_at_front=True))
    bench.put("note", "n")
    bench.worker("queries", "--burst", slots=1).wait()
    # without waiting for a lease, first in line, and not for ever
    assert bench.reported("started") == ["d", "d", "d, alone"]
    ((job_id, code, message),) = bench.failures()
    assert (job_id, code) == ("d", "WORKER_LOST")
    assert "broke down each time" in message
    assert bench.reported("ran") == ["n"]
    assert bench.job("d").get_status() is JobStatus.FAILED
    assert bench.queue().started_job_registry.get_job_ids(cleanup=False) == []


def test_a_job_without_retries_that_breaks_its_worker_fails(bench):
    bench.put("break_down", "d")
    bench.worker("queries", "--burst").wait()
    assert bench.reported("started") == ["d"]
    assert [failure[1] for failure in bench.failures()] == ["WORKER_LOST"]


def test_a_job_that_another_program_gave_up_gets_its_result_too(bench):
    # given a job of a dead worker, without retries, that a program such as `rq info` cleaned away
    bench.put("hold", "h")
    worker = bench.worker("queries")
    bench.eventually(lambda: bench.reported("started"))
    worker.kill()
    registry = bench.queue().started_job_registry
    registry.cleanup(timestamp=time.time() + 100)
    assert bench.job("h").get_status() is JobStatus.FAILED
    assert bench.failures() == []
    # then the next worker reports it, once
    bench.worker("queries", lease=LEASE)
    bench.eventually(bench.failures)
    assert [f[:2] for f in bench.failures()] == [["h", "WORKER_LOST"]]
    time.sleep(LEASE)
    assert len(bench.failures()) == 1


def test_a_live_job_is_not_taken_over_however_long_it_runs(bench):
    # given two workers, with leases that are not so short that a busy machine misses a heartbeat
    lease = 6
    bench.put("hold", "h", retry=Retry(max=2))
    for _ in range(2):
        bench.worker("queries", lease=lease)
    bench.eventually(lambda: bench.reported("started"))

    def ends() -> float:
        """Return when the lease of the job ends."""
        registry = bench.queue().started_job_registry.key
        ((_, moment),) = bench.redis.zrange(registry, 0, -1, withscores=True)
        return moment

    # when its first lease is over, then the job still runs where it was
    first = ends()
    bench.eventually(lambda: ends() > first + lease)
    assert bench.reported("started") == ["h"]


def test_a_worker_that_lost_its_lease_abandons_the_job(bench):
    # given a job whose worker was thought dead, so that it is no longer registered as started
    bench.put("hold", "h")
    worker = bench.worker("queries", lease=LEASE)
    bench.eventually(lambda: bench.reported("started"))
    bench.redis.delete(bench.queue().started_job_registry.key)
    # then the worker notices, stops the job and records nothing
    bench.eventually(lambda: bench.reported("stopped") == ["h"])
    worker.wait_for("job_taken_over")
    time.sleep(0.2)
    assert bench.job("h").get_status() is JobStatus.STARTED
    assert len(bench.queue()) == 0


def test_a_job_caught_between_queue_and_registry_is_not_lost(bench):
    # given the state that a worker leaves when it is killed right after it took a job
    bench.put("note", "n")
    queue = bench.queue()
    bench.redis.lmove(queue.key, queue.intermediate_queue_key)
    # then another finds it
    bench.worker("queries", lease=LEASE)
    bench.eventually(lambda: bench.reported("ran") == ["n"])
    assert bench.redis.llen(queue.intermediate_queue_key) == 0


def test_no_job_is_lost_when_workers_are_killed_at_random_moments(bench):
    names = [f"n{i}" for i in range(150)]
    for name in names:
        bench.put("nap", name, retry=Retry(max=50, enqueue_at_front=True))
    for done in (20, 60, 100):
        worker = bench.worker("queries", lease=LEASE)
        bench.eventually(lambda done=done: len(bench.reported("ran")) >= done)
        worker.kill()
    bench.worker("queries", lease=LEASE)
    bench.eventually(lambda: set(bench.reported("ran")) == set(names))


def test_broken_connections_are_opened_again(bench):
    bench.put("hold", "h")
    worker = bench.worker("queries")
    bench.eventually(lambda: bench.reported("started"))
    for _ in range(3):
        bench.redis.client_kill_filter(_type="normal", skipme=True)
        bench.redis.client_kill_filter(_type="pubsub")
        time.sleep(0.3)
    bench.put("note", "n")
    bench.eventually(lambda: bench.reported("ran") == ["n"])
    bench.release("h")
    bench.eventually(lambda: bench.reported("ran") == ["n", "h"])
    assert worker.process.poll() is None


def test_a_worker_hears_its_channels_also_after_their_connection_broke(bench):
    # given a worker that has heard a message
    bench.worker("queries")
    bench.eventually(lambda: bench.redis.publish("news", "before"))
    bench.eventually(lambda: "before" in bench.reported("heard"))

    # when the connection of its channels breaks
    bench.redis.client_kill_filter(_type="pubsub")

    # then it opens another one and hears the next message, and RQ's commands
    bench.eventually(lambda: bench.redis.publish("news", "after"))
    bench.eventually(lambda: "after" in bench.reported("heard"))
    bench.put("hold", "h")
    bench.eventually(lambda: bench.reported("started"))
    (execution,) = bench.job("h").get_executions()
    send_stop_execution_command(bench.redis, "h", execution.id)
    bench.eventually(lambda: bench.reported("stopped") == ["h"])


def test_a_suspended_worker_waits(bench):
    from rq.suspension import resume, suspend

    suspend(bench.redis)
    bench.worker("queries")
    bench.put("note", "n")
    time.sleep(1.5)
    assert bench.reported("ran") == []
    resume(bench.redis)
    bench.eventually(lambda: bench.reported("ran") == ["n"])


def test_an_idle_worker_sends_few_commands(bench):
    bench.worker(lease=15, POLL="1")

    def commands_a_second() -> float:
        began, before = time.monotonic(), bench.redis.info("stats")["total_commands_processed"]
        time.sleep(3.0)
        sent = bench.redis.info("stats")["total_commands_processed"] - before
        return sent / (time.monotonic() - began)

    # on a busy machine it takes a while until it has started
    bench.eventually(lambda: commands_a_second() < 13)


def test_a_submitted_job_wakes_an_idle_worker(bench, settings, monkeypatch):
    """Without the wake-up a job would wait for the next poll."""
    from streamer.queues import jobs as jobs_module
    from streamer.queues.jobs import Jobs

    # given a worker that polls once an hour
    monkeypatch.setattr(jobs_module, "INGEST_JOB", f"{PROGRAM}.note")
    worker = bench.worker("ingest", POLL="3600")
    for i in range(3):
        time.sleep(0.1)  # it is idle again
        Jobs(bench.redis, settings).start_ingest(f"str_{i}")
        bench.eventually(lambda i=i: f"str_{i}" in bench.reported("ran"))
    worker.kill()
