import os
import string
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import inspect_source
from streamer.media.urls import guess_live, normalise, parse_source, path_of, redact, split_secret
from tests.support.videos import write_video

PLANTED = "p@ss/w#rd% x:y?z"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:secret@[::1]:554/live", "rtsp://admin:***@[::1]:554/live"),
        ("rtsp://:secret@cam", "rtsp://:***@cam"),
        ("redis://:secret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("RTSPS://admin:SECRET@CAM/", "RTSPS://admin:***@CAM/"),
        ("rtsp://admin:p@ss@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:pa/ss@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:pa#ss@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:pa?ss@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:pa ss@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:p%40s%2Fs@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:12/34@cam/live", "rtsp://admin:***@cam/live"),
        (f"rtsp://admin:{PLANTED}@cam:8554/live", "rtsp://admin:***@cam:8554/live"),
        ("http://cam/x?user=a&password=secret&n=1", "http://cam/x?user=a&password=***&n=1"),
        ("http://cam/x?pwd=secret", "http://cam/x?pwd=***"),
        ("http://cam/x?loginuse=a&loginpas=secret", "http://cam/x?loginuse=a&loginpas=***"),
        ("http://cam/x?token=secret#t", "http://cam/x?token=***"),
        ("http://cam/x?API_KEY=secret", "http://cam/x?API_KEY=***"),
        ("rtsp://cam/user=admin_password=secret_channel=1", "rtsp://cam/user=admin_password=***"),
        ("go=rtsp%3A%2F%2Fme%3Asecret%40cam%2Fx&n=1", "go=rtsp%3A%2F%2Fme%3A***%40cam%2Fx&n=1"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://cam/live",
        "rtsp://cam:554/live",
        "rtsp://[::1]:554/live",
        "rtsp://admin@cam/live",
        "cannot open rtsp://cam:554/live: ask admin@example.org",
        "/videos/a@b:c.mp4",
        "nothing to hide: a@b",
        "",
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    ["jwt", "pw", "session", "_sid", "hmac", "st", "e", "sign", "X-Amz-Credential", "code", "x"],
)
@pytest.mark.parametrize("value", ["Kq7wTz", "Kq7 wTz", "Kq7'wTz", "Kq7%20wTz", "Kq7,wTz", "-"])
@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtmp"])
def test_a_parameter_that_may_be_a_secret_is_masked(name: str, value: str, scheme: str) -> None:
    """Whatever it is called: only the parameters that cameras are known to have are shown."""
    shown, full = split_secret(f"{scheme}://cam/x?channel=1&{name}={value}&subtype=0")
    assert shown == f"{scheme}://cam/x?channel=1&{name}=***&subtype=0"
    assert unquote(full).endswith(f"&{name}={unquote(value)}&subtype=0")
    for text in (f"cannot open '{full}'", f'{{"url": "{full}"}}', f"({full}).", quote(full)):
        assert "Kq7" not in redact(text)
        assert "wTz" not in redact(text)
        assert "subtype" in redact(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://cam/x?Kq7wTz", "http://cam/x?***"),
        ("http://cam/x?tcp&Kq7wTz", "http://cam/x?tcp&***"),
        ("http://cam/x?a=1;b=2", "http://cam/x?a=***;b=***"),
        ("http://cam/x#access_token=1&video=h264", "http://cam/x#access_token=***&video=h264"),
        ("http://cam/x?src=http://h/y?k=1", "http://cam/x?src=***"),
        ("http://cam/x?channel=rtsp%3A%2F%2Fu%3Ap%40h", "http://cam/x?channel=***"),
        ("http://cam/x?channel=" + "a" * 40, "http://cam/x?channel=***"),
        (
            "rtsps://10.0.0.1:7441/Fuf8aTQsWbOYKR4i?enableSrtp",
            "rtsps://10.0.0.1:7441/***?enableSrtp",
        ),
        ("rtmp://live/app/abcd-1234-efgh-5678-ijkl", "rtmp://live/app/***"),
        ("http://h/3f2504e0-4f89-11d3-9a0c-0305e82c3301/live", "http://h/***/live"),
        ("http://h/eyJhbGciOiJIUzI1NiJ9.e30.abc/live", "http://h/***/live"),
        ("https://ghp16C7e42F292c6912E7@h/x", "https://***@h/x"),
    ],
)
def test_what_looks_like_a_token_is_masked(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://cam/cam/realmonitor?channel=1&subtype=0",
        "rtsp://cam/axis-media/media.amp?resolution=640x480&fps=10&videocodec=h264",
        "http://cam/cgi-bin/mjpg/video.cgi?channel=1&subtype=1: check the address.",
        "(http://cam/x?profile=main&width=640).",
        "rtsp://cam/h264Preview_01_main",
        "rtsp://cam/Streaming/Channels/101",
        "http://site/20261125T160000/holiday-in-november.mp4",
        "Is it red? x=3",
    ],
)
def test_the_usual_parameters_and_paths_of_cameras_stay(text: str) -> None:
    assert redact(text) == text


