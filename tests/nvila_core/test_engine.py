"""The engine: the same answers as alone, fair admission, and failures that stay alone."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvila_core import (
    NVILA,
    Engine,
    EngineStopped,
    NVILAError,
    PromptTooLong,
    SamplingParams,
    Video,
)
from nvila_core.random_checkpoint import write_checkpoint

WAIT = 60


@pytest.fixture
def model(tiny_folder: Path) -> NVILA:
    """A model of the test's own, for an engine to use alone."""
    return NVILA.from_pretrained(tiny_folder)


@pytest.fixture
def engine(model: NVILA) -> Iterator[Engine]:
    """A running engine."""
    with Engine(model, max_num_seqs=4, kv_cache_tokens=8192) as engine:
        yield engine


def mix(pictures: Any, count: int) -> list[tuple[list[Any], SamplingParams]]:
    """Requests of every kind: text, tiled image, several images, video; greedy and seeded."""
    kinds = (
        lambda i: [f"Question {i}"],
        lambda i: [pictures.image(200, 100 + i), "What?"],
        lambda i: [pictures.image(), pictures.image(), "Compare."],
        lambda i: [Video([pictures.image() for _ in range(3)], sampled=True), "Describe."],
    )
    return [
        (
            kinds[i % 4](i),
            SamplingParams(
                max_tokens=3 + 5 * i % 17, ignore_eos=i % 2 == 0, temperature=i // 8 * 1.0, seed=i
            ),
        )
        for i in range(count)
    ]


