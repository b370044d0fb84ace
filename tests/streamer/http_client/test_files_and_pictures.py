"""Files, pictures, webhooks and running queries by both HTTP clients, against the real API."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from nvila_core.resolution.policy import Measures
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client import Client, uploading
from streamer.queues.deltas import Delta, Deltas
from streamer.service import Service
from tests.support.api_server import ApiServer
from tests.support.clips import jpeg_of, picture
from tests.support.relay import Relay
from tests.support.videos import write_video

CAMERA = "rtsp://me:hunter2@192.0.2.1/door"
WAIT = 120


@pytest.fixture
def here(api_server: ApiServer) -> Service:
    """The installation, as its own machine sees it."""
    return api_server.client


@pytest.fixture
def remote(open_client, api_server: ApiServer) -> Client:
    """The installation, as another machine sees it."""
    client: Client = open_client(api_server.url)
    return client


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A short video."""
    write_video(tmp_path / "evening.mp4", seconds=1)
    return tmp_path / "evening.mp4"


def door(here: Service, frames: int = 3) -> str:
    """Attach a camera that has seen some frames; return its id."""
    stream = here.attach(CAMERA, "door", watches=[], probe=False)
    for number in range(frames):
        here.frames.put(
            stream.id,
            jpeg_of(picture(number)),
            Measures(320, 240, change=0.5),
            time=time.time() - frames + number,
            pts=float(number),
        )
    return stream.id


def answer(here: Service, query_id: str, **fields: object) -> None:
    """Publish the result of a query, as the model worker does."""
    common = {"kind": "answer", "stream_id": None, "stream_name": None, "prompt": "?"}
    here.queue.publish(Result(request_id=query_id, **common | fields), owner_id=None)


def test_a_file_is_uploaded_attached_and_deleted(
    remote: Client, here: Service, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "_PART", 1000)  # many parts

    file = remote.upload(video)

    assert (file.status, file.filename, file.bytes) == (
        "ready",
        "evening.mp4",
        video.stat().st_size,
    )
    assert here.files.path(file.id).read_bytes() == video.read_bytes()
    assert remote.files() == [here.files.get(file.id)]
    stream = remote.attach(file=file.id, name="evening", watches=["Who?"])
    assert not stream.live
    assert remote.delete_file(file.id).id == file.id
    with pytest.raises(StreamerError) as gone:
        remote.file(file.id)
    assert gone.value.code is ErrorCode.UNKNOWN_FILE


class CutLine(Relay):
    """A line that breaks after what was sent has arrived, before the answer, a few times."""

    cuts = 3
    _patched = False

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """Note which requests send a part of a file."""
        data = await super().read_request(reader)
        self._patched = self._patched or data.startswith(b"PATCH")
        return data

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        """Break the connection in place of the answer to a part of a file."""
        data = await super().read_answer(reader)
        if self.cuts and self._patched:
            self.cuts -= 1
            self._patched = False
            raise asyncio.IncompleteReadError(b"", None)
        return data


def test_an_upload_goes_on_where_the_line_broke(
    open_client, api_server: ApiServer, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "_PART", 2000)
    with CutLine(api_server.port) as line:
        remote = open_client(f"http://127.0.0.1:{line.port}", retries=8)
        file = remote.upload(video)
    assert line.cuts == 0
    assert api_server.client.files.path(file.id).read_bytes() == video.read_bytes()


def test_an_unfinished_upload_is_continued_by_its_id(
    remote: Client, here: Service, video: Path, tmp_path: Path
) -> None:
    # given an upload that a program began, and did not finish
    begun = here.files.begin("evening.mp4", video.stat().st_size)
    here.files.append(begun.id, 0, [video.read_bytes()[:1500]])
    # when
    assert remote.upload(video, resume=begun.id).id == begun.id
    # then
    assert here.files.path(begun.id).read_bytes() == video.read_bytes()
    # another file is not taken for it
    (tmp_path / "other.mp4").write_bytes(b"other")
    with pytest.raises(StreamerError) as refusal:
        remote.upload(tmp_path / "other.mp4", resume=begun.id)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST


def test_what_is_no_video_or_cannot_be_read_is_said(remote: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    with pytest.raises(StreamerError):
        remote.upload(tmp_path / "notes.txt")
    with pytest.raises(StreamerError) as refusal:
        remote.upload(tmp_path / "absent.mp4")
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    assert remote.files() == []


def test_pictures_and_a_video_of_a_camera(remote: Client, here: Service) -> None:
    door(here)

    assert remote.snapshot("door") == jpeg_of(picture(2))
    found = remote.frames("door", "-1m", limit=2)
    assert len(found.frames) == 2
    assert remote.picture(found.frames[0]).startswith(b"\xff\xd8")
    assert b"ftyp" in remote.clip("door", "-1m")[:16]
    with pytest.raises(StreamerError) as refusal:
        remote.snapshot("garden")
    assert refusal.value.code is ErrorCode.UNKNOWN_STREAM


def test_a_query_is_followed_while_it_is_answered(remote: Client, here: Service) -> None:
    # given a question about several cameras
    door(here)
    query = remote.submit("Is anybody there?", streams=["door"])
    deltas = Deltas(here.connections.main)
    deltas.add(query.id, Delta(at=0, text="No"))
    # when it is answered while a program follows it
    updates = remote.follow(query.id)
    seen = [next(updates)]
    while not seen[-1].text:
        seen.append(next(updates))
    deltas.add(query.id, Delta(at=2, text="body."))
    answer(here, query.id, text="Nobody.")
    seen += list(updates)
    # then
    assert (seen[0].type, seen[0].status, seen[0].position) == ("progress", "queued", 0)
    assert "".join(update.text for update in seen) == "Nobody."
    last = seen[-1].query
    assert last is not None
    assert last.result is not None
    assert (last.status, last.result.text) == ("done", "Nobody.")
    assert remote.frames_of(query.id).frames == []


def test_a_followed_query_that_is_unknown_is_an_error(remote: Client) -> None:
    with pytest.raises(StreamerError) as refusal:
        list(remote.follow("qry_none"))
    assert refusal.value.code is ErrorCode.UNKNOWN_QUERY


def test_a_file_is_asked_about(remote: Client, here: Service, video: Path) -> None:
    file = remote.upload(video)

    query = remote.submit("Who is there?", file=file.id, window=0.5)

    assert (query.file, query.stream, query.window) == (file.id, None, 0.5)
    assert [watch.window for watch in here.stream(query.stream_id).watches] == [0.5]
    assert remote.cancel(query.id).status == "cancelled"
    assert here.streams() == []


def test_a_range_is_summed_up(remote: Client, here: Service) -> None:
    # given a caption, and a worker
    stream_id = door(here)
    here.timeline.record(
        [
            Result(
                request_id="req_1",
                kind="caption",
                stream_id=stream_id,
                stream_name="door",
                prompt="Describe.",
                text="A cat.",
            )
        ]
    )
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            for query in here.queries():
                answer(here, query.id, text="A cat came.")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert remote.summarize("door", since="-1h", wait=WAIT).text == "A cat came."
    finally:
        ended.set()
        worker.join()
    with pytest.raises(StreamerError) as refusal:
        remote.summarize("door", since="-2h", until="-1h")
    assert refusal.value.code is ErrorCode.NOT_FOUND


def test_webhooks_are_added_changed_tried_and_removed(remote: Client, here: Service) -> None:
    made = remote.webhooks.add("https://192.0.1.1/hook", types=["incident.*"])

    assert made.secret.startswith("whsec_")
    assert [each.id for each in remote.webhooks.list()] == [made.id]
    changed = remote.webhooks.edit(made.id, description="The pager.", enabled=False)
    assert (changed.description, changed.enabled, changed.types) == (
        "The pager.",
        False,
        ["incident.*"],
    )
    assert remote.webhooks.get(made.id) == changed
    remote.webhooks.edit(made.id, enabled=True)
    tried = remote.webhooks.test(made.id)
    (delivery,) = remote.webhooks.deliveries(made.id)
    assert delivery.id == tried.id
    assert remote.webhooks.remove(made.id).id == made.id
    assert here.webhooks.all() == []
