"""Cameras that get another address: an ingest worker finds them, at a camera on loopback."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.events import Events
from streamer.media import onvif
from streamer.sources import discovery
from tests.support.ingest_bench import Bench
from tests.support.onvif_camera import OnvifCamera
from workers.ingest.moved_cameras import MovedCameras

OLD = "127.0.0.5"


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[OnvifCamera]:
    pytest.importorskip("onveef", reason="onveef is not installed: nvila-streamer[discover]")
    monkeypatch.setattr(discovery, "LISTEN", 0.4)
    with OnvifCamera() as made:
        monkeypatch.setattr(onvif, "PORT", made.port)
        yield made


def attach(bench: Bench, camera: OnvifCamera, name: str = "door", path: str = "main") -> StreamSpec:
    """Attach a stream at an address at which the camera is no more."""
    url = f"rtsp://admin:s3cret%20pass@{OLD}:554/{path}"
    return bench.attach(url, live=True, name=name, endpoint_reference=camera.reference)


def lose(bench: Bench, spec: StreamSpec, seconds: float) -> None:
    status = StreamStatus(
        state=StreamState.RECONNECTING,
        since=utc_now() - timedelta(seconds=seconds),
        reported_at=utc_now(),
    )
    bench.registry.save_status(spec.id, status)


def search(bench: Bench, after: float | None = 180.0) -> None:
    """Sweep as an ingest worker does that has just started, and wait for what it finds."""
    client = bench.context.connections.main
    client.delete(redis_keys.CAMERA_SEARCH)
    moved = MovedCameras(client, bench.registry, after, bench.context.clock)
    moved.sweep()
    moved.close()


def url_of(bench: Bench, spec: StreamSpec) -> str:
    found = bench.registry.find(spec.id)
    assert found is not None
    return found.url


def test_the_streams_of_a_lost_camera_get_its_new_address(
    bench: Bench, camera: OnvifCamera
) -> None:
    # given two streams of a camera, lost for four minutes
    main, sub = (attach(bench, camera, path, path) for path in ("main", "sub"))
    for spec in (main, sub):
        lose(bench, spec, 240)
    events = Events(bench.context.connections.main)
    before = events.position()
    # when
    search(bench)
    # then they are at the new address, with their login, and an event says so
    assert url_of(bench, main) == "rtsp://admin:***@127.0.0.1:554/main"
    assert url_of(bench, sub) == "rtsp://admin:***@127.0.0.1:554/sub"
    secret = bench.registry.secret_url(main.id)
    assert secret == "rtsp://admin:s3cret%20pass@127.0.0.1:554/main"
    reported = events.read(before)
    assert {event.stream_name for event in reported} == {"main", "sub"}
    assert all(event.type == "stream.state_changed" for event in reported)
    assert all('"changed": ["url' in event.data for event in reported)
    assert "s3cret" not in "".join(event.data for event in reported)


@pytest.mark.parametrize("case", ["not long enough", "paused", "off", "unknown", "running"])
def test_other_streams_keep_their_address(bench: Bench, camera: OnvifCamera, case: str) -> None:
    spec = attach(bench, camera)
    lose(bench, spec, 60 if case == "not long enough" else 240)
    if case == "paused":
        bench.registry.edit(spec.id, lambda _: {"paused": True})
    if case == "unknown":
        bench.registry.edit(spec.id, lambda _: {"endpoint_reference": "urn:uuid:another"})
    if case == "running":
        running = StreamStatus(state=StreamState.RUNNING, reported_at=utc_now())
        bench.registry.save_status(spec.id, running)

    search(bench, after=None if case == "off" else 180.0)

    assert OLD in url_of(bench, spec)


def test_an_edit_during_the_search_stays(
    bench: Bench, camera: OnvifCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a user who gives the stream a URL while its camera is searched for
    spec = attach(bench, camera)
    lose(bench, spec, 240)
    probe = onvif.probe_hosts

    def edited(*arguments: object) -> object:
        own = "rtsp://127.0.0.9/main"
        bench.registry.edit(spec.id, lambda _: {"url": own}, secret_url=own)
        return probe(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(onvif, "probe_hosts", edited)
    # when
    search(bench)
    # then the user's stays
    assert url_of(bench, spec) == "rtsp://127.0.0.9/main"


def test_one_worker_of_all_searches(bench: Bench, camera: OnvifCamera) -> None:
    spec = attach(bench, camera)
    lose(bench, spec, 240)
    client = bench.context.connections.main
    client.set(redis_keys.CAMERA_SEARCH, 1, ex=60)  # another one does

    moved = MovedCameras(client, bench.registry, 180.0, bench.context.clock)
    moved.sweep()
    moved.close()

    assert OLD in url_of(bench, spec)


def test_a_stream_whose_camera_has_moved_runs_again(
    bench: Bench,
    camera: OnvifCamera,
    loopback: LoopbackCamera,
    eventually: Callable[..., None],
) -> None:
    # given a stream that is read, from where nothing is
    url = loopback.url.replace("127.0.0.1", OLD)
    spec = bench.attach(url, live=True, endpoint_reference=camera.reference)
    with bench.run(spec):
        eventually(lambda: bench.status(spec).state is StreamState.RECONNECTING)
        # when its camera is found
        search(bench, after=0.001)
        # then it runs
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
