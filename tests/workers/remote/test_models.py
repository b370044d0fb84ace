"""Requests name a model: which worker takes them, in which order, and what is said if none does."""

import threading
from contextlib import contextmanager

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.domain.stream import StreamSpec
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.health.parts import InstallationHealth
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import QUERIES, queues_of_worker
from streamer.service import Service
from tests.support.clips import jpeg_of, picture, request
from workers.context import WorkerContext
from workers.rq.thread_worker import ThreadWorker

EYE, EAR = "acme/eye-7b", "ear:latest"


@pytest.fixture
def service(settings):
    with Service(settings) as client:
        yield client


@pytest.fixture
def own(settings, connections):
    """For frames to ask about."""
    return WorkerContext(settings=settings, connections=connections)


class Worker:
    """A worker of one model that only notes what it is asked."""

    def __init__(self, service, model, *, default, slots=1):
        self.model, self.default = model, default
        self.taken: list[tuple[str, str | None]] = []
        self.stopping = threading.Event()
        service.jobs.served.note(model)
        self.worker = ThreadWorker(
            queues_of_worker(model, default=default),
            service.connections.main,
            slots=slots,
            tier=2 if default else 1,
            kind=QUERIES,
            functions={CLIP_JOB: lambda job: self.taken.append((job["kind"], job.get("model")))},
            stopping=self.stopping,
            lease=12,
            on_failed=lambda *_: None,
            measure=lambda: {"model": model, "default": int(default), "max_model_len": 4096},
        )

    def run(self):
        self.worker.work(burst=True)
        return self.taken

    @contextmanager
    def alive(self):
        """Run in a thread."""
        ready = threading.Event()
        thread = threading.Thread(target=lambda: self.worker.work(on_ready=ready.set))
        thread.start()
        ready.wait(60)
        try:
            yield self
        finally:
            self.stopping.set()
            thread.join()


def submit(service, own, model, kind=RequestKind.QUERY, **fields):
    asked = request(own, kind, model=model, refs=[], **fields)
    service.jobs.submit(asked)
    return asked


def test_each_model_has_queues_of_its_own(service, own) -> None:
    for model in (EYE, EAR, None):
        for kind in RequestKind:
            submit(service, own, model, kind)

    # then a worker of a model takes what names it, by priority, and nothing else
    kinds = [kind.value for kind in (RequestKind.QUERY, RequestKind.WATCH, RequestKind.FILE)]
    assert Worker(service, EAR, default=False).run() == [(kind, EAR) for kind in kinds]
    # and one of the default model also what names none
    taken = Worker(service, EYE, default=True).run()
    assert set(taken) == {(kind, model) for kind in kinds for model in (EYE, None)}
    assert len(taken) == 6


def test_what_names_a_model_takes_turns_with_what_names_none(service, own) -> None:
    for model in (None, EYE):
        for _ in range(3):
            submit(service, own, model)

    taken = Worker(service, EYE, default=True).run()

    assert sorted(model or "" for _, model in taken[:2]) == ["", EYE]


def test_a_queue_of_0_1_0_is_served(service, own, connections) -> None:
    # given a job as 0.1.0 stored it, without a model
    old = request(own, RequestKind.QUERY, refs=[]).model_dump(mode="json")
    for name in ("model", "logprobs", "alert"):
        old.pop(name)
    queue = Queue("queries", connection=connections.main, serializer=JSONSerializer)
    queue.enqueue_call(CLIP_JOB, args=(old,), job_id=old["id"])

    assert Worker(service, EYE, default=True).run() == [("query", None)]


def test_an_unknown_model_is_refused_with_those_that_are_served(service) -> None:
    service.jobs.served.note(EYE)
    spec = StreamSpec(name="yard", url="rtsp://camera/yard", live=True)
    service.registry.create(spec, spec.url)

    def refused(call):
        with pytest.raises(StreamerError) as refusal:
            call()
        assert refusal.value.code is ErrorCode.UNKNOWN_MODEL
        assert refusal.value.param == "model"
        assert EYE in refusal.value.message

    refused(lambda: service.ask("What?", "yard", model="eye"))
    refused(lambda: service.watch("What?", model="eye"))
    refused(lambda: service.watches.add("yard", Watch(prompt="What?", model="eye")))
    refused(lambda: service.edit("yard", model="eye"))
    # and one that is served is taken
    assert service.edit("yard", model=EYE).model == EYE
    assert service.watches.add("yard", service.watch("What?", model=EYE)).model == EYE


