"""Both HTTP clients against the real API, over a real Redis and database."""

import asyncio
import inspect
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamState
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.http_client import AsyncClient, Client
from streamer.incidents.store import KeptPicture
from streamer.response_format import ChoiceFormat
from streamer.service import Service
from streamer.settings import Settings
from tests.streamer.incidents.conftest import Alert
from tests.support.api_server import ApiServer
from tests.support.relay import Relay

CAMERA = "rtsp://me:hunter2@192.0.2.1/door"


@pytest.fixture
def here(api_server: ApiServer) -> Service:
    """The installation, as its own machine sees it."""
    return api_server.client


@pytest.fixture
def remote(open_client, api_server: ApiServer) -> Client:
    """The installation, as another machine sees it."""
    client: Client = open_client(api_server.url)
    return client


def see(here: Service, stream: Stream) -> None:
    """Store one frame of a stream."""
    here.frames.put(stream.id, b"jpeg", Measures(32, 24, change=0.0), time=time.time(), pts=0.0)


def answer(here: Service, query_id: str, **fields: object) -> None:
    """Publish the result of a query, as the model worker does."""
    common = {"kind": "answer", "stream_id": None, "stream_name": None, "prompt": "?"}
    here.queue.publish(Result(request_id=query_id, **common | fields), owner_id=None)


def test_a_stream_is_attached_changed_paused_and_detached(remote: Client, here: Service) -> None:
    sampling = Sampling(mode="keyframes", min_interval=2)
    who = Watch(prompt="Who is there?", window=5, max_frames=3)

    stream = remote.attach(
        CAMERA, "door", sampling=sampling, watches=["Is it open?", who], probe=False
    )

    assert stream == here.stream("door")
    assert stream.sampling == sampling
    assert [(w.prompt, w.window) for w in stream.watches] == [
        ("Is it open?", here.settings.window),
        ("Who is there?", 5),
    ]
    assert remote.streams() == here.streams() == [stream]
    assert remote.edit("door", name="gate", watches=[]).watches == []
    assert remote.pause("gate").paused
    assert not remote.resume(stream.id).paused
    assert remote.detach("gate").id == stream.id
    assert here.streams() == []


