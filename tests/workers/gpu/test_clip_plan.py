"""How many tiles the frames of a clip get, with a real engine and a real Redis."""

import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from nvila_core import Budget, SamplingParams, Video
from nvila_core.resolution.policy import Adaptive, Fixed, Measures, Native
from streamer.domain.kinds import RequestKind
from streamer.domain.timestamp import utc_now
from streamer.frames.jpeg import from_jpeg
from tests.support.clips import jpeg_of, picture, request, run
from workers import context
from workers.gpu.clip_plan import worker_load

SIGN = (20.0, 20.0, 20.0)
"""Edge strengths of a frame with small writing in it."""


def seen_by_camera(own, details, width=640, height=320):
    """Frames with measures, as the ingest worker stores them."""
    now = time.time()
    return [
        own.frames.put(
            "str_1",
            jpeg_of(picture(i, width, height)),
            Measures(width, height, detail, change=0.0),
            time=now - len(details) + i,
            pts=float(i),
        )
        for i, detail in enumerate(details)
    ]


def test_a_clip_is_tiled_by_its_measures_and_the_result_explains_it(own, model, monkeypatch):
    # given three frames of which the second shows small writing
    refs = seen_by_camera(own, [(), SIGN, ()])
    opened = []
    spied = lambda *args: opened.append(args[1:]) or from_jpeg(*args)  # noqa: E731
    monkeypatch.setattr("streamer.frames.jpeg.from_jpeg", spied)

    result = run(own, request(own, refs=refs))

    # then only that one is tiled, in as many tiles as its pixels fill
    assert [frame.grid for frame in result.plan] == [(1, 1), (4, 3), (1, 1)]
    assert [frame.reason for frame in result.plan] == [
        "little detail (0)",
        "most detail (28)",
        "little detail (0)",
    ]
    assert (result.tiles, result.vision_tokens) == (15, 135)
    # no JPEG was decoded at a larger scale than that
    assert [size for _, _, size in opened] == [(112, 112), (448, 336), (112, 112)]
    # and the model was shown exactly this
    jpegs = own.frames.load(refs)
    sizes = [(112, 112), (448, 336), (112, 112)]
    shown = [from_jpeg(jpeg, 640, 320, size) for jpeg, size in zip(jpegs, sizes, strict=True)]
    assert [image.shape[:2] for image in shown] == [(160, 320), (320, 640), (160, 320)]
    video = Video(shown, sampled=True, measures=[ref.measures for ref in refs])
    alone = model.generate(
        model.prepare([video, "What is there?"], num_video_frames=3, policy="adaptive"),
        SamplingParams(max_tokens=6),
    )
    assert (result.text, result.prompt_tokens) == (alone.text, alone.usage.prompt_tokens)


@pytest.mark.parametrize("policy", ["adaptive", "fixed:2", "native"])
@pytest.mark.parametrize("details", [[SIGN], [()], [(), SIGN, ()], [SIGN] * 3])
def test_a_clip_is_planned_once_and_its_prompt_is_that_of_the_policy(
    own, model, monkeypatch, policy, details
):
    # given a spy on every policy, and one on what the engine is asked
    calls: Counter[str] = Counter()
    asked: list[Any] = []
    for kind in (Adaptive, Fixed, Native):
        compute = kind.plan

        def spy(self, *args, compute=compute):
            calls[type(self).__name__] += 1
            return compute(self, *args)

        monkeypatch.setattr(kind, "plan", spy)
    submit = own.engine.submit
    monkeypatch.setattr(
        own.engine,
        "submit",
        lambda parts, *args, **options: (
            asked.append((parts, options["plan"])) or submit(parts, *args, **options)
        ),
    )
    own.settings.policy = policy
    refs = seen_by_camera(own, details)

    result = run(own, request(own, refs=refs))

    # then the clip was planned once
    assert calls == {policy.split(":")[0].capitalize(): 1}
    # and the prompt is the one that the policy itself gives, to the last token and pixel
    ((parts, plan),) = asked
    assert [frame.grid for frame in result.plan] == [frame.grid for frame in plan.frames]
    prompt = model.prepare(parts, plan=plan)
    media, question = parts
    if policy != "native":
        frames = media.frames if isinstance(media, Video) else [media]
        media = Video(frames, sampled=True, measures=[ref.measures for ref in refs])
    again = model.prepare(
        [media, question],
        num_video_frames=len(refs),
        policy=policy,
        budget=Budget(own.settings.clip_tokens),
    )
    assert (prompt.text, prompt.token_ids) == (again.text, again.token_ids)
    assert (prompt.pixels == again.pixels).all()
    assert prompt.plan.tiles == result.tiles == again.tiles
    assert prompt.num_tokens == result.prompt_tokens


