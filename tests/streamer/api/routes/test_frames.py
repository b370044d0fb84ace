"""Stored frames over HTTP: the newest, those of a range and behind an answer, and a video."""

import io
import time
from datetime import timedelta

import av
import cv2
import numpy as np
import pytest

from nvila_core.resolution.policy import Measures
from streamer.domain.frame import FrameResolution
from streamer.domain.result import Result
from streamer.domain.timestamp import rfc3339, to_datetime, utc_now

CAMERA = "rtsp://192.0.2.1/door"


def jpeg_of(brightness):
    picture = np.full((48, 64, 3), brightness, np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


@pytest.fixture
def stored(client):
    """A stream with ten frames of the last ten seconds, one brighter than the other."""
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    now = round(time.time() * 1000) / 1000
    jpegs = [jpeg_of(20 * number) for number in range(10)]
    refs = [
        client.frames.put(
            stream.id, jpeg, Measures(64, 48, change=0.0), time=now - 10 + number, pts=number
        )
        for number, jpeg in enumerate(jpegs)
    ]
    return stream, refs, jpegs


def test_the_newest_picture(api, stored):
    _, refs, jpegs = stored

    answer = api.get("/v1/streams/door/snapshot.jpg")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content == jpegs[-1]
    assert answer.headers["x-frame-time"] == rfc3339(to_datetime(refs[-1].time))
    assert answer.headers["cache-control"] == "no-store"


def test_a_stream_without_frames_and_an_unknown_one(api, client):
    client.attach(CAMERA, "dark", watches=[], probe=False)

    assert api.get("/v1/streams/dark/snapshot.jpg").json()["error"]["code"] == "NO_FRAMES"
    assert api.get("/v1/streams/no/snapshot.jpg").json()["error"]["code"] == "UNKNOWN_STREAM"


def test_the_frames_of_a_range_and_their_pictures(api, stored):
    _, refs, jpegs = stored
    since, until = (rfc3339(to_datetime(refs[n].time)) for n in (2, 7))

    answer = api.get("/v1/streams/door/frames", params={"since": since, "until": until})

    found = answer.json()["frames"]
    assert [frame["id"] for frame in found] == [ref.id for ref in refs[2:7]]
    assert [api.get(frame["url"]).content for frame in found] == jpegs[2:7]
    assert found[0]["time"] == since
    # of more than the limit, evenly chosen ones
    few = api.get("/v1/streams/door/frames?since=-1m&limit=3").json()["frames"]
    assert len(few) == 3
    assert few[0]["time"] < few[1]["time"] < few[2]["time"]


@pytest.mark.parametrize(
    "query", ["since=-1m&until=-2m", "since=yesterday", "", "since=-1m&limit=1001", "since=-1m&a=1"]
)
def test_a_range_that_is_none_is_the_callers_mistake(api, stored, query):
    answer = api.get(f"/v1/streams/door/frames?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"


def test_a_frame_that_is_gone(api, client, stored):
    stream, refs, _ = stored
    client.frames.discard(stream.id)

    for path in (
        f"/v1/frames/{stream.id}/{refs[0].id}.jpg",
        f"/v1/frames/{stream.id}/x.jpg",
        "/v1/frames/qry_0011223344556677/1-0.jpg",
    ):
        answer = api.get(path)
        assert answer.status_code == 410, path
        assert answer.json()["error"]["code"] == "FRAMES_EXPIRED"


def test_only_frames_of_streams_are_shown(api, client, stored):
    # given the picture that somebody sent with a chat
    _, _, jpegs = stored
    sent = client.frames.put(
        "qry_0011223344556677", jpegs[0], Measures(64, 48, change=0.0), time=time.time(), pts=0
    )

    assert api.get(f"/v1/frames/qry_0011223344556677/{sent.id}.jpg").status_code == 410


def test_a_video_of_a_range(api, stored):
    answer = api.get("/v1/streams/door/clip.mp4?since=-1m")

    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content), "r") as container:
        frames = list(container.decode(video=0))
    light = [float(frame.to_ndarray(format="gray").mean()) for frame in frames]
    assert light[:10] == sorted(light[:10])
    assert 9 <= frames[-1].time <= 11
    assert api.get("/v1/streams/door/clip.mp4?since=-2h&until=-1h").status_code == 409


def test_the_frames_behind_an_answer(api, client, stored):
    # given an answer about three frames, of which one is gone
    stream, refs, jpegs = stored
    times = [to_datetime(ref.time) for ref in refs[4:6]]
    result = Result(
        request_id="req_1",
        kind="caption",
        stream_id=stream.id,
        stream_name="door",
        prompt="?",
        frame_times=[utc_now() - timedelta(hours=1), *times],
        plan=[FrameResolution(grid=grid, reason="new") for grid in ((1, 1), (2, 1), (3, 2))],
    )
    client.timeline.record([result])

    found = api.get("/v1/results/req_1/frames").json()["frames"]

    assert [frame["grid"] for frame in found] == [[1, 1], [2, 1], [3, 2]]
    assert [frame["id"] for frame in found] == [None, refs[4].id, refs[5].id]
    assert found[0]["url"] is None
    assert [api.get(frame["url"]).content for frame in found[1:]] == jpegs[4:6]
    assert api.get("/v1/results/no/frames").status_code == 404


def test_frames_are_found_by_times_of_whole_milliseconds(api, client):
    # given frames at any microsecond, and a result, whose record has milliseconds
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    now = int(time.time()) - 5
    refs = [
        client.frames.put(
            stream.id, jpeg_of(9), Measures(64, 48, change=0.0), time=now + fraction, pts=0
        )
        for fraction in (0.1234, 0.2345678, 0.3459, 0.9999)
    ]
    times = [to_datetime(ref.time) for ref in refs]
    result = Result(
        request_id="req_1",
        kind="caption",
        stream_id=stream.id,
        stream_name="door",
        prompt="?",
        frame_times=times,
    )
    client.timeline.record([result])

    found = api.get("/v1/results/req_1/frames").json()["frames"]

    assert [frame["id"] for frame in found] == [ref.id for ref in refs]


def test_the_frames_behind_the_answer_to_a_query(api, client, stored):
    query = client.ask("What?", "door", max_frames=2, stale_ok=True)
    assert api.get(f"/v1/queries/{query.id}/frames").json()["frames"] == []
    _, refs, _ = stored
    client.queue.publish(
        Result(
            request_id=query.id,
            kind="answer",
            stream_id=query.stream_id,
            stream_name="door",
            prompt="What?",
            text="A door.",
            frame_times=[to_datetime(refs[-1].time)],
        ),
        owner_id=None,
    )

    (frame,) = api.get(f"/v1/queries/{query.id}/frames").json()["frames"]

    assert frame["id"] == refs[-1].id
