"""What lists show: distinct watches, results in order of time, a reason when there is nothing."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.service import Service
from streamer.settings import Settings
from streamer.terminal import WatchLabels, result_parts

CAMERA = "rtsp://192.0.2.1/door"
Run = Callable[..., Any]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def result(number: int, **fields: Any) -> Result:
    """Return a caption of `door`; fields of `fields` take precedence."""
    common: dict[str, Any] = {
        "request_id": f"req_{number}",
        "kind": "caption",
        "stream_id": "str_1",
        "stream_name": "door",
        "prompt": "What?",
        "text": f"Caption {number}.",
    }
    return Result(**common | fields)


def window(end: datetime, seconds: float = 10.0) -> dict[str, datetime]:
    return {"start": end - timedelta(seconds=seconds), "end": end}


def test_two_watches_of_a_stream_are_told_apart(run: Run, client: Service) -> None:
    # given a stream with three watches, of which two ask the same
    asked = ["Is the gate open?", "Who is there?", "Who is there?"]
    watches = [client.watch(prompt) for prompt in asked]
    stream = client.attach(CAMERA, "door", watches=watches, probe=False)
    own = {"stream_id": stream.id}
    client.timeline.record(
        [result(n, prompt=w.prompt, watch_id=w.id, **own) for n, w in enumerate(watches)]
    )
    # when they are listed
    lines = run("results").stdout.splitlines()
    listed = run("streams").stdout
    # then every line says which watch it is from
    assert "Is the gate open?: Caption 0." in lines[0]
    assert watches[0].id not in lines[0]
    for n in (1, 2):
        assert f"Who is there? ({watches[n].id}): Caption {n}." in lines[n]
    for watch in watches:
        assert watch.id in listed


def test_a_stream_with_one_watch_needs_no_label(run: Run, client: Service) -> None:
    stream = client.attach(CAMERA, "door", probe=False)
    client.timeline.record([result(0, stream_id=stream.id, watch_id=stream.watches[0].id)])

    assert "What?" not in run("results").stdout
    assert stream.watches[0].id not in run("streams").stdout


def test_a_watch_that_came_later_is_told_apart_while_results_are_followed() -> None:
    labels = WatchLabels()
    first, second = result(0, watch_id="wch_1"), result(1, watch_id="wch_2", prompt="Who? " * 40)
    labels.learn([first])
    assert labels.of(first) == ""
    labels.learn([second])

    assert labels.of(first) == "What?"
    assert labels.of(second).endswith("...")
    assert len(labels.of(second)) < 60
    assert "What?: Caption 0." in result_parts(first, label=labels.of(first))[1].plain


def test_results_are_in_order_of_time(run: Run, client: Service) -> None:
    # given windows that were answered in another order than they were captured
    now = utc_now()
    ends = [30, 10, 20, 40, 0]
    client.timeline.record(
        [
            result(
                age, **window(now - timedelta(seconds=age)), created_at=now + timedelta(seconds=n)
            )
            for n, age in enumerate(ends)
        ]
    )

    lines = run("results").stdout.splitlines()

    found = [int(line.split("Caption ")[1].split(".")[0]) for line in lines]
    assert found == sorted(ends, reverse=True)


def test_a_recordings_results_show_the_place_in_it_in_order(run: Run, client: Service) -> None:
    attached = utc_now()
    for n, start in enumerate((3600.0, 0.0, 10.0)):
        place = {"media_start": start, "media_end": start + 10}
        end = attached + timedelta(seconds=start + 10)
        client.timeline.record([result(n, data=place, **window(end))])

    lines = run("results").stdout.splitlines()

    assert [line.split()[0] for line in lines] == [
        "00:00-00:10",
        "00:10-00:20",
        "1:00:00-1:00:10",
    ]


@pytest.mark.parametrize("options", [[], ["--follow"], ["--kind", "error"]])
def test_an_unknown_stream_is_an_error(run: Run, client: Service, options: list[str]) -> None:
    client.attach(CAMERA, "door", probe=False)

    done = run("results", "--stream", "dor", *options)

    assert done.exit_code == 1
    assert "There is no stream 'dor'" in done.stderr


def test_a_stream_without_results_and_a_detached_one_are_known(
    run: Run, client: Service, api: TestClient
) -> None:
    client.attach(CAMERA, "door", probe=False)
    client.timeline.record([result(0, stream_id="str_9", stream_name="gone")])

    for stream in ("door", "gone", "str_9"):
        assert run("results", "--stream", stream, "--kind", "error").exit_code == 0
        assert api.get(f"/v1/results?stream={stream}&kind=error").status_code == 200
    refused = api.get("/v1/results?stream=typo")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "UNKNOWN_STREAM")


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/v1/results?steam=door", "takes stream, kind, since, until, q, mode, verify,"),
        ("GET", "/v1/results?stream=door&Limit=1", "'Limit' is not a query parameter"),
        ("GET", "/v1/queries?limt=3", "takes limit"),
        ("GET", "/v1/queries/qry_1?wiat=3", "takes wait"),
        ("GET", "/v1/streams?state=running", "takes limit, cursor"),
        ("DELETE", "/v1/streams/door?force=1", "takes none"),
        ("GET", "/v1/streams/door/watches?prompt=x", "takes limit, cursor"),
    ],
)
def test_an_unknown_query_parameter_is_an_error(
    api: TestClient, client: Service, method: str, path: str, words: str
) -> None:
    client.attach(CAMERA, "door", probe=False)

    answer = api.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "INVALID_REQUEST")
    assert words in answer.json()["error"]["message"]
    assert client.stream("door")