def test_one_frame_is_planned_too(own):
    query = request(own, RequestKind.QUERY, refs=seen_by_camera(own, [SIGN]))
    assert [frame.grid for frame in run(own, query).plan] == [(4, 3)]
    plain = run(own, request(own, RequestKind.QUERY, refs=seen_by_camera(own, [()])))
    assert [(frame.grid, frame.reason) for frame in plain.plan] == [((1, 1), "little detail (0)")]
    assert plain.tiles == 1


@pytest.mark.parametrize(
    ("policy", "grids"),
    [
        ("native", [(1, 1)] * 3),
        ("fixed:2", [(2, 1)] * 3),
        ("adaptive:200", [(1, 1)] * 3),
    ],
)
def test_the_policy_is_a_setting(own, policy, grids):
    own.settings.policy = policy
    result = run(own, request(own, refs=seen_by_camera(own, [SIGN] * 3)))
    assert [frame.grid for frame in result.plan] == grids


def test_a_clip_keeps_to_its_token_budget(own):
    own.settings.clip_tokens = 60
    result = run(own, request(own, refs=seen_by_camera(own, [SIGN] * 3)))
    assert 27 < result.vision_tokens <= 60
    assert "over the budget" in result.plan[2].reason


def test_a_worker_that_is_behind_plans_fewer_tiles(own):
    refs = seen_by_camera(own, [SIGN] * 3)
    waited = {"created_at": utc_now() - timedelta(seconds=60)}
    # a live clip that waited for longer than its window
    late = run(own, request(own, refs=refs, **waited))
    assert [frame.grid for frame in late.plan] == [(1, 1)] * 3
    # recordings and queries are never late
    for kind in (RequestKind.FILE, RequestKind.QUERY):
        assert run(own, request(own, kind, refs=refs, **waited)).tiles > 3


def test_requests_that_wait_in_the_engine_are_a_load(own, monkeypatch):
    asked = request(own, RequestKind.QUERY, refs=seen_by_camera(own, [SIGN] * 3))
    stats = own.engine.stats()
    loads = []
    for waiting in (0, stats["max_num_seqs"] // 2, 3 * stats["max_num_seqs"]):
        monkeypatch.setattr(own.engine, "stats", lambda n=waiting: stats | {"waiting": n})
        loads.append(worker_load(own, asked, time.time()))
    assert loads == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("kind", "waits", "load"),
    [
        (RequestKind.WATCH, 1.0, 0.25),  # of a window of four seconds
        (RequestKind.WATCH, 30.0, 1),
        (RequestKind.QUERY, 1.0, 0.5),  # of max_query_wait
        (RequestKind.QUERY, 30.0, 1),
        (RequestKind.FILE, 30.0, 0),
    ],
)
def test_requests_that_wait_in_the_queue_make_plans_cheaper_until_none_does(own, kind, waits, load):
    asked = request(own, kind, refs=seen_by_camera(own, [SIGN] * 3))
    own.settings.max_query_wait = 2.0
    context.enter_slot(threading.Event(), wait=waits)
    started = asked.created_at.timestamp()
    assert worker_load(own, asked, started) == pytest.approx(load)
    context.enter_slot(threading.Event())
    assert worker_load(own, asked, started) == 0
