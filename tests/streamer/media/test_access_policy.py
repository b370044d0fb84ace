import ipaddress
import os
from pathlib import Path

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy, special_use
from streamer.media.source import inspect_source
from streamer.settings import Settings


def refused(access: AccessPolicy, url: str) -> str:
    with pytest.raises(StreamerError) as caught:
        access.check(url)
    assert caught.value.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert caught.value.http_status == 403
    return caught.value.message


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1", "this machine"),
        ("127.8.9.10", "this machine"),
        ("0.0.0.0", "this machine"),
        ("0.1.2.3", "this machine"),
        ("::1", "this machine"),
        ("::", "this machine"),
        ("::ffff:127.0.0.1", "this machine"),
        ("64:ff9b::7f00:1", "this machine"),
        ("2002:7f00:1::", "this machine"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("169.254.3.4", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "not a single host"),
        ("255.255.255.255", "not a single host"),
        ("192.168.1.20", None),
        ("10.0.0.1", None),
        ("172.20.1.1", None),
        ("fd12:3456::1", None),
        ("93.184.216.34", None),
        ("2606:2800:220:1::1", None),
    ],
)
def test_what_is_special_about_an_address(address: str, what: str | None) -> None:
    found = special_use(ipaddress.ip_address(address))
    assert found is None if what is None else what in (found or "")


def test_addresses_are_looked_at_in_the_url_too() -> None:
    for url in (
        "http://127.0.0.1/x.mp4",
        "https://[::1]:8443/x.mp4",
        "http://me:hunter2@169.254.169.254/latest",
    ):
        message = refused(AccessPolicy(), url)
        assert "allowed_hosts" in message
        assert "hunter2" not in message


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "LocalHost"])
def test_what_the_setting_names_is_allowed(entry: str) -> None:
    access = AccessPolicy(hosts=("10.9.8.7", entry))
    assert "127.0.0.1" in access.addresses("localhost", 80, "http://localhost/")
    with pytest.raises(StreamerError):
        AccessPolicy(hosts=("10.9.8.7",)).addresses("localhost", 80, "http://localhost/")


def test_cameras_may_be_anywhere() -> None:
    for url in ("rtsp://127.0.0.1:8554/x", "rtsp://169.254.1.2/x", "rtmp://localhost/live/x"):
        assert AccessPolicy(dirs=()).check(url) == url


def test_names_that_are_none() -> None:
    for host in ("nowhere.invalid", "a" * 70 + ".example"):
        with pytest.raises(StreamerError) as caught:
            AccessPolicy().addresses(host, 80, f"http://{host}/")
        assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED


def test_files_are_anybodys_on_the_command_line(tmp_path: Path) -> None:
    settings = Settings(allowed_dirs=[tmp_path])
    assert AccessPolicy.of(settings).check("/etc/hostname") == "/etc/hostname"
    assert "allowed_dirs" in refused(AccessPolicy.of(settings, remote=True), "/etc/hostname")


def test_only_what_lies_in_an_allowed_folder(tmp_path: Path) -> None:
    # given an allowed folder, one beside it whose name begins alike, and links out of the first
    inside, beside = tmp_path / "videos", tmp_path / "videos-private"
    for folder in (inside / "deep", beside):
        folder.mkdir(parents=True)
        (folder / "v.mp4").touch()
    (inside / "link.mp4").symlink_to(beside / "v.mp4")
    (inside / "loop.mp4").symlink_to(inside / "loop.mp4")
    (tmp_path / "alias").symlink_to(inside)
    access = AccessPolicy(dirs=(inside, Path("/dev/video7")))
    # then
    assert access.check(str(inside / "deep" / "v.mp4")) == str(inside / "deep" / "v.mp4")
    assert access.check(str(tmp_path / "alias/deep/v.mp4")) == str(inside / "deep" / "v.mp4")
    assert access.check("/dev/video7") == "/dev/video7"
    for path in (
        beside / "v.mp4",
        inside / "link.mp4",
        inside / "loop.mp4",
        inside / ".." / "videos-private" / "v.mp4",
        Path("/dev/video0"),
        Path("/etc/passwd"),
    ):
        refused(access, str(path))
    assert "allowed_dirs" in refused(AccessPolicy(dirs=()), str(inside / "deep" / "v.mp4"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(StreamerError) as caught:
            inspect_source(str(path), 5)
        assert "not a regular file" in caught.value.message


def test_lists_stand_side_by_side_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_ALLOWED_DIRS", "/videos, /dev/video0")
    monkeypatch.setenv("STREAMER_ALLOWED_HOSTS", "127.0.0.1,media.internal")
    settings = Settings()
    assert settings.allowed_dirs == [Path("/videos"), Path("/dev/video0")]
    assert settings.allowed_hosts == ["127.0.0.1", "media.internal"]


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "[::1]"])
def test_other_ways_to_write_an_address_lead_nowhere_else(host: str) -> None:
    with pytest.raises(StreamerError) as caught:
        inspect_source(f"http://{host}:1/v.mp4", 2)
    assert caught.value.code is ErrorCode.STREAM_URL_FORBIDDEN


def test_an_address_that_is_none_is_not_looked_for() -> None:
    with pytest.raises(StreamerError) as caught:
        inspect_source("http://0177.0.0.1:1/v.mp4", 2)
    assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED
