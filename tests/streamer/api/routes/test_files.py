"""Uploaded files: forms, resumable uploads by tus, limits, and recordings made of them."""

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from streamer.api.app import create_app
from streamer.domain import timestamp
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from streamer.settings import Settings
from streamer.sources.files import Files, UploadedFile
from tests.support.videos import write_video

TUS = {"Tus-Resumable": "1.0.0"}
DATA = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    """A short video."""
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=2.0)
    return path.read_bytes()


def stored(settings: Settings) -> list[str]:
    return sorted(p.name for p in (settings.data_dir / "files").glob("file_*"))


def test_a_form_is_stored_and_described(api: TestClient, settings: Settings, video: bytes) -> None:
    # when a person uploads a video as a form, which has other fields too
    answer = api.post(
        "/v1/files", files={"file": ("../Yard \u00e9.mp4", video)}, data={"purpose": "user_data"}
    )
    # then it is described by what it holds, and can be found, read in part, and deleted
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert file["status"] == "ready"
    assert file["bytes"] == file["received"] == len(video)
    assert file["filename"] == "../Yard \u00e9.mp4"
    assert (file["media"]["codec"], file["media"]["duration"]) == (
        "h264",
        pytest.approx(2, abs=0.2),
    )
    assert api.get("/v1/files").json()["files"] == [file]
    assert api.get(f"/v1/files/{file['id']}").json() == file
    content = api.get(f"/v1/files/{file['id']}/content", headers={"Range": "bytes=4-7"})
    assert (content.status_code, content.content) == (206, video[4:8])
    assert api.delete(f"/v1/files/{file['id']}").status_code == 200
    assert api.get(f"/v1/files/{file['id']}").json()["error"]["code"] == "UNKNOWN_FILE"
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", "INVALID_REQUEST", "empty"),
        (b"just words, no video at all", "STREAM_NO_VIDEO", "notes.mp4"),
        (b"<!doctype html><html></html>", "STREAM_NO_VIDEO", "HTML"),
    ],
)
def test_what_is_no_video_is_refused_and_not_kept(
    api: TestClient, settings: Settings, content: bytes, code: str, says: str
) -> None:
    answer = api.post("/v1/files", files={"file": ("notes.mp4", content)})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == code
    assert says in answer.json()["error"]["message"]
    assert str(settings.data_dir) not in answer.text
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "application/json"}, b"{}"),
        ({"Content-Type": "multipart/form-data"}, b"--x"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"no form"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b""),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--x--\r\n',
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
        ),
    ],
    ids=["json", "no boundary", "not a form", "nothing", "another field", "cut off"],
)
def test_a_broken_form_is_refused(
    api: TestClient, settings: Settings, headers: dict[str, str], body: bytes
) -> None:
    answer = api.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    assert stored(settings) == []


