"""The engine: the same answers as without it, fair admission, no repeated computation, and failures
that affect one request only.
"""

import asyncio
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_core import (
    NVILA,
    DeadlineExceeded,
    DeviceLost,
    Engine,
    EngineStopped,
    NVILAError,
    PromptTooLong,
    QueueFull,
    SamplingParams,
    Video,
)
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.engine.engine import BLOCK_SIZE
from nvila_core.engine.prefix_keys import hash_tiles

WAIT = 120
FOREVER = SamplingParams(max_tokens=100_000, ignore_eos=True)


@pytest.fixture
def model(tiny_folder: Path) -> NVILA:
    """A model that only this test's engine uses."""
    return NVILA.from_pretrained(tiny_folder)


@pytest.fixture
def engine(model: NVILA) -> Iterator[Engine]:
    """A running engine."""
    with Engine(model, max_num_seqs=4, kv_cache_tokens=8192) as engine:
        yield engine


def exactly(tokens: int) -> SamplingParams:
    """Return parameters of a greedy answer of fixed length."""
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def run(engine: Engine) -> None:
    """Step until no request is left."""
    while engine.step():
        pass


def mix(pictures: Any, count: int) -> list[tuple[list[Any], SamplingParams]]:
    """Return requests of every kind: text, tiled image, images, video; greedy and seeded."""
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


def test_answers_equal_those_without_an_engine(model: NVILA, tiny: NVILA, pictures: Any) -> None:
    # given the answer to every request without an engine
    requests = mix(pictures, 16)
    alone = [tiny.generate(parts, params) for parts, params in requests]
    # when all are submitted from many threads, more than fit
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
            assert answer.finish_reason == expected.finish_reason
            assert answer.usage.vision_tokens == expected.usage.vision_tokens
            assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
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


def test_stepping_by_hand_admits_by_priority_then_deadline_then_arrival(model: NVILA) -> None:
    # given room for one request at a time
    engine = Engine(model, max_num_seqs=1)
    plan = [("low", 0, None), ("high", 2, None), ("soon", 2, 50.0), ("middle", 1, None)]
    plan.append(("high again", 2, None))
    handles = {
        name: engine.submit([name], exactly(2), priority=p, deadline=d) for name, p, d in plan
    }
    ended: list[str] = []
    # when it is stepped by hand
    while engine.step():
        ended += [name for name, h in handles.items() if h.done and name not in ended]
    # then those of higher priority ended first
    assert [*ended, "low"] == ["soon", "high", "high again", "middle", "low"]


def test_higher_priority_preempts_a_running_request_which_resumes_later(
    model: NVILA, tiny: NVILA
) -> None:
    # given a full engine
    engine = Engine(model, max_num_seqs=1)
    slow = engine.submit(["a long story"], exactly(40))
    for _ in range(20):
        engine.step()
    # when a request of higher priority arrives
    quick = engine.submit(["a question"], exactly(3), priority=1)
    while not quick.done:
        assert engine.step()
    # then it ended first, and the other continued where it was
    assert not slow.done
    run(engine)
    assert slow.result(0).token_ids == tiny.generate(["a long story"], exactly(40)).token_ids
    assert engine.stats()["preemptions"] == 1


def test_decoding_more_than_fits_preempts_the_last_request(model: NVILA, tiny: NVILA) -> None:
    # given prompts that fit together and answers that do not
    engine = Engine(model, max_num_seqs=8, kv_cache_tokens=320)
    handles = [engine.submit([f"hello {i}"], exactly(90)) for i in range(4)]
    # when
    most = 0
    while engine.step():
        stats = engine.stats()
        assert stats["kv_tokens"] + stats["kv_reusable"] <= 320
        most = max(most, stats["running"])
    # then all answers are complete, because some requests waited
    assert most >= 2
    assert engine.stats()["preemptions"] > 0
    for i, handle in enumerate(handles):
        assert handle.result(0).token_ids == tiny.generate([f"hello {i}"], exactly(90)).token_ids


def test_questions_on_one_clip_encode_and_prefill_it_once(model: NVILA, pictures: Any) -> None:
    # given several questions on one clip, submitted together
    engine = Engine(model)
    video = Video([pictures.image() for _ in range(4)], sampled=True)
    handles = [engine.submit([video, f"question {i}"], exactly(3)) for i in range(5)]
    # when
    run(engine)
    # then one computed the clip, and the others found it in the cache
    usages = [handle.result(0).usage for handle in handles]
    assert engine.stats()["encoded_tiles"] == 4
    assert [usage.cached_tiles for usage in usages] == [0, 4, 4, 4, 4]
    assert usages[0].cached_tokens == 0
    assert all(u.cached_tokens >= u.vision_tokens for u in usages[1:])
    # and so does one that arrives after all of them have ended
    later = engine.submit([video, "one more"], exactly(1))
    run(engine)
    assert later.result(0).usage.cached_tokens >= usages[0].vision_tokens


