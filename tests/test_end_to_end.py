"""The product as its users meet it: real programs, a real camera, the real `streamer` command."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from nvila_core.demo.video import StreetVideo, write_video
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.local.process import stop
from streamer.service import Service
from tests.support.fork_server import spawn_python
from tests.support.installation import Up, clean_environment, has_demo_model
from tests.support.videos import write_video as write_test_video

SEED, SECONDS = 3_000_000_017, 16.0

needs_answers = pytest.mark.skipif(
    not has_demo_model(), reason="the demo checkpoint has not been trained yet"
)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("street") / "street.mp4"
    write_video(path, StreetVideo(SEED, SECONDS))
    return path


@pytest.fixture(scope="module")
def camera(installation: Up, street: Path) -> Iterator[str]:
    """The name of a stream: an RTSP camera attached through the command line."""
    with LoopbackCamera(street) as served:
        (stream,) = installation.records("attach", served.url, "--name", "cam", "--window", "3")
        assert stream["name"] == "cam"
        assert stream["live"]
        yield "cam"
        assert installation.cli("detach", "cam").returncode == 0


@pytest.fixture(scope="module")
def caption(installation: Up, camera: str) -> dict[str, object]:
    """The camera's first caption, from the results queue."""
    (result,) = installation.records(
        "results", "--follow", "--since", "-5m", "--stream", camera, "--limit", "1"
    )
    # more of them would only take processor time from the tests
    rarely = ("--prompt", "Describe the scene.", "--window", "60")
    assert installation.cli("edit", camera, *rarely).returncode == 0
    return result


def test_captions_come_from_the_camera(
    installation: Up, camera: str, caption: dict[str, object], eventually: Callable[..., None]
) -> None:
    assert caption["kind"] == "caption"
    assert caption["prompt"] == "Describe the scene."
    assert caption["frames"] in (2, 3, 4), "a window of 3 s at one frame a second"
    assert caption["vision_tokens"]
    assert caption["total_ms"]

    def counted() -> bool:
        (stream,) = [s for s in installation.records("streams") if s["name"] == camera]
        counters = stream["counters"]
        assert stream["state"] == "running"
        return bool(counters["decoded"] >= counters["sampled"] >= 3 and counters["width"] == 640)

    eventually(counted, message="the counters of the stream were not reported")
    table = installation.cli("streams").stdout
    assert "cam" in table
    assert "running" in table


def test_captions_are_recorded(installation: Up, camera: str, caption: dict[str, object]) -> None:
    deadline = time.monotonic() + 120
    while True:
        recorded = installation.records("results", "--stream", camera, "--kind", "caption")
        if caption["id"] in [result["id"] for result in recorded]:
            break
        assert time.monotonic() < deadline, (caption, recorded)
        time.sleep(0.2)
    # by the time that they are about: two that are answered at once may end in either order
    assert recorded == sorted(recorded, key=lambda result: (result["end"], result["start"]))
    human = installation.cli("results", "--stream", camera, "--kind", "caption").stdout
    assert len(human.splitlines()) >= 1


@needs_answers
def test_the_sign_is_read(installation: Up, camera: str, caption: dict[str, object]) -> None:
    number = str(StreetVideo(SEED, SECONDS).sign_number)
    answers = []
    for _ in range(3):  # of three looks, the sign may be hidden behind a car in one
        asked = installation.cli("ask", camera, "What number is on the sign?")
        assert asked.returncode == 0, asked.stderr
        answers.append(asked.stdout)
        time.sleep(1.0)
    assert sum(number in answer.splitlines()[0] for answer in answers) >= 2, (number, answers)


def test_now_and_the_past(installation: Up, camera: str, caption: dict[str, object]) -> None:
    (now,) = installation.records("ask", camera, "How many cars are there?", "--max-tokens", "8")
    assert now["status"] == "done"
    assert now["result"]["kind"] == "answer"
    assert now["result"]["frames"] == 1
    assert now["result"]["tiles"] > 1, "one frame is tiled"
    arguments = ("--since", "-30s", "--max-frames", "2", "--max-tokens", "8")
    (past,) = installation.records("ask", camera, "What changed?", *arguments)
    assert past["result"]["frames"] == 2
    late = installation.cli("ask", camera, "What changed?", "--since", "-2h", "--until", "-1h")
    assert late.returncode == 1
    assert "frames are kept from" in late.stderr


