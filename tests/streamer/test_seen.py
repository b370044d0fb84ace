"""An answer says what it rests on: the age and the times of its pictures, and what is missing."""

import json
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.api.app import create_app
from streamer.cli.app import app
from streamer.clock import shared
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import MAX_GAPS, FrameRef, Gap
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamSpec, StreamState
from streamer.domain.timestamp import to_datetime, utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.archive import Archive
from streamer.frames.coverage import find_gaps, sampling_interval, window_gaps
from streamer.service import Service
from streamer.settings import Settings
from streamer.terminal import caveats, seen
from streamer.timeline.results import Timeline

CAMERA = "rtsp://192.0.2.1/door"
KEYFRAMES = Sampling(mode="keyframes")

pytestmark = pytest.mark.usefixtures("now")


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    with Service(settings.model_copy(update={"stale_after": None})) as opened:
        opened.first_frame_wait = 0.0
        yield opened


def attach(client: Service, **fields: Any) -> Stream:
    return client.attach(CAMERA, "door", watches=[], probe=False, **fields)


def store(client: Service, stream: Stream, ages: Sequence[float], now: float) -> None:
    """Store a frame of each of `ages`, seconds before `now`."""
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    for n, age in enumerate(sorted(ages, reverse=True)):
        measures = Measures(32, 24, change=0.0)
        client.frames.put(stream.id, jpeg, measures, time=now - age, pts=float(n))


def enter(client: Service, stream: Stream, state: StreamState, reason: str | None = None) -> None:
    """Report a state of the stream, as its ingest worker does."""
    status = client.registry.status(stream.id)
    status.state, status.reported_at = state, utc_now()
    if reason is not None:
        status.error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message=reason)
    client.registry.save_status(stream.id, status)


def request_of(client: Service, query_id: str) -> ClipRequest:
    job = Job.fetch(query_id, connection=client.connections.main, serializer=JSONSerializer)
    return ClipRequest.model_validate(job.args[0])


# The present


@pytest.mark.parametrize(
    ("sampling", "ages", "fresh"),
    [
        (Sampling(fps=1), [1], True),
        (Sampling(fps=1), [56], False),
        (Sampling(fps=30), [4], True),  # never less than five seconds
        (Sampling(fps=30), [8], False),
        (Sampling(fps=0.1), [25], True),
        (Sampling(fps=0.1), [60], False),
        (Sampling(mode="change"), [25], True),
        (Sampling(mode="change"), [60], False),
        (Sampling(mode="change", max_interval=30), [60], True),
        (KEYFRAMES, [25, 35, 45, 55], True),  # a camera with a key frame every ten seconds
        (KEYFRAMES, [60, 70, 80], False),
        (KEYFRAMES, [60, 61, 62], False),
        (Sampling(fps=1), [20, 30, 40], True),  # and one with a picture every ten seconds
    ],
)
def test_a_question_about_now_needs_a_recent_frame(
    client: Service, sampling: Sampling, ages: list[float], fresh: bool
) -> None:
    # given a stream whose newest frame is of some age
    stream = attach(client, sampling=sampling)
    store(client, stream, ages, shared().time())
    # when it is asked what is there now
    if fresh:
        assert not request_of(client, client.ask("What?", "door").id).stale
        return
    with pytest.raises(StreamerError) as caught:
        client.ask("What?", "door")
    # then an old picture is no answer
    assert caught.value.code is ErrorCode.STREAM_STALE
    assert caught.value.http_status == 409
    assert client.queries() == []


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (StreamState.RECONNECTING, "The camera is silent.", "reconnecting since"),
        (StreamState.PAUSED, None, "paused since"),
        (StreamState.RUNNING, None, "running, but sends no pictures"),
    ],
)
def test_the_refusal_says_how_old_and_in_what_state(
    client: Service, state: StreamState, reason: str | None, words: str
) -> None:
    stream = attach(client)
    store(client, stream, [56], shared().time())
    enter(client, stream, state, reason)

    with pytest.raises(StreamerError) as caught:
        client.ask("What?", "door", max_frames=4)

    message = caught.value.message
    assert "is 56 s old" in message
    assert words in message
    assert reason is None or reason.rstrip(".") in message
    assert "--stale-ok" in message
    assert len(message.splitlines()) == 1