def test_limits_hold_for_one_file_and_for_all(
    api: TestClient, settings: Settings, video: bytes
) -> None:
    # given room for two videos
    settings.max_file_bytes = len(video)
    settings.max_files_bytes = 2 * len(video) + 4096
    # then a larger one is refused, whether or not it says how large it is
    larger = video + bytes(70_000)
    assert api.post("/v1/files", files={"file": ("a", larger)}).status_code == 413
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    parts = [head, larger[: len(video) - 5], larger[len(video) - 5 :], b"\r\n--x--\r\n"]
    answer = api.post(
        "/v1/files",
        content=iter(parts),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 413, answer.text
    assert api.post("/v1/uploads", headers={**TUS, "Upload-Length": "9999999"}).status_code == 413
    assert stored(settings) == []
    # and the third one is refused until one of the others is deleted
    made = [api.post("/v1/files", files={"file": ("a", video)}) for _ in range(3)]
    assert [answer.status_code for answer in made] == [201, 201, 507]
    assert "max_files_bytes" in made[-1].json()["error"]["message"]
    api.delete(f"/v1/files/{made[0].json()['id']}")
    assert api.post("/v1/files", files={"file": ("a", video)}).status_code == 201


def test_an_upload_continues_where_it_was_cut_off(
    api: TestClient, settings: Settings, video: bytes
) -> None:
    # given an upload of which a third has arrived
    name = base64.b64encode(b"Yard.mp4").decode()
    begun = api.post(
        "/v1/uploads",
        headers={**TUS, "Upload-Length": str(len(video)), "Upload-Metadata": f"filename {name}"},
    )
    assert begun.status_code == 201
    place = begun.headers["Location"]
    third = len(video) // 3
    first = api.patch(place, content=video[:third], headers={**DATA, "Upload-Offset": "0"})
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, str(third))
    # when a program begins again at the wrong place, the error names the right one
    wrong = api.patch(place, content=video, headers={**DATA, "Upload-Offset": "0"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (409, "UPLOAD_CONFLICT")
    head = api.head(place, headers=TUS)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == (
        str(third),
        str(len(video)),
    )
    # and the file cannot be used before it is complete
    file_id = place.rpartition("/")[2]
    early = api.post("/v1/streams", json={"file": file_id})
    assert (early.status_code, early.json()["error"]["param"]) == (409, "file")
    # then the rest completes it
    rest = api.patch(place, content=video[third:], headers={**DATA, "Upload-Offset": str(third)})
    assert rest.status_code == 204
    file = api.get(f"/v1/files/{file_id}").json()
    assert (file["status"], file["filename"]) == ("ready", "Yard.mp4")
    assert (settings.data_dir / "files" / file_id).read_bytes() == video


def test_a_connection_that_breaks_keeps_what_arrived(
    client: Service, video: bytes, eventually: Callable[..., None]
) -> None:
    # given an API on a socket, and an upload whose connection breaks in the middle
    server = uvicorn.Server(uvicorn.Config(create_app(client), log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            file = client.files.begin("clip.mp4", len(video))
            with socket.create_connection(listener.getsockname()) as connection:
                head = f"PATCH /v1/uploads/{file.id} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                head += "".join(f"{k}: {v}\r\n" for k, v in {**DATA, "Upload-Offset": "0"}.items())
                connection.sendall(f"{head}Content-Length: {len(video)}\r\n\r\n".encode())
                connection.sendall(video[:1000])
                eventually(lambda: client.files.get(file.id).received == 1000)
            # then what arrived is there, and the rest completes it
            eventually(lambda: _continued(client.files, file.id, video))
        finally:
            server.should_exit = True
            thread.join()
    assert client.files.path(file.id).read_bytes() == video


def _continued(files: Files, file_id: str, video: bytes) -> bool:
    """Send the rest; return False while the broken request still holds the file."""
    with contextlib.suppress(StreamerError):
        files.append(file_id, 1000, [video[1000:]])
    return files.get(file_id).status == "ready"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Tus-Resumable": "0.2.2"},
        {**TUS},
        {**TUS, "Upload-Length": "many"},
        {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename ?"},
    ],
)
def test_what_is_not_tus_is_refused(api: TestClient, headers: dict[str, str]) -> None:
    answer = api.post("/v1/uploads", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "INVALID_REQUEST")
    assert api.options("/v1/uploads").headers["Tus-Version"] == "1.0.0"


def test_two_requests_do_not_write_one_file(client: Service, video: bytes) -> None:
    file = client.files.begin("clip.mp4", len(video))

    def chunks() -> Iterator[bytes]:
        yield video[:10]
        with pytest.raises(StreamerError) as refused:
            client.files.append(file.id, 0, [video])
        assert refused.value.code is ErrorCode.UPLOAD_CONFLICT
        yield video[10:]

    assert client.files.append(file.id, 0, chunks()).status == "ready"


def test_a_file_that_nobody_uses_expires(
    client: Service, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two complete files and an upload that was given up
    used, unused = (_store(client.files, video) for _ in range(2))
    given_up = client.files.begin("half.mp4", 1000)
    days = client.settings.files_days
    begun = timestamp.utc_now()
    # when one of them is used in the meantime, and the time of the others is over
    monkeypatch.setattr("streamer.sources.files.utc_now", lambda: begun + timedelta(days=days - 1))
    client.files.path(used.id)
    monkeypatch.setattr("streamer.sources.files.utc_now", lambda: begun + timedelta(days=days + 1))
    # then only that one is left
    assert [file.id for file in client.files.page()[0]] == [used.id]
    for gone in (unused, given_up):
        with pytest.raises(StreamerError, match="has expired"):
            client.files.get(gone.id)


def test_expired_files_are_deleted_by_ingest_workers_too(
    client: Service, settings: Settings, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file whose time is over, and one whose record lost its date
    old, copied = (_store(client.files, video) for _ in range(2))
    begun, days = timestamp.utc_now(), settings.files_days
    monkeypatch.setattr("streamer.sources.files.utc_now", lambda: begun + timedelta(days=days + 1))
    client.files.path(copied.id)
    os.utime(client.files.folder / f"{copied.id}.json", (0, 0))
    # when a worker looks, as it does now and then
    files = Files(settings)
    files.sweep()
    # then only the first one is gone, of which nothing is left
    assert [file.id for file in client.files.page()[0]] == [copied.id]
    assert not list(client.files.folder.glob(f"{old.id}*"))
    # and it does not look again at once
    monkeypatch.setattr("streamer.sources.files.utc_now", lambda: begun + timedelta(days=3 * days))
    files.sweep()
    assert client.files.get(copied.id)


def test_an_upload_reads_no_records_of_complete_files(
    client: Service, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given complete files, and an upload that goes on
    for _ in range(3):
        _store(client.files, video)
    going_on = client.files.begin("half.mp4", 1000)
    read: list[str] = []
    original = UploadedFile.read
    monkeypatch.setattr(
        UploadedFile, "read", lambda stored: (file := original(stored), read.append(file.id))[0]
    )
    # when another begins
    client.files.begin("next.mp4", 1000)
    # then
    assert read == [going_on.id]


def test_files_are_listed_page_by_page(api: TestClient, client: Service, video: bytes) -> None:
    # given
    ids = [_store(client.files, video).id for _ in range(5)]
    for age, file_id in enumerate(reversed(ids)):
        os.utime(client.files.folder / file_id, (1e9 - age, 1e9 - age))
    # when
    found: list[str] = []
    cursor = None
    while True:
        page = api.get("/v1/files", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        found += [file["id"] for file in page.json()["files"]]
        if (cursor := page.json()["next_cursor"]) is None:
            break
    # then
    assert found == ids[::-1]


def test_requests_that_use_a_file_at_once_hinder_no_one(client: Service, video: bytes) -> None:
    # given a complete file
    stored = _store(client.files, video)
    with ThreadPoolExecutor(4) as users:
        # when several requests use it, each of which moves its end
        uses = [users.submit(client.files.path, stored.id) for _ in range(400)]
        # then the folder has it at every moment
        while not all(use.done() for use in uses):
            assert [file.id for file in client.files.page()[0]] == [stored.id]
    # and each request has it
    assert {use.result().name for use in uses} == {stored.id}


def test_a_name_that_vanishes_during_a_look_hides_no_other(client: Service, video: bytes) -> None:
    stored = _store(client.files, video)
    (client.files.folder / "gone.new").symlink_to("nowhere")

    assert [file.id for file in client.files.page()[0]] == [stored.id]


def _store(files: Files, content: bytes) -> UploadedFile:
    return files.append(files.begin("clip.mp4", len(content)).id, 0, [content])


def test_a_full_disk_is_said(client: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 300 << 20})
    monkeypatch.setattr("streamer.sources.files.shutil.disk_usage", lambda _: usage)
    client.files.begin("small.mp4", 10 << 20)
    with pytest.raises(StreamerError) as refused:
        client.files.begin("large.mp4", 50 << 20)
    assert refused.value.code is ErrorCode.STORAGE_FULL
    assert "too little room" in refused.value.message


@pytest.mark.parametrize("name", ["../../etc/passwd", "file_0123456789abcdef/..", "x", "file_"])
def test_an_id_is_no_path(client: Service, name: str) -> None:
    for use in (client.files.get, client.files.path, client.files.delete):
        call: Callable[[str], Any] = use
        with pytest.raises(StreamerError) as refused:
            call(name)
        assert refused.value.code is ErrorCode.UNKNOWN_FILE


def test_a_file_becomes_a_recording(api: TestClient, client: Service, video: bytes) -> None:
    file = _store(client.files, video)
    # when it is attached, twice, with and without a name
    made = [
        api.post("/v1/streams", json={"file": file.id, "watches": [], **body})
        for body in ({"name": "evening"}, {})
    ]
    # then it is a recording that an ingest worker can open
    assert [answer.status_code for answer in made] == [201, 201], made[0].text
    assert [answer.json()["name"] for answer in made] == ["evening", "clip"]
    assert made[0].json()["live"] is False
    assert client.registry.secret_url(made[0].json()["id"]) == str(client.files.path(file.id))
    # and what it may not be is refused
    both = api.post("/v1/streams", json={"file": file.id, "url": "rtsp://192.0.2.1/a"})
    neither = api.post("/v1/streams", json={"name": "a"})
    unknown = api.post("/v1/streams", json={"file": "file_0123456789abcdef"})
    assert [both.status_code, neither.status_code, unknown.status_code] == [422, 422, 404]
