"""The ingest worker as a process: it hands streams over, takes them over, and reports faults."""

import json
from collections.abc import Callable
from typing import Any

from rq import Queue
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamState
from streamer.queues.jobs import INGEST
from tests.support.ingest_bench import Bench, watch


def test_streams_outlive_their_workers(
    bench: Bench,
    loopback: LoopbackCamera,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    # given a stream on the first of two workers
    spec = bench.attach(loopback.url, watch(1.0), live=True)
    bench.context.jobs.start_ingest(spec.id)
    first = worker_process("ingest", STREAMER_LEASE="3")
    eventually(lambda: bench.frames.count(spec.id))
    second = worker_process("ingest", STREAMER_LEASE="3")
    assert "stream_state" not in second.output
    # when it is killed, the second takes over and continues its counters
    first.kill()
    count, decoded = bench.frames.count(spec.id), bench.status(spec).counters.decoded
    eventually(lambda: bench.frames.count(spec.id) > count + 1)
    assert bench.status(spec).state is StreamState.RUNNING
    eventually(lambda: bench.status(spec).counters.decoded > decoded)
    lines = [json.loads(line) for line in second.output.splitlines() if "stream_state" in line]
    assert [line["state"] for line in lines] == ["connecting", "running"]
    # when a stream is detached, its slot is freed
    other = bench.attach(loopback.url, live=True, name="other")
    bench.context.jobs.start_ingest(other.id)
    eventually(lambda: bench.frames.count(other.id))
    bench.registry.delete(other.id)
    bench.context.jobs.stop_ingest(other.id)
    eventually(lambda: bench.frames.count(other.id) == 0)
    # when the second is stopped, it gives the stream back
    second.terminate()
    assert second.wait() == 0
    assert bench.context.jobs.depths()[INGEST] == 1


def test_a_stream_in_a_queue_of_an_earlier_release_is_run(
    bench: Bench,
    loopback: LoopbackCamera,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    """The name of the job is a contract with the queue: it was once the path of a function."""
    spec = bench.attach(loopback.url, live=True)
    queue = Queue(INGEST, connection=bench.context.connections.main, serializer=JSONSerializer)
    queue.enqueue_call(
        "workers.ingest.run_stream", args=(spec.id,), timeout=-1, job_id=f"ingest-{spec.id}"
    )
    worker_process("ingest")
    eventually(lambda: bench.frames.count(spec.id))


def test_edits_are_announced_to_it(
    bench: Bench, worker_process: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    # given a worker that runs a paused stream
    spec = bench.attach("rtsp://127.0.0.1:9/none", live=True, paused=True)
    bench.context.jobs.start_ingest(spec.id)
    worker = worker_process("ingest")
    eventually(lambda: bench.status(spec).state is StreamState.PAUSED)
    # when something that is no id is announced
    main = bench.context.connections.main
    assert main.publish(redis_keys.STREAM_EDITED, b"\xff") == 1
    # then it still listens, and follows an edit
    bench.registry.update(spec.id, paused=False)
    eventually(lambda: bench.status(spec).state is not StreamState.PAUSED)
    assert main.publish(redis_keys.STREAM_EDITED, spec.id) == 1
    worker.terminate()
    assert worker.wait() == 0


def test_without_redis_it_reports_so_and_exits(worker_process: Callable[..., Any]) -> None:
    worker = worker_process(
        "ingest",
        ready=False,
        STREAMER_REDIS_URL="redis://:hunter2@127.0.0.1:1/0",
        STREAMER_LOG_LEVEL="info",
    )
    assert worker.wait() == 1
    lines = worker.output.strip().splitlines()
    assert len(lines) == 1
    assert "hunter2" not in lines[0]