def test_every_url_of_a_longer_text_is_masked() -> None:
    text = (
        "lost 'rtsp://a:one@cam1/x' and\n"
        '  {"url": "http://b:t@w/o@cam2/y", "mail": "a@b"}\n'
        "but not rtsp://cam3:554/z, then (rtsp://c:three@cam4)"
    )
    shown = redact(text)
    assert shown == (
        "lost 'rtsp://a:***@cam1/x' and\n"
        '  {"url": "http://b:***@cam2/y", "mail": "a@b"}\n'
        "but not rtsp://cam3:554/z, then (rtsp://c:***@cam4)"
    )


def test_redacting_twice_changes_nothing_more() -> None:
    once = redact(f"rtsp://admin:{PLANTED}@cam/live?token=abc")
    assert redact(once) == once


users = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=8)
passwords = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=4
).filter(lambda p: "***" not in p and "*" not in p)
hosts = st.sampled_from(["cam", "cam.example.org:8554", "10.0.0.7", "[fe80::1]:554"])
around = st.sampled_from([("", ""), ("cannot open ", ""), ('{"url": "', '"}'), ("<", "> failed")])


@given(users, passwords, hosts, around)
def test_an_encoded_password_never_shows(
    user: str, password: str, host: str, text: tuple[str, str]
) -> None:
    url = f"{text[0]}rtsp://{user}:{quote(password, safe='')}@{host}/live{text[1]}"
    assert redact(url) == f"{text[0]}rtsp://{user}:***@{host}/live{text[1]}"


@given(users, passwords, hosts)
@example("admin", "12/34 5@6", "cam")
@example("admin", "a://b c@d", "cam")
@example("admin", "5542", "cam")
def test_a_raw_password_never_shows(user: str, password: str, host: str) -> None:
    # " x://" in a password looks like another URL: such a password has to be encoded
    if " " in password and "://" in password:
        return
    for url in (f"rtsp://{user}:{password}@{host}/live", f"rtsp://{user}:{password}@{host}"):
        assert password not in redact(url).replace(f"rtsp://{user}:", "").replace(host, "")
        assert redact(url).endswith(url.rpartition("@")[2])


@given(users, passwords, hosts)
def test_ffmpeg_gets_the_password_that_was_meant(user: str, password: str, host: str) -> None:
    full = normalise(f"rtsp://{user}:{quote(password, safe='')}@{host}/live")
    parts = urlsplit(full)
    assert unquote(parts.password or "") == password
    assert unquote(parts.username or "") == user
    assert full.endswith(f"@{host}/live")
    assert normalise(full) == full


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("rtsp://admin:p@ss@cam/live", "p@ss"),
        ("rtsp://admin:pa/ss@cam/live", "pa/ss"),
        ("rtsp://admin:pa#ss@cam/live", "pa#ss"),
        ("rtsp://admin:pa ss@cam/live", "pa ss"),
        ("rtsp://admin:100%@cam/live", "100%"),
        ("rtsp://admin:p%40ss@cam/live", "p@ss"),
        ("rtsp://admin:a:b@cam/live", "a:b"),
        (f"rtsp://admin:{PLANTED}@cam:8554/live", PLANTED),
        ("rtsp://admin:p@ss/w rd@cam/live", "p@ss/w rd"),
        ("rtsp://u:p@cam/clip?mail=a@b.example", "p"),
    ],
)
def test_a_raw_password_is_encoded_for_ffmpeg(url: str, password: str) -> None:
    parts = urlsplit(normalise(url))
    assert unquote(parts.password or "") == password
    assert (parts.hostname or "").startswith("cam")