def test_a_still_camera_encodes_changed_tiles_only(
    model: NVILA, tiny: NVILA, pictures: Any
) -> None:
    # given two windows that share one of two frames, at another place
    engine = Engine(model)
    a, b, c = (pictures.image() for _ in range(3))
    windows = [[a, b, "What?"], [b, c, "What?"]]
    # when
    answers = []
    for window in windows:
        handle = engine.submit(window, exactly(4))
        run(engine)
        answers.append(handle.result(0))
    # then the second window encodes one tile, and its answer is the right one
    assert [answer.usage.cached_tiles for answer in answers] == [0, 1]
    assert engine.stats()["encoded_tiles"] == 3
    assert answers[1].token_ids == tiny.generate(windows[1], exactly(4)).token_ids


def test_with_a_tolerance_sensor_noise_is_not_encoded_again(model: NVILA, pictures: Any) -> None:
    engine = Engine(model, tile_tolerance=0.03)
    still = np.full((112, 112, 3), 120, np.uint8)
    noisy = (still + np.random.default_rng(1).integers(-3, 4, still.shape)).astype(np.uint8)
    usages = []
    for picture in (still, noisy, pictures.array()):
        handle = engine.submit([Image.fromarray(picture), "What?"], exactly(2))
        run(engine)
        usages.append(handle.result(0).usage)
    assert [usage.cached_tiles for usage in usages] == [0, 1, 0]


def test_a_tile_is_kept_as_itself_where_the_one_it_resembles_is_gone(
    model: NVILA, tiny: NVILA, pictures: Any
) -> None:
    # given an engine that keeps the features of one tile, and has a request about a similar one
    features = model.encode_tiles(torch.zeros(1, 3, 112, 112))
    engine = Engine(
        model, max_num_seqs=1, tile_tolerance=0.03, tile_cache_bytes=features.nbytes * 3 // 2
    )
    still = np.full((112, 112, 3), 120, np.uint8)
    noisy = (still + np.random.default_rng(1).integers(-3, 4, still.shape)).astype(np.uint8)
    asks = [  # no common prefix, so that all need the features of their tiles
        [name, Image.fromarray(picture)]
        for name, picture in (("One", still), ("Two", noisy), ("Three", pictures.array()))
    ]
    first, similar, other = (hash_tiles(model.prepare(ask))[0] for ask in asks)
    engine.submit(asks[0], exactly(2))
    run(engine)
    assert engine.tile_cache.get(first) is not None
    # when a third one takes its place first
    asked = engine.submit(asks[1], exactly(6))
    engine.submit(asks[2], exactly(2), priority=1)
    run(engine)
    # then the similar tile is encoded, kept as what it is, and answered about
    assert [engine.tile_cache.get(key) is not None for key in (first, similar, other)] == [
        False,
        True,
        False,
    ]
    assert asked.result(0).usage.cached_tiles == 0
    assert asked.result(0).token_ids == tiny.generate(asks[1], exactly(6)).token_ids
    assert engine.stats()["preemptions"] == 0


def test_a_long_prompt_does_not_stall_decoding(model: NVILA, pictures: Any) -> None:
    # given a decoding request, and then one whose prompt takes many steps
    engine = Engine(model, max_num_batched_tokens=16, step_tiles=2)
    decoding = engine.submit(["talk"], FOREVER)
    for _ in range(5):
        engine.step()
    [request] = engine.scheduler.running
    before = len(request.sequence.token_ids)
    prefilling = engine.submit([Video([pictures.image() for _ in range(8)]), "x"], exactly(1))
    # when
    steps = 0
    while not prefilling.done:
        engine.step()
        steps += 1
    # then the first one got a token at every step
    assert steps > 5
    assert len(request.sequence.token_ids) - before == steps
    decoding.cancel()
    run(engine)


def test_a_request_that_can_never_fit_is_refused_at_once(model: NVILA) -> None:
    engine = Engine(model, kv_cache_tokens=80)
    with pytest.raises(PromptTooLong, match="holds 80"):
        engine.submit(["x" * 100])
    # a long answer is cut to what the cache holds
    handle = engine.submit(["x"], FOREVER)
    run(engine)
    assert handle.result(0).finish_reason == "length"
    assert handle.result(0).usage.prompt_tokens + len(handle.result(0).token_ids) == 80


