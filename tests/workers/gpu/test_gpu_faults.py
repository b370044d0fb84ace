"""Model workers whose device or engine breaks down: real processes that really restart."""

import json

import pytest
import torch

from nvila_core import NVILA
from streamer.domain.kinds import RequestKind
from streamer.errors import ErrorCode, StreamerError
from streamer.health.sick_gpus import DEVICE_LOST
from streamer.queues.models import CLIP_QUEUES
from tests.support.gpu_service import Service
from workers.gpu import worker as gpu

LONG = 150.0  # seconds: a worker imports for ten of them, and some start four times
POISON = 13

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]

pytestmark = pytest.mark.timeout(330)


@pytest.fixture
def service(redis_client, settings, worker_process, random_checkpoint):
    return Service(redis_client, settings, worker_process, random_checkpoint)


@pytest.fixture
def broken(service, tmp_path):
    """Start a worker with a fault of tests/support/programs/broken_gpu.py: `broken("lost")`."""

    def start(fault, *arguments, **env):
        mark = tmp_path / "mark"
        return service.worker(
            fault, str(mark), *arguments, program="tests.support.programs.broken_gpu", **env
        )

    return start


def answered_once(service, asked):
    published = [result for _, result in service.results.read("0-0")]
    assert sorted(r.request_id for r in published) == sorted(r.id for r in asked)
    assert service.jobs.in_flight("wch_1") == 0
    assert [service.jobs.depths()[name] for name in CLIP_QUEUES] == [0, 0, 0]
    return {result.request_id: result.error for result in published}


@pytest.mark.parametrize(
    ("fault", "expected", "env"),
    [
        ("lost", "lost its device (CUDA error: device-side assert triggered)", {}),
        pytest.param(
            "hang",
            "has not ended within 5 s",
            {"STREAMER_STEP_TIMEOUT": "5"},
            marks=pytest.mark.slow,
        ),
        pytest.param("bug", "the engine broke down", {}, marks=pytest.mark.slow),
        pytest.param("cuda", "lost its device", {"STREAMER_DEVICE": "cuda"}, marks=ON_A_GPU),
    ],
)
def test_a_worker_that_breaks_down_restarts_and_answers_everything(
    service, broken, fault, expected, env
):
    # given more jobs than slots, and a worker that breaks down over the first
    asked = service.submit(6, kind=RequestKind.WATCH)
    worker = broken(fault, "--burst", STREAMER_WORKER_SLOTS="4", ready=False, **env)
    # then the same process answers all of them, each once
    assert worker.wait(timeout=LONG) == 0, worker.output
    assert set(answered_once(service, asked).values()) == {None}
    # after one restart, whose reason is logged
    assert worker.output.count('"restarting"') == 1
    assert worker.output.count('"ready"') == 2
    assert expected in worker.output


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ErrorCode.OUT_OF_MEMORY, "does not fit"),
        (torch.AcceleratorError("CUDA error: unknown"), ErrorCode.MODEL_FAILED, "CUDA error"),
    ],
)
def test_a_device_that_cannot_take_the_model_is_reported_at_the_start(
    settings, random_checkpoint, monkeypatch, error, code, expected
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(NVILA, "from_pretrained", fail)
    settings.model = str(random_checkpoint)
    with pytest.raises(StreamerError, match=expected) as caught:
        gpu.load_engine(settings)
    assert caught.value.code is code


@pytest.mark.slow
def test_a_device_that_is_lost_for_good_ends_the_worker_with_a_sentence(service, broken):
    asked = service.submit(2)
    worker = broken("always", STREAMER_MAX_RESTARTS="1", ready=False)
    assert worker.wait(timeout=LONG) == DEVICE_LOST
    assert worker.output.count('"restarting"') == 1
    last = json.loads(worker.output.strip().splitlines()[-1])
    assert last["level"] == "error"
    assert last["event"].startswith("The worker broke down 2 times within 10 minutes and gives up")
    # and another worker answers its requests
    assert service.results.read("0-0") == []
    assert service.worker("--burst", ready=False).wait(timeout=LONG) == 0
    assert set(answered_once(service, asked).values()) == {None}


@pytest.mark.slow
def test_a_request_that_kills_every_device_is_isolated_and_no_other_suffers(service, broken):
    asked = service.submit(5, kind=RequestKind.WATCH)
    (poison,) = service.submit(kind=RequestKind.WATCH, max_tokens=POISON)
    worker = broken("poison", "--burst", ready=False)
    assert worker.wait(timeout=2 * LONG) == 0
    errors = answered_once(service, [*asked, poison])
    assert errors.pop(poison.id).code is ErrorCode.WORKER_LOST
    assert set(errors.values()) == {None}
    assert worker.output.count('"restarting"') == 3


def test_a_worker_that_is_stopped_does_not_restart(service, broken, eventually):
    # given a worker whose engine hangs
    service.submit()
    worker = broken("hang")
    worker.wait_for('"ready"')
    eventually(lambda: service.jobs.depths()["queries"] == 0)
    # when it is stopped
    worker.terminate()
    # then it ends, although the engine does not, and the job is queued for the next
    assert worker.wait() == 0
    assert '"restarting"' not in worker.output
    assert service.jobs.depths()["queries"] == 1