def test_a_watch_and_a_query_have_the_model_of_their_stream_unless_they_name_one(
    service, own
) -> None:
    for model in (EYE, EAR):
        service.jobs.served.note(model)
    spec = StreamSpec(name="yard", url="rtsp://camera/yard", live=True, model=EYE)
    service.registry.create(spec, spec.url)
    service.frames.put(
        spec.id, jpeg_of(picture()), Measures(320, 240), time=own.clock.time(), pts=0.0
    )

    queries = [service.ask("What?", "yard"), service.ask("What?", "yard", model=EAR)]

    depths = service.jobs.depths()
    assert [depths[f"queries:{model}"] for model in (EYE, EAR)] == [1, 1]
    assert [service.jobs.position(query.id) for query in queries] == [0, 0]


def test_a_model_that_nobody_serves_now_is_waited_for_and_health_names_it(
    service, own, connections
) -> None:
    # given a worker of the default model, and a question for one that was served before
    service.jobs.served.note(EAR)
    health = InstallationHealth(connections, service.jobs, lambda: service.timeline)

    def model_worker():
        return next(p for p in health.parts(ask_database=False) if p.name == "model worker")

    with Worker(service, EYE, default=True).alive():
        assert model_worker().up
        submit(service, own, EAR)
        part = model_worker()
        assert not part.up
        words = f"No model worker serves the model {EAR}, for which requests wait (1)"
        assert words in str(part.message)
        # until a worker of it comes
        assert Worker(service, EAR, default=False).run() == [("query", EAR)]
        assert model_worker().up


def test_without_a_worker_of_the_default_model_health_says_so(service, connections) -> None:
    health = InstallationHealth(connections, service.jobs, lambda: service.timeline)
    with Worker(service, EAR, default=False).alive():
        part = next(p for p in health.parts(ask_database=False) if p.name == "model worker")
    assert not part.up
    assert "default_model" in str(part.message)


def test_running_workers_tell_their_models(service) -> None:
    with Worker(service, EYE, default=True).alive() as one:
        (reported,) = service.jobs.served.workers()
        assert (reported.name, reported.model, reported.default) == (one.worker.name, EYE, True)
        assert (reported.max_model_len, reported.trouble) == (4096, None)
        assert service.jobs.workers()["clips"] == 1
    assert service.jobs.served.workers() == []
    assert service.jobs.served.known() == [EYE]


def test_clips_that_wait_for_the_former_model_of_a_stream_are_dropped(service, own) -> None:
    # given clips of a watch that wait, and another model that its stream has got since
    asked = [submit(service, own, None, RequestKind.WATCH, watch_id="wch_1") for _ in range(2)]
    service.jobs.served.note(EYE)
    # when the next clip comes, then it waits for that model, and the others are gone
    newest = request(own, RequestKind.WATCH, model=EYE, refs=[], watch_id="wch_1")
    assert service.jobs.submit_newest(newest, 2) == 2
    assert not any(service.jobs.existing([clip.id for clip in asked]))
    depths = service.jobs.depths()
    assert (depths["watches"], depths[f"watches:{EYE}"]) == (0, 1)


def test_few_models_are_remembered(service, connections) -> None:
    for number in range(80):
        service.jobs.served.note(f"model-{number}")
    assert len(service.jobs.served.known()) == 64
    assert connections.main.ttl(redis_keys.MODELS) > 0


def test_over_http_a_watch_and_a_query_name_their_model(service, api) -> None:
    spec = StreamSpec(name="yard", url="rtsp://camera/yard", live=True)
    service.registry.create(spec, spec.url)
    service.jobs.served.note(EYE)
    body = {"prompt": "What is there?"}

    for path in ("/v1/streams/yard/watches", "/v1/queries"):
        refusal = api.post(path, json=body | {"model": "eye"})
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "UNKNOWN_MODEL")
        assert refusal.json()["error"]["param"] == "model"
    made = api.post("/v1/streams/yard/watches", json=body | {"model": EYE})
    assert (made.status_code, made.json()["model"]) == (201, EYE)
    # what GET returns, PATCH accepts
    watch = api.get("/v1/streams/yard").json()["watches"][0]
    assert watch["model"] == EYE
    assert api.patch("/v1/streams/yard", json={"model": EYE}).json()["model"] == EYE