def test_an_old_picture_may_be_accepted_and_marks_the_answer(client: Service) -> None:
    stream = attach(client)
    store(client, stream, [56], shared().time())

    request = request_of(client, client.ask("What?", "door", stale_ok=True).id)

    answer = Result.answering(request, text="A cat.")
    assert answer.stale
    assert answer.newest_frame_age is not None
    assert answer.newest_frame_age == pytest.approx(56, abs=0.01)
    assert any("Old picture" in caveat for caveat in caveats(answer))


def test_a_recent_picture_is_not_marked(client: Service) -> None:
    stream = attach(client)
    store(client, stream, [0.1], shared().time())

    request = request_of(client, client.ask("What?", "door", stale_ok=True).id)

    assert not Result.answering(request).stale
    assert caveats(Result.answering(request)) == []


def test_the_limit_is_a_setting(client: Service, settings: Settings) -> None:
    stream = attach(client)
    store(client, stream, [56], shared().time())

    with Service(settings.model_copy(update={"stale_after": 600.0})) as patient:
        assert not request_of(client, patient.ask("What?", "door").id).stale
    with Service(settings.model_copy(update={"stale_after": 30.0})) as strict:
        strict.first_frame_wait = 0.0
        with pytest.raises(StreamerError, match="last 30 s"):
            strict.ask("What?", "door")


def test_a_recording_does_not_become_old_and_its_frames_have_a_place(
    client: Service, tmp_path: Path
) -> None:
    file = tmp_path / "clip.mp4"
    file.touch()
    stream = client.attach(str(file), "clip", watches=[], probe=False)
    store(client, stream, [903, 902, 901], shared().time())

    request = request_of(client, client.ask("What?", "clip", max_frames=2).id)

    assert request.data == {"media_start": 1.0, "media_end": 2.0}
    result = Result.answering(request, text="A cat.")
    assert (result.newest_frame_age, result.gaps, result.stale) == (None, [], False)
    assert seen(result) == "from 00:01 to 00:02, 2 frames"


@pytest.mark.parametrize("old", [[], [300.0]])
def test_a_stream_that_is_being_opened_is_waited_for(client: Service, old: list[float]) -> None:
    # given a stream without a recent frame, which connects
    stream = attach(client)
    store(client, stream, old, shared().time())
    client.first_frame_wait = 60.0
    # when its first frame comes during the question
    comes = threading.Timer(0.5, lambda: store(client, stream, [0], shared().time()))
    comes.start()
    query = client.ask("What?", "door")
    comes.join()
    # then the question is about that frame
    assert query.end.timestamp() == pytest.approx(shared().time(), abs=0.01)


def test_over_http_too_the_first_frame_is_waited_for(client: Service) -> None:
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        client.first_frame_wait = 60.0
        made = api.post("/v1/streams", json={"url": CAMERA, "name": "door", "probe": False}).json()
        stream = client.stream(made["id"])
        comes = threading.Timer(0.5, lambda: store(client, stream, [0], shared().time()))
        comes.start()
        asked = api.post("/v1/queries", json={"prompt": "What?"})
        comes.join()

        assert asked.status_code == 202


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (StreamState.RECONNECTING, "Gone."),
        (StreamState.CONNECTING, "Refused."),
        (StreamState.PAUSED, None),
    ],
)
def test_a_stream_that_is_lost_is_not_waited_for(
    client: Service, state: StreamState, reason: str | None
) -> None:
    stream = attach(client)
    enter(client, stream, state, reason)
    client.first_frame_wait = 3600.0

    with pytest.raises(StreamerError) as caught:
        client.ask("What?", "door")

    assert caught.value.code is ErrorCode.NO_FRAMES