def test_answers_equal_those_alone_whatever_else_runs(
    model: NVILA, tiny: NVILA, pictures: Any
) -> None:
    # given what every request answers alone
    requests = mix(pictures, 16)
    alone = [tiny.generate(parts, params) for parts, params in requests]
    # when they are submitted from many threads at once, more than fit
    with Engine(model, max_num_seqs=5, kv_cache_tokens=700) as engine:
        handles: list[Any] = [None] * len(requests)

        def submit(i: int) -> None:
            handles[i] = engine.submit(*requests[i], priority=i % 3)

        threads = [threading.Thread(target=submit, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # then each gets its own answer
        for handle, expected in zip(handles, alone, strict=True):
            answer = handle.result(WAIT)
            assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
            assert (answer.finish_reason, answer.usage) == (expected.finish_reason, expected.usage)
            assert min(answer.timings.queue_ms, answer.timings.encode_ms) >= 0
            assert answer.timings.generate_ms > 0
    stats = engine.stats()
    assert (stats["finished"], stats["running"], stats["waiting"], stats["kv_tokens"]) == (
        16,
        0,
        0,
        0,
    )
    assert stats["tiles"] == sum(answer.usage.tiles for answer in alone)


def test_stream_adds_up_to_the_text(engine: Engine, pictures: Any) -> None:
    handles = [engine.submit(*request) for request in mix(pictures, 6)]

    async def read(handle: Any) -> str:
        return "".join([delta async for delta in handle.stream()])

    async def read_all() -> list[str]:
        return await asyncio.gather(*(read(handle) for handle in handles))

    streamed = asyncio.run(asyncio.wait_for(read_all(), WAIT))
    assert streamed == [handle.result(WAIT).text for handle in handles]
    # and a stream can be read again after the end
    assert asyncio.run(read(handles[0])) == streamed[0]


def test_stepping_by_hand_admits_by_priority_then_arrival(model: NVILA) -> None:
    # given room for one request at a time
    engine = Engine(model, max_num_seqs=1)
    short = SamplingParams(max_tokens=1)
    handles = {p: engine.submit([f"p{p}"], short, priority=p) for p in (0, 2, 1)}
    again = engine.submit(["p2 again"], short, priority=2)
    ended: list[str] = []
    # when it is stepped by hand
    while engine.step():
        ended += [
            n
            for n, h in {**{str(k): v for k, v in handles.items()}, "2b": again}.items()
            if h.done and n not in ended
        ]
    ended += [n for n in ("0",) if n not in ended]
    # then the urgent ones came first
    assert ended == ["2", "2b", "1", "0"]


def test_admission_keeps_within_the_cache(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=8, kv_cache_tokens=320)
    handles = [
        engine.submit(["hello"], SamplingParams(max_tokens=40, ignore_eos=True)) for _ in range(6)
    ]
    most = 0
    while engine.step():
        stats = engine.stats()
        assert stats["kv_tokens"] <= 320
        most = max(most, stats["running"])
    assert 2 <= most < 6
    assert all(len(handle.result(0).token_ids) == 40 for handle in handles)


def test_request_that_can_never_fit_is_refused_at_once(model: NVILA) -> None:
    engine = Engine(model, kv_cache_tokens=80)
    with pytest.raises(PromptTooLong, match="holds 80"):
        engine.submit(["x" * 100])
    # a long answer is cut to what the cache holds
    handle = engine.submit(["x"], SamplingParams(max_tokens=10_000, ignore_eos=True))
    while engine.step():
        pass
    assert handle.result(0).finish_reason == "length"


def test_failing_request_fails_alone(
    model: NVILA, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a prompt whose pixels the tower cannot take
    engine = Engine(model)
    broken = model.prepare([pictures.image(), "broken"])
    object.__setattr__(broken, "pixel_values", broken.pixel_values[:, :, :50])
    good = [
        engine.submit([pictures.image(), "good"], SamplingParams(max_tokens=4)) for _ in range(2)
    ]
    bad = engine.submit(broken, SamplingParams(max_tokens=4))
    # when they are encoded together
    while engine.step():
        pass
    # then only it fails, with the exception it caused
    with pytest.raises(RuntimeError):
        bad.result(0)
    assert [handle.result(0).usage.tiles for handle in good] == [1, 1]
    assert engine.stats()["failed"] == 1

    async def read() -> list[str]:
        return [delta async for delta in bad.stream()]

    with pytest.raises(RuntimeError):
        asyncio.run(read())


def test_failure_while_decoding_fails_alone(model: NVILA, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    good = engine.submit(["good"], SamplingParams(max_tokens=8, ignore_eos=True))
    bad = engine.submit(["bad"], SamplingParams(max_tokens=8, ignore_eos=True))
    engine.step()
    engine._running[1].sequence.cache = object()  # what the model cannot use
    while engine.step():
        pass
    assert len(good.result(0).token_ids) == 8
    with pytest.raises(Exception, match="object"):
        bad.result(0)


def test_cancel_before_and_while_running(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=1)
    endless = SamplingParams(max_tokens=1000, ignore_eos=True)
    running, waiting = engine.submit(["a"], endless), engine.submit(["b"], endless)
    for _ in range(3):
        engine.step()
    running.cancel()
    waiting.cancel()
    assert engine.step() is False
    assert (running.result(0).finish_reason, len(running.result(0).token_ids)) == ("cancelled", 3)
    assert (waiting.result(0).finish_reason, waiting.result(0).token_ids) == ("cancelled", [])
    assert engine.stats()["cancelled"] == 2
    running.cancel()  # after the end it does nothing


def test_stop_fails_what_is_left_and_start_begins_anew(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=1)
    engine.start()
    handles = [
        engine.submit(["a"], SamplingParams(max_tokens=4000, ignore_eos=True)) for _ in range(3)
    ]
    engine.stop()
    for handle in handles:
        with pytest.raises(EngineStopped, match="submit again"):
            handle.result(WAIT)
    with pytest.raises(EngineStopped):
        engine.submit(["b"])
    engine.start()
    assert (
        engine.submit(["c"], SamplingParams(max_tokens=2, ignore_eos=True)).result(WAIT).text
        is not None
    )
    engine.stop()


def test_result_times_out_and_the_request_goes_on(model: NVILA) -> None:
    engine = Engine(model)
    handle = engine.submit(["a"], SamplingParams(max_tokens=2))
    with pytest.raises(TimeoutError):
        handle.result(0)
    while engine.step():
        pass
    assert handle.result(0).usage.completion_tokens >= 1


def test_wrong_requests_are_refused_in_the_callers_thread(engine: Engine) -> None:
    with pytest.raises(NVILAError, match="policy"):
        engine.submit(["x"], policy="clairvoyant")
    with pytest.raises(NVILAError, match="empty"):
        engine.submit([""])
    with pytest.raises(NVILAError, match="at least 1"):
        Engine(engine.model, max_num_seqs=0)


def test_options_of_prepare_pass_through(engine: Engine, pictures: Any) -> None:
    video = Video([pictures.image() for _ in range(6)])
    handle = engine.submit([video, "x"], SamplingParams(max_tokens=1), num_video_frames=4)
    assert handle.result(WAIT).usage.tiles == 4


def test_s2_model_runs_in_the_engine(tmp_path: Path, pictures: Any) -> None:
    from nvila_core.random_checkpoint import Shape

    shape = Shape(scales=2, projector="mlp_downsample_2x2_fix")
    model = NVILA.from_pretrained(write_checkpoint(tmp_path / "s2", shape))
    parts = [pictures.image(200, 100), "x"]
    expected = model.generate(parts, SamplingParams(max_tokens=5))
    with Engine(model) as engine:
        handles = [engine.submit(parts, SamplingParams(max_tokens=5)) for _ in range(2)]
        assert [h.result(WAIT).token_ids for h in handles] == [expected.token_ids] * 2