def test_a_failing_picture_fails_alone(model: NVILA, pictures: Any) -> None:
    # given a prompt whose pixels the tower cannot take
    engine = Engine(model)
    broken = model.prepare([pictures.image(), "broken"])
    broken = replace(broken, pixels=broken.pixels[:, :50])
    good = [engine.submit([pictures.image(), "good"], exactly(4)) for _ in range(2)]
    bad = engine.submit(broken, exactly(4))
    # when they are encoded together
    run(engine)
    # then only it fails, with the exception it caused
    with pytest.raises(RuntimeError):
        bad.result(0)
    assert [handle.result(0).usage.tiles for handle in good] == [1, 1]
    assert engine.stats()["failed"] == 1
    assert engine.stats()["kv_tokens"] == 0

    async def read() -> list[str]:
        return [delta async for delta in bad.stream()]

    with pytest.raises(RuntimeError):
        asyncio.run(read())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), ValueError("odd")])
def test_a_failure_while_generating_fails_alone(
    model: NVILA, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # given two decoding requests, one of which the language model fails on
    engine = Engine(model)
    good, bad = (engine.submit([name], exactly(8)) for name in ("good", "bad"))
    for _ in range(2):
        engine.step()
    own = engine.scheduler.running[1].blocks[-1]
    forward_step = model.language.forward_step

    def forward_or_fail(embeds: Any, positions: Any, batch: Any, rows: Any) -> Any:
        if not bad.done and own in batch.slots // BLOCK_SIZE:
            raise error
        return forward_step(embeds, positions, batch, rows)

    monkeypatch.setattr(model.language, "forward_step", forward_or_fail)
    # when
    run(engine)
    # then
    assert len(good.result(0).token_ids) == 8
    with pytest.raises(type(error), match=str(error)):
        bad.result(0)
    assert engine.stats()["kv_tokens"] == 0


def test_a_step_that_ran_out_of_memory_is_freed_before_it_is_tried_in_parts(
    model: NVILA, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a language model that has no room for two requests at once
    engine = Engine(model)
    handles = [engine.submit([name], exactly(2)) for name in ("one", "two")]
    forward_step = model.language.forward_step
    large: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def forward_or_fail(embeds: Any, positions: Any, batch: Any, rows: Any) -> Any:
        alive.extend(tensor() is not None for tensor in large)
        if len(batch.order) > 1:
            activations = torch.zeros(1000)
            large.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")
        return forward_step(embeds, positions, batch, rows)

    monkeypatch.setattr(model.language, "forward_step", forward_or_fail)
    # when
    run(engine)
    # then both are answered, and no try found the tensors of the failed one in memory
    assert [len(handle.result(0).token_ids) for handle in handles] == [2, 2]
    assert alive
    assert not any(alive)


def test_logits_that_are_not_numbers_fail_alone_and_do_not_leak(
    model: NVILA, tiny: NVILA, pictures: Any
) -> None:
    # given a picture that the tower turns into NaN
    engine = Engine(model, kv_cache_tokens=256)
    broken = model.prepare([pictures.image(), "broken"])
    nothing = replace(broken.processor, mean=(float("nan"),) * 3)
    broken = replace(broken, processor=nothing)
    bad = engine.submit(broken, exactly(4))
    good = engine.submit(["good"], exactly(8))
    # when
    run(engine)
    # then
    with pytest.raises(NVILAError, match="not numbers"):
        bad.result(0)
    assert good.result(0).token_ids == tiny.generate(["good"], exactly(8)).token_ids
    # and the next requests to use its blocks are not affected
    later = [engine.submit([f"later {i}"], exactly(12)) for i in range(4)]
    run(engine)
    for i, handle in enumerate(later):
        assert handle.result(0).token_ids == tiny.generate([f"later {i}"], exactly(12)).token_ids


def test_a_lost_device_ends_the_engine_and_every_request(
    model: NVILA, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = Engine(model)
    handles = [engine.submit([f"{i}"], exactly(4)) for i in range(3)]
    monkeypatch.setattr(model.language, "forward_step", lose)
    # when the device fails during a step
    engine.start()
    # then every request fails with the reason, and new ones are refused
    for handle in handles:
        with pytest.raises(DeviceLost, match="illegal memory access"):
            handle.result(WAIT)
    with pytest.raises(DeviceLost):
        engine.submit(["more"])
    engine.stop()
    with pytest.raises(DeviceLost):
        engine.start()


def test_cancel_before_and_while_running_frees_memory_at_once(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=1)
    running, waiting = engine.submit(["a"], FOREVER), engine.submit(["b"], FOREVER)
    for _ in range(3):
        engine.step()
    assert engine.stats()["kv_tokens"] > 0
    running.cancel()
    waiting.cancel()
    assert engine.step() is False
    assert engine.stats()["kv_tokens"] == 0
    assert (running.result(0).finish_reason, len(running.result(0).token_ids)) == ("cancelled", 3)
    assert (waiting.result(0).finish_reason, waiting.result(0).token_ids) == ("cancelled", [])
    assert engine.stats()["cancelled"] == 2
    running.cancel()  # after the end it does nothing


def test_an_answer_that_would_never_end_has_no_more_than_max_tokens(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=2)
    handles = [engine.submit(["a"], exactly(tokens)) for tokens in (1, 7, 40)]
    run(engine)
    answers = [handle.result(0) for handle in handles]
    assert [len(answer.token_ids) for answer in answers] == [1, 7, 40]
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(model: NVILA) -> None:
    now = [0.0]
    engine = Engine(model, max_num_seqs=1, clock=lambda: now[0])
    running = engine.submit(["a"], FOREVER, deadline=5.0)
    waiting = engine.submit(["b"], FOREVER, deadline=5.0)
    unhurried = engine.submit(["c"], exactly(2))
    engine.step()
    now[0] = 5.1
    run(engine)
    for handle in (running, waiting):
        with pytest.raises(DeadlineExceeded, match="within 5 s"):
            handle.result(0)
    assert len(unhurried.result(0).token_ids) == 2
    with pytest.raises(NVILAError, match="deadline"):
        engine.submit(["d"], deadline=0.0)


def test_stop_fails_unfinished_requests_and_start_runs_again(model: NVILA) -> None:
    engine = Engine(model, max_num_seqs=1)
    engine.start()
    handles = [engine.submit(["a"], FOREVER) for _ in range(3)]
    engine.stop()
    for handle in handles:
        with pytest.raises(EngineStopped, match="submit again"):
            handle.result(WAIT)
    with pytest.raises(EngineStopped):
        engine.submit(["b"])
    engine.start()
    assert engine.submit(["c"], exactly(2)).result(WAIT).text is not None
    engine.stop()


def test_more_waiting_requests_than_allowed_are_refused(model: NVILA) -> None:
    # given as many as may wait, which nothing has looked at yet
    engine = Engine(model, max_num_seqs=1, max_waiting=2)
    first = engine.submit(["a"], FOREVER)
    second = engine.submit(["b"], exactly(2))
    # then one more is refused, and says what to do
    with pytest.raises(QueueFull, match="2 requests waiting, as many as max_waiting allows"):
        engine.submit(["c"])
    # when the first runs
    engine.step()
    # then another may wait instead of it, and no more
    third = engine.submit(["c"], exactly(2))
    with pytest.raises(QueueFull):
        engine.submit(["d"])
    first.cancel()
    run(engine)
    assert [h.result(0).usage.completion_tokens for h in (second, third)] == [2, 2]
    assert engine.stats()["submitted"] == 3


def test_result_times_out_and_the_request_continues(model: NVILA) -> None:
    engine = Engine(model)
    handle = engine.submit(["a"], SamplingParams(max_tokens=2))
    with pytest.raises(TimeoutError):
        handle.result(0)
    run(engine)
    assert handle.result(0).usage.completion_tokens >= 1


def test_wrong_requests_are_refused_in_the_callers_thread(engine: Engine) -> None:
    with pytest.raises(NVILAError, match="policy"):
        engine.submit(["x"], policy="clairvoyant")
    with pytest.raises(NVILAError, match="empty"):
        engine.submit([""])
    wrong: list[dict[str, Any]] = [{"max_num_seqs": 0}, {"step_tiles": 0}]
    for sizes in wrong:
        with pytest.raises(NVILAError, match="at least 1"):
            Engine(engine.model, **sizes)
    with pytest.raises(NVILAError, match="tile_tolerance"):
        Engine(engine.model, tile_tolerance=1.5)


def test_options_of_prepare_pass_through(engine: Engine, pictures: Any) -> None:
    video = Video([pictures.image() for _ in range(6)])
    handle = engine.submit([video, "x"], SamplingParams(max_tokens=1), num_video_frames=4)
    assert handle.result(WAIT).usage.tiles == 4


def test_s2_model_runs_in_the_engine(tmp_path: Path, pictures: Any) -> None:
    shape = Shape(scales=2, projector="mlp_downsample_2x2_fix")
    model = NVILA.from_pretrained(write_checkpoint(tmp_path / "s2", shape))
    parts = [pictures.image(200, 100), "x"]
    expected = model.generate(parts, SamplingParams(max_tokens=5))
    with Engine(model) as engine:
        handles = [engine.submit(parts, SamplingParams(max_tokens=5)) for _ in range(2)]
        assert [h.result(WAIT).token_ids for h in handles] == [expected.token_ids] * 2