def test_on_the_command_line_an_old_picture_is_an_error_or_marked(
    client: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    stream = attach(client)
    store(client, stream, [56], shared().time())
    enter(client, stream, StreamState.RECONNECTING)

    refused = CliRunner().invoke(app, ["ask", "door", "What?", "--no-wait"])
    accepted = CliRunner().invoke(app, ["ask", "door", "What?", "--no-wait", "--stale-ok"])

    assert refused.exit_code == 1
    assert "s old" in refused.stderr
    assert accepted.exit_code == 0, accepted.output


# Ranges


def gaps_of(client: Service, **range_: Any) -> list[tuple[int, int]]:
    """Return the gaps of a question, in seconds before now."""
    now = shared().time()
    request = request_of(client, client.ask("What?", "door", **range_).id)
    return [
        (round(now - gap.start.timestamp()), round(now - gap.end.timestamp()))
        for gap in request.gaps
    ]


def close_to(found: list[tuple[int, int]], expected: list[tuple[int, int]]) -> bool:
    """Whether all gaps are the expected ones, to a second."""
    return len(found) == len(expected) and all(
        abs(a - b) <= 1 for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ages", "gaps"),
    [
        (range(600), []),
        (range(40), [(600, 39)]),  # attached 40 s ago
        (range(300, 600), [(300, 0)]),  # lost 300 s ago
        ([*range(100), *range(200, 600)], [(200, 99)]),
        ([*range(100), *range(200, 300), *range(400, 600)], [(400, 299), (200, 99)]),
        ([a for a in range(600) if a % 3 == 0], []),
    ],
)
def test_a_range_with_holes_says_so(
    client: Service, ages: Sequence[float], gaps: list[tuple[int, int]]
) -> None:
    store(client, attach(client), ages, shared().time())

    found = gaps_of(client, since="-10m", max_frames=16)

    assert close_to(found, gaps), found


def test_what_history_thins_is_no_gap(client: Service) -> None:
    stream = attach(client, history=86400.0)
    store(client, stream, [*range(0, 900, 5), *range(900, 3600, 19)], shared().time())

    assert gaps_of(client, since="-1h", max_frames=16) == []


def test_the_archive_covers_what_redis_no_longer_has(settings: Settings, tmp_path: Path) -> None:
    # given an hour in the archive but for ten minutes, and the last five minutes in Redis
    archived = settings.model_copy(update={"archive_url": str(tmp_path / "archive")})
    with Service(archived) as client:
        stream = attach(client)
        now = shared().time()
        archive = Archive(str(tmp_path / "archive"))
        for minute in [*range(60, 40, -1), *range(30, 5, -1)]:
            frames = [
                FrameRef(
                    stream_id=stream.id, id=f"{n}-0", time=now - 60 * minute + n, pts=0.0,
                    width=32, height=24, change=0.0,
                )
                for n in range(60)
            ]  # fmt: skip
            archive.write(stream.id, [(frame, b"jpeg") for frame in frames])
        store(client, stream, range(300), now)

        # when the whole hour is asked about
        found = gaps_of(client, since="-60m", max_frames=8)

    # then only the ten minutes are a gap, however few files were read
    assert close_to(found, [(2401, 1800)]), found


def test_the_frames_of_now_may_have_a_gap_too(client: Service) -> None:
    store(client, attach(client), [0, 1, 2, 90, 91], shared().time())

    assert close_to(gaps_of(client, max_frames=4), [(90, 2)])


def test_every_result_says_when_its_frames_were_taken(client: Service) -> None:
    now = shared().time()
    store(client, attach(client), range(40), now)

    query = client.ask("What?", "door", since="-10m", max_frames=4)
    result = Result.answering(request_of(client, query.id), text="A cat.")

    # the range is as asked, the frames as seen
    assert (utc_now() - query.start).total_seconds() == pytest.approx(600, abs=0.01)
    assert result.frames_from == result.frame_times[0]
    assert result.frames_to == result.frame_times[-1]
    assert len(result.frame_times) == result.frames == 4
    assert abs(result.frame_times[0].timestamp() - (now - 39)) < 0.01
    assert result.newest_frame_age is not None
    assert result.newest_frame_age == pytest.approx(0, abs=0.01)
    assert json.loads(result.model_dump_json())["frame_times"][0].endswith("Z")
    assert "No pictures: " in caveats(result)[0]


def window(start: float, times: Sequence[float], max_frames: int = 16) -> list[Gap]:
    frames = [
        FrameRef(stream_id="s", id="1-0", time=t, pts=t, width=1, height=1, change=0.0)
        for t in times
    ]
    return window_gaps(Sampling(fps=1), frames, start, start + 60, max_frames)


def test_a_window_with_a_hole_says_so() -> None:
    assert window(1000, range(1000, 1060)) == []
    assert window(1000, [*range(1000, 1060, 4)]) == []  # thinned to 16 frames
    assert window(1000, [1059], max_frames=1) == []
    (gap,) = window(1000, [*range(1000, 1010), *range(1050, 1060)])
    assert (gap.start, gap.end) == (to_datetime(1009), to_datetime(1050))


def test_the_number_of_gaps_is_bounded_and_the_longest_are_named() -> None:
    covered = [(100.0 * n, 100.0 * n + (20 if n % 2 else 80)) for n in range(200)]

    found = find_gaps(covered, 0, 20000, lambda _: 5.0)

    assert len(found) == MAX_GAPS
    assert all(gap.end - gap.start == timedelta(seconds=80) for gap in found)
    assert found == sorted(found, key=lambda gap: gap.start)


def test_a_loss_does_not_change_the_rhythm_of_a_stream() -> None:
    frames = [
        FrameRef(stream_id="s", id="1-0", time=t, pts=t, width=1, height=1, change=0.0)
        for t in (0.0, 2.0, 4.0, 3600.0, 3602.0)
    ]

    assert sampling_interval(KEYFRAMES, frames) == 2.0
    assert sampling_interval(KEYFRAMES) == pytest.approx(0.2)
    assert sampling_interval(Sampling(fps=4), frames[:1]) == 0.25


# Records


def a_result(**fields: Any) -> Result:
    request = ClipRequest.for_watch(
        StreamSpec(name="door", url=CAMERA, live=True),
        Watch(prompt="?"),
        start=to_datetime(1000),
        end=to_datetime(1060),
        frames=[
            FrameRef(stream_id="s", id="1-0", time=t, pts=t, width=1, height=1, change=0.0)
            for t in (1000.0, 1001.0)
        ],
        gaps=[Gap(start=to_datetime(1002), end=to_datetime(1060))],
    )
    assert request.kind is RequestKind.WATCH
    return Result.answering(request, text="A cat.", **fields)


def test_the_timeline_keeps_what_was_seen(tmp_path: Path) -> None:
    made = Result.model_validate_json(a_result(stale=True).model_dump_json())
    timeline = Timeline(f"sqlite:///{tmp_path / 't.db'}")

    timeline.record([made])

    assert timeline.query().results == [made]
    timeline.close()


def test_a_result_and_a_request_of_an_earlier_version_are_still_read(client: Service) -> None:
    new = ("frames_from", "frames_to", "frame_times", "newest_frame_age", "gaps", "stale")
    old = json.loads(a_result().model_dump_json(exclude=set(new)))
    assert Result.model_validate(old).frame_times == []
    store(client, attach(client), [0], shared().time())
    request = request_of(client, client.ask("What?", "door").id)
    fields = request.model_dump(mode="json", exclude={"gaps", "stale"})
    assert ClipRequest.model_validate(fields) == request