def test_a_file_is_analyzed_whole_and_in_order(installation: Up, street: Path) -> None:
    results = installation.records("analyze", str(street), "--window", "4")
    offsets = [(r["data"]["media_start"], r["data"]["media_end"]) for r in results]
    assert offsets == [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0), (12.0, 16.0)]
    assert {r["kind"] for r in results} == {"caption"}
    assert [r["frames"] for r in results] == [4, 4, 4, 4]
    assert all(s["name"] != results[0]["stream_name"] for s in installation.records("streams"))

    human = installation.cli("analyze", str(street), "--window", "8")
    assert human.returncode == 0, human.stderr
    assert "00:00-00:08" in human.stdout
    assert "00:08-00:16" in human.stdout


def test_ctrl_c_takes_an_analysis_back(
    installation: Up, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    video = tmp_path / "endless.mp4"
    write_test_video(video, seconds=60.0, fps=5)
    process = spawn_python(
        ["-m", "streamer.cli", "analyze", str(video), "--window", "0.5", "--fps", "5"],
        env=clean_environment(STREAMER_DATA_DIR=str(installation.data_dir)),
        log=tmp_path / "analyze.log",
    )
    try:
        with Service(installation.settings) as client:
            eventually(
                lambda: any(s.name == "endless" and s.counters.clips for s in client.streams()),
                timeout=60,
                message=(tmp_path / "analyze.log").read_text(),
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 130
            assert not any(stream.name == "endless" for stream in client.streams())
            eventually(lambda: client.jobs.depths()["files"] == 0)
        assert "Traceback" not in (tmp_path / "analyze.log").read_text()
    finally:
        stop(process)


def test_the_api_does_the_same(installation: Up, camera: str, caption: dict[str, object]) -> None:
    with httpx.Client(base_url=installation.api_url, timeout=90) as api:
        assert api.get("/healthz").json() == {"status": "ok"}
        assert camera in [s["name"] for s in api.get("/v1/streams").json()["streams"]]
        body = {"prompt": "How many cars are there?", "stream": camera, "max_tokens": 8}
        query = api.post("/v1/queries", json=body)
        assert query.status_code == 202
        done = api.get(f"/v1/queries/{query.json()['id']}", params={"wait": 60}).json()
        assert done["status"] == "done"
        assert done["result"]["text"] is not None
        page = api.get("/v1/results", params={"stream": camera, "limit": 1}).json()
        assert len(page["results"]) == 1


def test_a_prompt_that_is_too_long(
    installation: Up, camera: str, caption: dict[str, object]
) -> None:
    asked = installation.cli("ask", camera, "word " * 20_000)
    assert asked.returncode == 2
    assert "Traceback" not in asked.stderr
    (sentence,) = asked.stderr.strip().splitlines()
    assert len(re.findall(r"\d[\d,]*", sentence)) >= 2, sentence


def test_asking_without_waiting(installation: Up, camera: str, caption: dict[str, object]) -> None:
    (query,) = installation.records("ask", camera, "Is there a car?", "--no-wait")
    assert query["status"] == "queued"
    with Service(installation.settings) as client:
        assert client.query(query["id"], wait=60).result is not None


def test_programs_reach_redis_by_its_sockets(installation: Up) -> None:
    run = json.loads(installation.run_file.read_text())
    for name in ("redis_url", "frames_redis_url"):
        # given a client that comes by the port that the run file names for other programs
        with redis.Redis.from_url(run[name], protocol=2) as client:
            addresses = [each["addr"] for each in client.client_list()]
        # then those of the installation come by the socket
        sockets = [address for address in addresses if "server.sock" in address]
        assert len(sockets) == len(addresses) - 1 > 0, addresses


def test_nothing_secret_and_no_broken_record_in_what_is_printed(
    installation: Up, camera: str, caption: dict[str, object]
) -> None:
    run = json.loads(installation.run_file.read_text())
    password = run["redis_url"].split(":")[2].split("@")[0]
    assert len(password) > 20
    assert password not in installation.output
    assert installation.run_file.stat().st_mode & 0o777 == 0o600