def test_all_streams_are_listed_however_many_pages_they_fill(
    remote: Client, here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.http_client.calls._MAX_PAGE", 2)
    names = [f"door{number}" for number in range(5)]
    for name in names:
        here.attach(CAMERA, name, watches=[], probe=False)

    assert [stream.name for stream in remote.streams()] == names


def test_watches_are_added_changed_and_removed(remote: Client, here: Service) -> None:
    here.attach(CAMERA, "door", watches=[], probe=False)

    watch = remote.watches.add("door", "Is it open?", response_format=ChoiceFormat(choices=["a"]))
    alert = remote.watches.add("door", "Is there smoke?", alert=AlertRule(cooldown=5))

    assert remote.watches.list("door") == [watch, alert] == here.stream("door").watches
    assert remote.watches.edit("door", watch.id, window=3, prompt="Shut?").window == 3
    changed = remote.watches.edit("door", alert.id, alert=AlertRule(severity="critical"))
    assert changed.alert is not None
    assert (changed.alert.cooldown, changed.alert.severity) == (5, "critical")
    assert remote.watches.get("door", watch.id).prompt == "Shut?"
    here.jobs.served.note("eye")
    assert remote.watches.edit("door", watch.id, model="eye").model == "eye"
    assert remote.watches.edit("door", watch.id, window=4).model == "eye"
    assert remote.watches.edit("door", watch.id, model=None).model is None
    assert remote.watches.remove("door", watch.id).id == watch.id
    assert [w.id for w in here.stream("door").watches] == [alert.id]


def test_ask_waits_for_the_answer(remote: Client, here: Service) -> None:
    see(here, here.attach(CAMERA, "door", watches=[], probe=False))

    def worker() -> None:
        while not here.queries():
            time.sleep(0.02)
        answer(here, here.queries()[0].id, text="Yes.")

    thread = threading.Thread(target=worker)
    thread.start()
    result = remote.ask("Is it open?", "door", stale_ok=True)
    thread.join()

    assert isinstance(result, Result)
    assert result.text == "Yes."
    (query,) = here.queries()
    assert query.prompt == "Is it open?"


def test_ask_raises_the_error_of_the_answer_and_tells_of_a_late_one(
    remote: Client, here: Service
) -> None:
    see(here, here.attach(CAMERA, "door", watches=[], probe=False))
    with pytest.raises(StreamerError) as late:
        remote.ask("Is it open?", "door", wait=0.2)
    (query,) = here.queries()
    assert late.value.code is ErrorCode.TIMEOUT
    assert query.id in late.value.message

    gone = ErrorInfo(code=ErrorCode.WORKER_LOST, message="The worker is gone: ask again.")
    answer(here, query.id, error=gone, kind="error")

    assert remote.query(query.id, wait=60).result is not None
    thread = threading.Thread(target=_fail_next, args=(here, gone, query.id))
    thread.start()
    with pytest.raises(StreamerError, match="ask again") as failed:
        remote.ask("And now?", "door")
    thread.join()
    assert failed.value.code is ErrorCode.WORKER_LOST


def _fail_next(here: Service, error: ErrorInfo, known: str) -> None:
    while (newest := here.queries()[0]).id == known:
        time.sleep(0.02)
    answer(here, newest.id, error=error, kind="error")


def test_a_past_range_is_asked_about_and_the_query_cancelled(remote: Client, here: Service) -> None:
    see(here, here.attach(CAMERA, "door", watches=[], probe=False))
    since = datetime.now(UTC) - timedelta(minutes=5)

    query = remote.submit("What happened?", since=since, max_tokens=9)

    assert abs(query.start - since) < timedelta(milliseconds=1)
    assert remote.queries() == [remote.query(query.id)]
    assert remote.cancel(query.id).result is not None
    with pytest.raises(StreamerError, match="no time zone"):
        remote.submit("What happened?", since=datetime(2026, 1, 31))


def test_results_are_fetched_page_by_page(remote: Client, here: Service) -> None:
    now = datetime.now(UTC)
    here.timeline.record(
        [
            Result(
                request_id=f"req_{n}",
                kind="caption",
                stream_id="str_1",
                stream_name="door",
                prompt="?",
                text=f"Caption {n}.",
                end=now - timedelta(seconds=n),
                created_at=now - timedelta(seconds=n),
            )
            for n in range(7)
        ]
    )

    assert [r.request_id for r in remote.results(page_size=3)] == [f"req_{n}" for n in range(7)]
    assert len(list(remote.results(page_size=3, limit=5))) == 5
    assert [r.text for r in remote.results(q="Caption 4", stream="door")] == ["Caption 4."]
    assert list(remote.results(until="-1h")) == []
    assert list(remote.results(limit=0)) == []


def test_health_names_what_is_missing(remote: Client, here: Service) -> None:
    health = remote.health()

    assert health.status == "not ready"
    missing = {part.name for part in health.parts if not part.up}
    assert {"ingest worker", "model worker", "recorder"} <= missing


def test_an_error_has_the_apis_code_field_and_request(remote: Client) -> None:
    with pytest.raises(StreamerError) as unknown:
        remote.stream("a/../b c")
    with pytest.raises(StreamerError) as invalid:
        remote.attach(CAMERA, watches=["Fine?", " "], probe=False)
    with pytest.raises(StreamerError) as empty:
        remote.stream("")

    assert unknown.value.code in (ErrorCode.UNKNOWN_STREAM, ErrorCode.NOT_FOUND)
    assert unknown.value.request_id
    assert invalid.value.code is ErrorCode.PROMPT_EMPTY
    assert invalid.value.param == "watches.1.prompt"
    assert empty.value.code is ErrorCode.INVALID_REQUEST


def test_the_key_and_the_address_come_from_the_environment(
    open_client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = settings.model_copy(update={"api_keys": ["a-long-enough-key"]})
    with ApiServer(keys) as server:
        monkeypatch.setenv("STREAMER_API_URL", server.url + "/")
        with pytest.raises(StreamerError) as refused:
            open_client().streams()
        monkeypatch.setenv("STREAMER_API_KEY", "a-long-enough-key")

        assert open_client().streams() == []

    assert refused.value.code is ErrorCode.UNAUTHORIZED


@pytest.mark.parametrize("url", ["camera:8080", "ftp://me:hunter2@camera", "http://"])
def test_an_address_that_is_no_url(open_client, url: str) -> None:
    with pytest.raises(StreamerError, match="http://host:8080") as refused:
        open_client(url)

    assert refused.value.code is ErrorCode.SETTINGS_INVALID
    assert "hunter2" not in refused.value.message


def test_the_key_is_not_shown() -> None:
    with Client("http://127.0.0.1:1", api_key="a-long-enough-key") as client:
        assert "a-long-enough-key" not in f"{client!r} {vars(client)}"


def test_a_state_of_a_newer_server_is_read(remote: Client, here: Service) -> None:
    stream = here.attach(CAMERA, "door", probe=False)

    assert remote.stream("door").state is StreamState.CONNECTING
    assert Stream.read(stream.model_dump(mode="json") | {"state": "dreaming", "new": 1})


class Forgetful(Relay):
    """Loses the first answer on its way back."""

    lost = 0

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        """Return what the server says, but for the first time the end of the connection."""
        piece = await super().read_answer(reader)
        if not self.lost:
            self.lost = 1
            raise asyncio.IncompleteReadError(piece, None)
        return piece


def test_a_question_whose_answer_was_lost_is_asked_once(
    open_client, api_server: ApiServer, here: Service
) -> None:
    see(here, here.attach(CAMERA, "door", watches=[], probe=False))
    with Forgetful(api_server.port) as relay:
        client: Client = open_client(f"http://127.0.0.1:{relay.port}")

        query = client.submit("Is it open?", "door", stale_ok=True)

        assert relay.lost == 1
    assert [each.id for each in here.queries()] == [query.id]


def test_incidents_are_listed_and_judged(remote: Client, here: Service) -> None:
    alert = Alert(here.timeline)
    picture = KeptPicture(b"a picture", datetime.now(UTC))
    results = [alert.result(0, 0.8), alert.result(1, 0.9)]
    alert.record(*results, pictures={result.id: picture for result in results})

    (incident,) = remote.incidents.list(state="open", stream="lobby")

    assert remote.incidents.page(unseen=True).incidents == [incident]
    assert remote.incidents.get(incident.id) == incident
    assert remote.incidents.see(incident.id, "ann").seen_by == ["ann"]
    acknowledged = remote.incidents.acknowledge(incident.id, "bob", "On my way.").acknowledged
    assert acknowledged is not None
    assert (acknowledged.by, acknowledged.note) == ("bob", "On my way.")
    feedback = remote.incidents.judge(incident.id, "wrong").feedback
    assert feedback is not None
    assert feedback.verdict == "wrong"
    assert remote.incidents.resolve(incident.id).state == "resolved"
    assert remote.incidents.snapshot(incident.id, "last") == b"a picture"
    with pytest.raises(StreamerError) as gone:
        remote.incidents.clip(incident.id)
    assert gone.value.request_id
    with pytest.raises(StreamerError) as unknown:
        remote.incidents.get("inc_1")
    assert unknown.value.code is ErrorCode.UNKNOWN_INCIDENT


def test_incidents_are_silenced(remote: Client) -> None:
    silence = remote.silences.add({"stream": "door"}, minutes=5, reason="The painter is here.")

    assert remote.silences.list() == [silence] == [remote.silences.get(silence.id)]
    assert silence.ends_at - silence.starts_at == timedelta(minutes=5)
    assert remote.silences.end(silence.id) == silence
    assert remote.silences.list() == []


def test_both_clients_have_the_same_methods() -> None:
    """Their lists stand twice, because type checkers read them: a coroutine is another type."""

    def methods(client: type) -> dict[str, dict[str, list[str]]]:
        with_parts = inspect.getmembers(
            sys.modules[client.__module__],
            lambda part: inspect.isclass(part) and part.__module__ == client.__module__,
        )
        return {
            name.removeprefix("Async"): {
                method: list(inspect.signature(function).parameters)
                for method, function in vars(part).items()
                if inspect.isfunction(function) and not method.startswith("_")
            }
            for name, part in with_parts
        }

    threads, asynchronous = methods(Client), methods(AsyncClient)
    assert len(threads["Client"]) > 25
    del threads["Client"]["close"], asynchronous["Client"]["aclose"]
    assert threads == asynchronous
