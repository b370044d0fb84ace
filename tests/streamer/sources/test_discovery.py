"""The search for cameras, at a camera on loopback. Multicast goes nowhere: see conftest.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer.cli.app import app
from streamer.doctor import cameras
from streamer.domain.stream import StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.media import onvif
from streamer.settings import Settings
from streamer.sources import discovery
from streamer.sources.discovery import Discovery, FoundCamera
from tests.support.api_server import ApiServer
from tests.support.onvif_camera import OnvifCamera

PASSWORD = "s3cret pass"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Answers on loopback come at once."""
    pytest.importorskip("onveef", reason="onveef is not installed: nvila-streamer[discover]")
    monkeypatch.setattr(discovery, "LISTEN", 0.4)


@pytest.fixture
def camera(monkeypatch):
    with OnvifCamera() as made:
        monkeypatch.setattr(onvif, "PORT", made.port)
        yield made


def search(address="127.0.0.1", user=None, password=None, streams=(), **settings) -> Discovery:
    return discovery.find_cameras(Settings(**settings), streams, address, user, password)


def only(found: Discovery) -> FoundCamera:
    (camera,) = found.cameras
    return camera


def test_a_camera_tells_its_streams_to_its_user(camera):
    # when
    found = search(user="admin", password=PASSWORD)
    # then
    shown = only(found)
    assert found.hosts == 1
    assert shown.address == "127.0.0.1"
    assert shown.endpoint_reference == camera.reference
    assert (shown.name, shown.location) == ("Front door", "garden")
    assert (shown.manufacturer, shown.model, shown.serial) == ("Acme", "C100", "0042")
    assert [stream.url for stream in shown.streams] == [
        "rtsp://127.0.0.1:554/main",
        "rtsp://127.0.0.1:554/sub",
    ]
    main = shown.streams[0]
    assert (main.codec, main.width, main.height, main.fps) == ("h264", 1920, 1080, 25)
    assert shown.error is None
    assert shown.attached == []
    assert PASSWORD.encode() not in camera.seen


def test_cameras_are_asked_without_the_proxy_of_the_environment(camera, monkeypatch):
    # given a proxy that does not exist
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # then
    assert len(only(search(user="admin", password=PASSWORD)).streams) == 2


@pytest.mark.parametrize(("user", "word"), [(None, "--user"), ("admin", "refused")])
def test_a_camera_that_does_not_know_the_user_is_found_all_the_same(camera, user, word):
    shown = only(search(user=user, password="wrong" if user else None))
    assert shown.endpoint_reference == camera.reference
    assert shown.streams == []
    assert shown.error is not None
    assert shown.error.code is ErrorCode.STREAM_AUTH_FAILED
    assert word in shown.error.message
    assert "wrong" not in shown.error.message


def test_a_camera_that_tells_an_old_address_is_asked_where_it_answered(monkeypatch):
    with OnvifCamera(claims="192.0.2.7") as camera:
        monkeypatch.setattr(onvif, "PORT", camera.port)
        shown = only(search(user="admin", password=PASSWORD))
    assert shown.address == "127.0.0.1"
    assert shown.streams[0].url == "rtsp://127.0.0.1:554/main"


def test_a_network_is_searched(monkeypatch):
    # given two cameras at addresses of loopback, and silence elsewhere
    with OnvifCamera("urn:uuid:1", host="127.0.0.2") as first:
        monkeypatch.setattr(onvif, "PORT", first.port)
        with OnvifCamera("urn:uuid:2", host="127.0.0.9", udp_port=first.port):
            found = search("127.0.0.0/28", user="admin", password=PASSWORD)
    assert [camera.address for camera in found.cameras] == ["127.0.0.2", "127.0.0.9"]
    assert found.hosts == 14


def test_without_an_address_the_network_is_asked(camera, monkeypatch):
    # given the camera in place of the group
    monkeypatch.setattr(onvif, "GROUP", ("127.0.0.1", camera.port))
    monkeypatch.setattr("onveef.wsdiscovery.local_ipv4_addresses", lambda: ["127.0.0.1"])
    found = search(None)
    assert found.hosts is None
    assert only(found).endpoint_reference == camera.reference


def test_a_camera_that_answers_no_probe_is_asked_over_http(camera, monkeypatch):
    camera.answers_probes = False
    monkeypatch.setattr(onvif, "device_service", lambda _: camera.service)
    shown = only(search(user="admin", password=PASSWORD))
    assert shown.endpoint_reference == camera.reference
    assert len(shown.streams) == 2


def test_nothing_is_found_where_nothing_is(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(onvif, "device_service", lambda _: f"http://127.0.0.1:{port}/onvif")
    monkeypatch.setattr(onvif, "PORT", port)
    assert search().cameras == []


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"<a",
        b"<s:Envelope>",
        b"x" * 60_000,
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    ],
)
def test_nonsense_is_no_camera(data):
    assert list(onvif._parse(data, "127.0.0.1")) == []


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("8.8.8.8", ErrorCode.STREAM_URL_FORBIDDEN),
        ("10.0.0.0/8", ErrorCode.INVALID_REQUEST),
        ("0.0.0.0/0", ErrorCode.INVALID_REQUEST),
        ("169.254.169.254", ErrorCode.STREAM_URL_FORBIDDEN),
        ("169.254.10.0/24", ErrorCode.STREAM_URL_FORBIDDEN),
        ("224.0.0.1", ErrorCode.STREAM_URL_FORBIDDEN),
        ("192.168.255.0/21", None),
        ("no such host.invalid", ErrorCode.INVALID_REQUEST),
        (f"admin:{PASSWORD}@camera.invalid", ErrorCode.INVALID_REQUEST),
        ("", ErrorCode.INVALID_REQUEST),
    ],
)
def test_only_private_networks_of_a_bounded_size_are_searched(address, code):
    if code is None:
        with pytest.raises(StreamerError, match="2048 addresses"):
            discovery.hosts_of(address, Settings())
        return
    with pytest.raises(StreamerError) as refused:
        discovery.hosts_of(address, Settings())
    assert refused.value.code is code
    assert PASSWORD not in refused.value.message