def test_an_at_sign_in_the_path_is_no_password() -> None:
    assert normalise("rtsp://cam:554/user@site/live") == "rtsp://cam:554/user@site/live"
    assert normalise("rtsp://cam/user@site/live") == "rtsp://cam/user@site/live"


def test_split_secret_gives_one_to_show_and_one_to_open() -> None:
    shown, full = split_secret(f"rtsp://admin:{PLANTED}@cam:8554/live?token=abc")
    assert shown == "rtsp://admin:***@cam:8554/live?token=***"
    assert unquote(urlsplit(full).password or "") == PLANTED
    assert full.endswith("@cam:8554/live?token=abc")


def test_a_path_is_not_touched() -> None:
    assert split_secret("/a/b@c d.mp4") == ("/a/b@c d.mp4", "/a/b@c d.mp4")


@pytest.mark.parametrize(
    ("url", "live"),
    [
        ("rtsp://cam/x.mp4", True),
        ("rtsps://cam/x", True),
        ("rtmp://cam/x", True),
        ("http://cam/video.cgi", True),
        ("http://cam/live.m3u8", True),
        ("https://site/clip.MP4?x=1", False),
        ("/videos/clip.mp4", False),
        ("/dev/video0", True),
    ],
)
def test_what_guess_live(url: str, live: bool) -> None:
    assert guess_live(url) is live


def test_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name.mp4").touch()
    assert parse_source("clip.mp4") == str(tmp_path / "clip.mp4")
    assert parse_source("odd:name.mp4") == str(tmp_path / "odd:name.mp4")
    assert parse_source("file:///a/b%20c.mp4") == "/a/b c.mp4"
    assert parse_source("file:clip.mp4") == str(tmp_path / "clip.mp4")
    assert parse_source(" rtsp://cam/live ") == "rtsp://cam/live"


@pytest.mark.parametrize(
    "text", ["ftp://cam/x", "gopher://x/", "concat:/etc/passwd|x", "data:video/mp4;base64,AAAA"]
)
def test_other_schemes_are_forbidden(text: str) -> None:
    with pytest.raises(StreamerError) as caught:
        parse_source(text)
    assert caught.value.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert "rtsp://" in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "  ", "rtsp://", "rtsp:///live", "rtsp://a b/x", "rtsp://cam:99999/", "a\nb"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StreamerError) as caught:
        parse_source(text)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_a_refusal_shows_no_password() -> None:
    with pytest.raises(StreamerError) as caught:
        parse_source("rtsp://admin:hunter2@cam:99999/")
    assert "hunter2" not in caught.value.message
    assert "***" in caught.value.message


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http"])
@pytest.mark.parametrize("zone", ["%25eth0", "%eth0", "%25en-p1.5", "%2"])
@pytest.mark.parametrize("user", ["", "admin:p@ss@", "admin@"])
def test_an_ipv6_address_with_a_zone(scheme: str, zone: str, user: str) -> None:
    """RFC 6874 writes the zone with `%25`; sockets and FFmpeg take it with `%` alone."""
    url = parse_source(f"{scheme}://{user}[fe80::1{zone}]:8554/live")
    assert urlsplit(url).hostname == f"fe80::1%{zone.removeprefix('%25').removeprefix('%')}"
    assert urlsplit(url).port == 8554
    assert parse_source(url) == url
    assert "p@ss" not in redact(url)
    assert redact(url).endswith(f"@[{urlsplit(url).hostname}]:8554/live" if user else "/live")


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff%41 b.mp4", b"\xc3\xa9.mp4", b"a%20b.mp4"])
def test_a_file_whose_name_may_not_be_utf8(tmp_path: Path, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    write_video(tmp_path / "v.mp4", seconds=0.5)
    os.rename(tmp_path / "v.mp4", path)
    source = parse_source(path)
    assert source.encode().decode() == source  # JSON and Redis can store it
    assert path_of(source) == path
    assert parse_source(source) == source
    allowed = AccessPolicy(dirs=(tmp_path,)).check(source)
    assert path_of(allowed) == os.path.realpath(path)
    assert inspect_source(allowed).width
    os.unlink(path)
    with pytest.raises(StreamerError) as caught:
        inspect_source(source)
    assert caught.value.code is ErrorCode.STREAM_NOT_FOUND
    caught.value.message.encode()
