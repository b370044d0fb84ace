"""Requests that fail, and engines that break down, with a real engine and a real Redis."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from nvila_core import EngineStopped, Handle, SamplingParams
from nvila_core.errors import NotFinite
from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from tests.support.clips import frames, jpeg_of, picture, request, run
from workers import context
from workers.context import BrokeDown, GiveBack
from workers.gpu.clip_job import answer_clip

BAD = 13  # tokens asked for by the request that does harm
OOM_ON_A_CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


def is_bad(item):
    return item.request.sequence.params.max_tokens == BAD


@pytest.fixture
def harm(own, monkeypatch):
    """`harm(effect)`: call `effect(work, drawn)` whenever the bad request is in a batch; `drawn` is
    what the step gives each sequence."""
    forward = own.engine.runner.forward

    def start(effect):
        def harmed(work):
            drawn = forward(work)
            return effect(work, drawn) if any(map(is_bad, work)) else drawn

        monkeypatch.setattr(own.engine.runner, "forward", harmed)

    return start


def fail_with(error):
    def effect(work, drawn):
        raise error

    return effect


def no_numbers(work, drawn):
    return [NotFinite() if is_bad(item) else each for item, each in zip(work, drawn, strict=True)]


def ask_at_once(own, *asked):
    """Run each job in a thread, as slots do. Return their results or exceptions."""

    def job(clip):
        context.enter_slot(threading.Event())
        own.jobs.submit(clip)
        try:
            answer_clip(clip.model_dump(mode="json"))
        except (GiveBack, BrokeDown) as error:
            return error
        return own.results.get(clip.id)

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(job, asked))


@pytest.mark.parametrize(
    ("effect", "code", "expected"),
    [
        (fail_with(torch.OutOfMemoryError("CUDA out of memory")), "OUT_OF_MEMORY", "fewer"),
        (fail_with(RuntimeError(OOM_ON_A_CPU)), "OUT_OF_MEMORY", "kv_cache_tokens"),
        (fail_with(RuntimeError("shapes at /secret/path")), "MODEL_FAILED", "worker's log"),
        (no_numbers, "MODEL_FAILED", "not numbers"),
    ],
    ids=["cuda-memory", "cpu-memory", "bug", "nan"],
)
def test_a_request_that_the_model_cannot_take_fails_alone(own, harm, effect, code, expected):
    harm(effect)
    asked = [request(own, max_tokens=BAD if i == 1 else 6) for i in range(4)]
    first, bad, *others = ask_at_once(own, *asked)
    assert bad.error.code == code
    assert expected in bad.error.message
    assert "/secret/path" not in bad.error.message
    assert [result.error for result in (first, *others)] == [None] * 3
    assert own.failure is None
    assert own.jobs.in_flight("wch_1") == 0


@pytest.mark.parametrize("broken", [b"no jpeg", b"", jpeg_of(picture())[:30]])
def test_a_damaged_frame_fails_its_request_alone(own, redis_client, broken):
    bad, good = request(own), request(own)
    redis_client.set(redis_keys.jpeg("str_1", bad.frames[0].id), broken, ex=60)
    failed, answered = ask_at_once(own, bad, good)
    assert failed.error.code is ErrorCode.FRAME_DAMAGED
    assert answered.error is None


def test_a_request_that_takes_too_long_times_out_alone(own):
    # given a request that takes far longer than it may, and one after it
    own.settings.job_timeout = 0.5
    slow = request(own, RequestKind.QUERY, max_tokens=3000)
    (late,) = ask_at_once(own, slow)
    own.settings.job_timeout = 60.0
    assert late.error.code is ErrorCode.TIMEOUT
    assert "job_timeout" in late.error.message
    assert run(own, request(own)).error is None
    # and the engine has released the first
    stats = own.engine.stats()
    assert (stats["running"], stats["waiting"], stats["kv_tokens"]) == (0, 0, 0)


class _Late(Handle):
    """A handle whose request ends between the time-out of a look and what follows it."""

    def __init__(self, outcome):
        super().__init__()
        self.outcome = outcome

    def result(self, timeout=None):
        try:
            return super().result(0.0 if not self.done else timeout)
        except TimeoutError:
            self.finish(self.outcome)
            raise


@pytest.mark.parametrize(
    "error", [None, TimeoutError("of the model"), MemoryError(), EngineStopped("it broke")]
)
def test_an_outcome_that_comes_as_the_look_for_it_ends_counts(own, model, monkeypatch, error):
    # given a request that ends after the look for its outcome has timed out, but before what the
    # job does next
    completion = model.generate(["Hi"], SamplingParams(max_tokens=2))
    late = _Late(completion if error is None else error)
    monkeypatch.setattr(own.engine, "submit", lambda *_, **__: late)
    # when it is waited for
    (result,) = ask_at_once(own, request(own))
    # then its own outcome counts: the time-out was of the look only
    assert late.done
    if isinstance(error, EngineStopped):
        assert isinstance(result, BrokeDown)
    elif error is None:
        assert result.error is None
        assert result.text == completion.text
    else:
        expected = "OUT_OF_MEMORY" if isinstance(error, MemoryError) else "MODEL_FAILED"
        assert result.error.code == expected


def test_a_time_out_comes_even_from_an_engine_that_does_not_step(own):
    own.settings.job_timeout = 0.3
    own.engine.step = lambda: time.sleep(0.05) or True
    assert run(own, request(own, RequestKind.QUERY)).error.code is ErrorCode.TIMEOUT


@pytest.mark.parametrize(("kind", "late"), [("watch", True), ("query", False), ("file", False)])
def test_only_live_work_expires_when_it_is_late(own, kind, late):
    # given a request that was made before a worker was there
    long_ago = utc_now() - timedelta(seconds=own.settings.job_timeout + 1)
    result = run(own, request(own, RequestKind(kind), created_at=long_ago))
    if late:
        assert result.error.code is ErrorCode.TIMEOUT
        assert "worker" in result.error.message
        assert own.engine.stats()["submitted"] == 0
    else:
        assert result.error is None


def test_a_job_that_is_no_longer_wanted_returns_unanswered(own):
    cancelled = threading.Event()
    cancelled.set()
    context.enter_slot(cancelled)
    own.engine.step = lambda: time.sleep(0.05) or True
    asked = request(own)
    with pytest.raises(GiveBack):
        answer_clip(asked.model_dump(mode="json"))
    assert own.results.get(asked.id) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access"), "illegal memory access"),
        (None, "broke down"),
    ],
    ids=["device", "bug"],
)
def test_an_engine_that_breaks_down_leaves_its_requests_to_others(
    own, harm, monkeypatch, error, expected
):
    # given a device that is lost, or a scheduler with a bug, while four requests are in the engine
    if error is not None:
        harm(fail_with(error))
    else:
        monkeypatch.setattr(own.engine.scheduler, "schedule", lambda: 1 // 0)
    asked = [request(own, max_tokens=BAD) for _ in range(4)]
    outcomes = ask_at_once(own, *asked)
    # then none is answered, not even with an error, and the worker ends with the reason
    assert {type(outcome) for outcome in outcomes} <= {BrokeDown, GiveBack}
    assert BrokeDown in {type(outcome) for outcome in outcomes}
    assert [own.results.get(clip.id) for clip in asked] == [None] * 4
    assert own.stopping.is_set()
    assert expected in own.failure
    # and one that arrives after the engine ended is not suspected
    context.enter_slot(threading.Event())
    with pytest.raises(GiveBack):
        answer_clip(request(own).model_dump(mode="json"))


def test_a_worker_that_is_stuck_releases_its_requests(own):
    # given an engine that hangs with a request in it
    failed: list[str] = []

    def step() -> bool:
        time.sleep(0.05)
        if own.engine.stats()["submitted"] and not failed:
            failed.append("it hangs")
            own.fail(failed[0])
        return True

    own.engine.step = step
    (outcome,) = ask_at_once(own, request(own))
    assert isinstance(outcome, BrokeDown)


def test_the_last_attempt_uses_the_engine_alone(own, monkeypatch):
    # given the number of requests in each batch
    sizes: dict[int, int] = {}
    forward = own.engine.runner.forward

    def counted(work):
        for item in work:
            asked = item.request.sequence.params.max_tokens
            sizes[asked] = max(sizes.get(asked, 0), len(work))
        return forward(work)

    monkeypatch.setattr(own.engine.runner, "forward", counted)
    clips = [request(own, max_tokens=40 + i) for i in range(6)]

    def job(clip):
        context.enter_slot(threading.Event(), last_attempt=clip is clips[3])
        answer_clip(clip.model_dump(mode="json"))
        return own.results.get(clip.id).error

    # when six run at once
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(job, clips)) == [None] * 6
    # then the suspect was alone, and the others were not
    assert sizes.pop(43) == 1
    assert max(sizes.values()) > 1


def test_a_suspect_that_waits_for_the_engine_can_be_stopped(own):
    # given a request that occupies the engine
    occupied, gone = threading.Event(), threading.Event()

    def occupy():
        with own.isolation.enter(alone=False, check=lambda: None):
            occupied.set()
            gone.wait(120)

    threading.Thread(target=occupy).start()
    assert occupied.wait(60)
    # when the worker is stopped while a suspect waits
    context.enter_slot(threading.Event(), last_attempt=True)
    threading.Timer(0.3, own.stopping.set).start()
    with pytest.raises(GiveBack):
        answer_clip(request(own).model_dump(mode="json"))
    gone.set()


def test_nothing_of_a_failed_request_stays_in_the_engine(own, harm):
    harm(fail_with(torch.OutOfMemoryError("CUDA out of memory")))
    run(own, request(own, max_tokens=BAD))
    assert own.engine.stats()["kv_tokens"] == 0
    assert run(own, request(own, refs=frames(own, 2))).error is None