def test_an_operator_may_allow_more():
    allowed = Settings(allowed_hosts=["169.254.10.0/24"])
    assert len(discovery.hosts_of("169.254.10.0/24", allowed)) == 254


def attach(client, camera, name=None, host="127.0.0.1", password="one"):
    return client.attach(
        f"rtsp://admin:{password}@{host}:554/main",
        name,
        probe=False,
        endpoint_reference=camera.reference,
    )


def test_attaching_again_gives_the_stream_its_new_address(camera, client):
    # given
    first = attach(client, camera, "door", "127.0.0.5")
    shown = only(search(user="admin", password=PASSWORD, streams=client.streams()))
    assert shown.attached == shown.moved == ["door"]
    # when
    second = attach(client, camera)
    third = attach(client, camera)
    other = client.attach("rtsp://127.0.0.1/sub", probe=False, endpoint_reference=camera.reference)
    # then
    assert first.id == second.id == third.id != other.id
    assert second.url == "rtsp://admin:***@127.0.0.1:554/main"
    assert second.url_version == third.url_version == 1
    found = search(user="admin", password=PASSWORD, streams=client.streams())
    assert sorted(only(found).attached) == sorted(["door", other.name])
    assert only(found).moved == []


def test_the_doctor_says_where_a_lost_camera_is(camera, client, settings):
    # given a stream that is lost
    stream = attach(client, camera, "door", "127.0.0.5")
    lost = StreamStatus(state=StreamState.RECONNECTING, reported_at=utc_now())
    client.registry.save_status(stream.id, lost)
    # then
    (found,) = cameras.moved(settings)
    assert found.name == "camera door"
    assert "127.0.0.1 now" in found.message
    # when it runs
    client.registry.save_status(
        stream.id, StreamStatus(state=StreamState.RUNNING, reported_at=utc_now())
    )
    assert list(cameras.moved(settings)) == []


IN_A_NETWORK = """
import socket, struct, sys
sys.path.insert(0, sys.argv[1])
from streamer.sources import discovery
from streamer.settings import Settings
from tests.support.onvif_camera import OnvifCamera
with OnvifCamera(host="", claims="192.168.77.1", udp_port=3702) as camera:
    group = struct.pack("4s4s", *map(socket.inet_aton, ("239.255.255.250", "192.168.77.1")))
    camera._udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    found = discovery.find_cameras(Settings(), [], None, "admin", "s3cret pass")
    print(found.model_dump_json())
"""


@pytest.mark.slow
def test_multicast_in_a_network_of_its_own(tmp_path):
    # given a network that has nothing but a camera
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs root, unshare and iproute2")
    setup = (
        "ip link set lo up multicast on && ip address add 192.168.77.1/24 dev lo && "
        'ip route add default dev lo src 192.168.77.1 && exec "$@"'
    )
    program = [sys.executable, "-c", IN_A_NETWORK, str(Path(__file__).parents[3])]
    # when
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", setup, "sh", *program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    # then
    assert done.returncode == 0, done.stderr
    found = Discovery.model_validate_json(done.stdout.splitlines()[-1])
    assert found.hosts is None
    assert only(found).address == "192.168.77.1"
    assert len(only(found).streams) == 2


def test_the_command_line(camera, monkeypatch, tmp_path):
    # given no service
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NVILA_CAMERA_PASSWORD", PASSWORD)
    given = ["discover", "--address", "127.0.0.1", "--user", "admin"]
    # when
    shown = CliRunner().invoke(app, given)
    listed = CliRunner().invoke(app, [*given, "--json"])
    monkeypatch.delenv("NVILA_CAMERA_PASSWORD")
    asked = CliRunner().invoke(app, given, input=f"{PASSWORD}\n")
    # then
    assert shown.exit_code == listed.exit_code == asked.exit_code == 0, shown.output
    assert "rtsp://127.0.0.1:554/main" in shown.output
    assert "Front door" in shown.output
    assert "rtsp://127.0.0.1:554/sub" in asked.output
    (line,) = listed.stdout.splitlines()
    assert json.loads(line)["endpoint_reference"] == camera.reference
    for output in (shown.output, listed.output, asked.output):
        assert PASSWORD not in output
        assert "hunter2" not in output


def test_the_api_and_its_client(camera, settings):
    from streamer import Client

    with ApiServer(settings) as server, Client(server.url) as http:
        found = http.discover("127.0.0.1", user="admin", password=PASSWORD)
        shown = only(found)
        assert shown.endpoint_reference == camera.reference
        attached = [
            http.attach(
                shown.streams[0].url, probe=False, endpoint_reference=shown.endpoint_reference
            )
            for _ in range(2)
        ]
        assert attached[0].id == attached[1].id
        assert attached[0].endpoint_reference == camera.reference
        with pytest.raises(StreamerError) as refused:
            http.discover("8.8.8.8")
    assert refused.value.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert refused.value.param == "address"
