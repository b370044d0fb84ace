"""Editing streams through the client, the API and the command line, over a real server."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from streamer.api.app import create_app
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from tests.support.installation import run_cli
from tests.support.videos import write_video

PASSWORD = "hunter2secret"
OTHER = "0ther+secret"


@pytest.fixture
def yard(client: Service) -> Stream:
    watches = [client.watch("Who is there?", window=5.0), client.watch("Is it raining?")]
    url = f"rtsp://me:{PASSWORD}@cam.invalid/live"
    return client.attach(url, "yard", watches=watches, probe=False)


def refused(client: Service, ref: str = "yard", **changes: object) -> StreamerError:
    before = client.streams()
    with pytest.raises(StreamerError) as caught:
        client.edit(ref, **changes)  # type: ignore[arg-type]
    assert PASSWORD not in caught.value.message
    after = client.streams()
    fields = {"id", "name", "url", "url_version", "watches", "sampling", "paused"}
    assert [s.model_dump(include=fields) for s in after] == [
        s.model_dump(include=fields) for s in before
    ]
    return caught.value


def test_a_new_password_is_kept_apart_and_noticed(client: Service, yard: Stream) -> None:
    url = f"rtsp://me:{OTHER}@cam.invalid/live"
    changed = client.edit("yard", source=url, probe=False)
    assert changed.url == yard.url
    assert changed.url_version == yard.url_version + 1
    assert client.registry.secret_url(yard.id) == url.replace("+", "%2B")
    assert OTHER not in changed.model_dump_json()
    assert changed.watches == yard.watches


def test_a_new_url_is_tried_before_it_is_taken(
    client: Service, yard: Stream, loopback: LoopbackCamera
) -> None:
    error = refused(client, source=f"rtsp://me:{PASSWORD}@127.0.0.1:1/x")
    assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert client.edit(yard.id, source=loopback.url).url == loopback.url


def test_watches_that_ask_the_same_are_the_same(client: Service, yard: Stream) -> None:
    again = client.watch("Is it raining?")
    new = client.watch("Is the gate open?")
    changed = client.edit("yard", watches=[again, new, again])
    assert changed.watches[0] == yard.watches[1]
    assert [watch.prompt for watch in changed.watches] == [
        "Is it raining?",
        "Is the gate open?",
        "Is it raining?",
    ]
    assert len({watch.id for watch in changed.watches}) == 3
    assert client.edit("yard", watches=[]).watches == []


def test_name_sampling_and_pause(client: Service, yard: Stream) -> None:
    changed = client.edit("yard", name="garden", sampling=Sampling(fps=3), paused=True)
    assert (changed.name, changed.sampling.fps, changed.paused) == ("garden", 3.0, True)
    assert client.stream("garden").id == yard.id
    assert not client.edit("garden", paused=False).paused
    assert client.edit("garden") == client.stream("garden")


def test_what_makes_no_sense_changes_nothing(client: Service, yard: Stream, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    client.attach(str(tmp_path / "v.mp4"), "clip", probe=False)
    write_video(tmp_path / "w.mp4", seconds=1)
    file, url = str(tmp_path / "w.mp4"), "rtsp://cam.invalid/x"
    assert refused(client, "nobody", paused=True).code is ErrorCode.UNKNOWN_STREAM
    assert refused(client, name="clip").code is ErrorCode.NAME_TAKEN
    assert refused(client, name="a b").code is ErrorCode.INVALID_REQUEST
    assert refused(client, watches=[yard.watches[0].model_copy(update={"prompt": " "})]).code is (
        ErrorCode.PROMPT_EMPTY
    )
    for ref, source in (("yard", file), ("clip", url), ("clip", file)):
        error = refused(client, ref, source=source, probe=False)
        assert error.code is ErrorCode.INVALID_REQUEST
        assert "detach" in error.message
    # the URL as it is shown, copied back, would have set the password to three stars
    error = refused(client, source=yard.url.replace("live", "other"), probe=False)
    assert "write the whole URL" in error.message


def test_the_api_takes_patches(client: Service, yard: Stream) -> None:
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        changed = api.patch("/v1/streams/yard", json={"paused": True, "sampling": {"fps": 2}})
        assert changed.status_code == 200
        assert changed.json()["paused"] is True
        assert changed.json()["sampling"]["fps"] == 2.0
        assert len(changed.json()["watches"]) == 2
        body: dict[str, object] = {"watches": [{"prompt": "Is it raining?"}], "paused": False}
        (watch,) = api.patch(f"/v1/streams/{yard.id}", json=body).json()["watches"]
        assert watch["id"] == yard.watches[1].id
        body = {"url": f"rtsp://me:{OTHER}@cam.invalid/2", "probe": False}
        changed = api.patch("/v1/streams/yard", json=body)
        assert changed.json()["url"] == "rtsp://me:***@cam.invalid/2"
        assert OTHER not in changed.text
        wrong: tuple[tuple[dict[str, object], int], ...] = (
            ({"colour": "red"}, 422),
            ({"sampling": {"fps": 0}}, 422),
            ({"url": "gopher://x"}, 403),
            ({"url": f"rtsp://me:{OTHER}@127.0.0.1:1/x"}, 422),
        )
        for body, status in wrong:
            refusal = api.patch("/v1/streams/yard", json=body)
            assert refusal.status_code == status, refusal.text
            assert {"code", "message"} <= set(refusal.json()["error"])
            assert OTHER not in refusal.text
        assert api.patch("/v1/streams/nobody", json={"paused": True}).status_code == 404


def test_the_command_line_edits_too(client: Service, yard: Stream) -> None:
    redis_url = client.settings.redis_url or ""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_cli("edit", *arguments, STREAMER_REDIS_URL=redis_url)
        return done.returncode, done.stdout, done.stderr

    options = ["--pause", "--fps", "4", "--prompt", "Who?", "--max-frames", "3", "--json"]
    code, out, _ = run("yard", *options)
    assert code == 0
    record = json.loads(out)
    assert record["paused"] is True
    assert record["sampling"]["fps"] == 4.0
    assert [(watch["prompt"], watch["max_frames"]) for watch in record["watches"]] == [("Who?", 3)]
    url = f"rtsp://me:{OTHER}@cam.invalid/live"
    code, out, err = run("yard", "--resume", "--url", url, "--no-probe")
    assert code == 0
    assert "Changed yard" in out
    assert OTHER not in out + err
    assert not client.stream("yard").paused
    code, _, err = run("yard")
    assert code == 2
    assert "Nothing to change" in " ".join(err.split())
    code, _, err = run("nobody", "--pause")
    assert code == 1
    assert len(err.strip().splitlines()) == 1


def test_a_model_is_taken_back(client: Service, api: TestClient, yard: Stream) -> None:
    # given a stream and a watch that name a model
    served = "eye"
    client.jobs.served.note(served)
    watch = client.watches.add("yard", client.watch("Who?", model=served))
    client.edit("yard", model=served)
    # when other things change, it stays
    assert client.edit("yard", paused=True).model == served
    assert client.watches.edit("yard", watch.id, window=3).model == served
    patched = api.patch("/v1/streams/yard", json={"paused": False})
    assert patched.json()["model"] == served
    # when it is null, the default answers again
    patched = api.patch("/v1/streams/yard", json={"model": None})
    assert (patched.status_code, patched.json()["model"]) == (200, None)
    patched = api.patch(f"/v1/streams/yard/watches/{watch.id}", json={"model": None})
    assert (patched.status_code, patched.json()["model"]) == (200, None)
    assert client.stream("yard").model is None
