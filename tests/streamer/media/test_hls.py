"""Playlists over HTTP and on disk: what they may name, and what they may not."""

import contextlib
import threading
import time
from pathlib import Path

import av
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.sampler import FpsSampler
from streamer.media.source import Source, inspect_source
from tests.support.videos import number_of, numbered_picture, write_video
from tests.support.web import HERE, Site, numbers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording of four seconds as a playlist of two-second segments."""
    write_video(tmp_path / "v.mp4", seconds=4, gop=25, width=160, height=120)
    options = {"hls_time": "2", "hls_list_size": "0"}
    with (
        av.open(str(tmp_path / "v.mp4")) as video,
        av.open(str(tmp_path / "list.m3u8"), "w", format="hls", options=options) as playlist,
    ):
        stream = playlist.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                playlist.mux(packet)
    return tmp_path


def failure(url: str, access: AccessPolicy = HERE) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        numbers(url, access=access)
    return caught.value


def test_a_recording_is_read_whole(site: Site) -> None:
    assert numbers(f"{site.url}/list.m3u8") == list(range(100))


def test_a_playlist_by_another_name(site: Site, folder: Path) -> None:
    (folder / "stream.cgi").write_bytes((folder / "list.m3u8").read_bytes())
    assert numbers(f"{site.url}/stream.cgi?id=7") == list(range(100))


def test_only_opening_tells_a_recording_from_a_camera(site: Site, folder: Path) -> None:
    assert inspect_source(f"{site.url}/list.m3u8", 5, HERE).duration == pytest.approx(4.0)
    text = (folder / "list.m3u8").read_text()
    (folder / "live.m3u8").write_text(text.replace("#EXT-X-ENDLIST\n", ""))
    assert inspect_source(f"{site.url}/live.m3u8", 5, HERE).duration is None


def test_a_live_playlist_grows(site: Site, folder: Path) -> None:
    # given a live playlist with only its first segment
    text = (folder / "list.m3u8").read_text()
    first = text[: text.index("list1.ts")].rpartition("#EXTINF")[0]
    first = first.replace("TARGETDURATION:2", "TARGETDURATION:1")
    (folder / "live.m3u8").write_text(first)
    found = []
    with Source(f"{site.url}/live.m3u8", live=True, access=HERE, read_timeout=10) as source:
        frames = iter(source)
        for frame in frames:
            found.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if len(found) == 40:
                (folder / "live.m3u8").write_text(text)
            if len(found) == 100:
                break
        # then its end is a lost connection
        with pytest.raises(StreamerError) as caught:
            next(frames)
        assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert found == list(range(100))


def test_segments_may_be_elsewhere_but_not_anywhere(site: Site, folder: Path) -> None:
    text = (folder / "list.m3u8").read_text()
    for name, target in {
        "here": f"{site.url}/list1.ts",
        "forbidden": f"http://127.0.0.2:{site.port}/list1.ts",
        "metadata": "http://169.254.169.254/latest/meta-data/x.ts",
        "file": f"file://{folder}/list1.ts",
        "path": f"{folder}/list1.ts",
        "concat": f"concat:{folder}/list0.ts|{folder}/list1.ts",
        "pipe": "subfile,,start,0,end,100,,:/etc/passwd",
    }.items():
        (folder / f"{name}.m3u8").write_text(text.replace("list1.ts", target))
    narrow = AccessPolicy(hosts=("127.0.0.1/32",))
    assert numbers(f"{site.url}/here.m3u8", access=narrow) == list(range(100))
    for name in ("forbidden", "metadata"):
        error = failure(f"{site.url}/{name}.m3u8", narrow)
        assert error.code is ErrorCode.STREAM_URL_FORBIDDEN, name
        assert "allowed_hosts" in error.message
    # then no file of this machine is opened, in any spelling
    for name in ("file", "path", "concat", "pipe"):
        found = []
        with (
            contextlib.suppress(StreamerError),
            Source(f"{site.url}/{name}.m3u8", live=False, access=HERE) as source,
        ):
            found += [number_of(f.image.to_ndarray(format="rgb24")) for f in source]
        assert max(found, default=0) < 50, name


def test_a_segment_that_is_missing_is_not_passed_over(site: Site, folder: Path) -> None:
    (folder / "list0.ts").rename(folder / "gone.ts")
    error = failure(f"{site.url}/list.m3u8")
    assert error.code is ErrorCode.STREAM_NOT_FOUND
    assert "list0.ts" in error.message


def test_a_redirected_playlist_is_relative_to_where_it_is(site: Site, folder: Path) -> None:
    (folder / "deep").mkdir()
    for name in ("list.m3u8", "list0.ts", "list1.ts"):
        (folder / name).rename(folder / "deep" / name)
    site.redirects = {"/now.m3u8": "/deep/list.m3u8"}
    assert numbers(f"{site.url}/now.m3u8") == list(range(100))


def test_a_password_is_for_the_segments_too(site: Site) -> None:
    site.digest = ("admin", "p@ss")
    assert numbers(f"http://admin:p%40ss@{site.address}/list.m3u8") == list(range(100))


def test_encrypted_segments(site: Site, folder: Path) -> None:
    key = bytes(range(16))
    (folder / "key.bin").write_bytes(key)
    for index in (0, 1):
        padder = PKCS7(128).padder()
        data = padder.update((folder / f"list{index}.ts").read_bytes()) + padder.finalize()
        writer = Cipher(algorithms.AES(key), modes.CBC(index.to_bytes(16, "big"))).encryptor()
        (folder / f"list{index}.ts").write_bytes(writer.update(data) + writer.finalize())
    text = (folder / "list.m3u8").read_text()
    text = text.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="key.bin"\n#EXTINF', 1)
    (folder / "list.m3u8").write_text(text)
    assert numbers(f"{site.url}/list.m3u8") == list(range(100))
    # when the key is another one
    (folder / "key.bin").write_bytes(bytes(16))
    failure(f"{site.url}/list.m3u8")


def test_a_playlist_on_disk(folder: Path) -> None:
    assert numbers(str(folder / "list.m3u8")) == list(range(100))


def test_a_playlist_on_disk_stays_in_its_folder(folder: Path, tmp_path: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    text = (folder / "list.m3u8").read_text()
    (inner / "link.ts").symlink_to(folder / "list0.ts")
    for target in ("../list0.ts", str(folder / "list0.ts"), "link.ts"):
        (inner / "list.m3u8").write_text(text.replace("list0.ts", target))
        error = failure(str(inner / "list.m3u8"))
        assert error.code is ErrorCode.STREAM_URL_FORBIDDEN, target
        assert "next to its playlist" in error.message


def test_nothing_but_a_playlist_is_read_as_one(folder: Path) -> None:
    # given playlists that call themselves videos
    for name, text in {
        "a.mp4": (folder / "list.m3u8").read_text(),
        "b.mp4": f"ffconcat version 1.0\nfile '{folder}/v.mp4'\n",
        "c.txt": "ffconcat version 1.0\nfile v.mp4\n",
        "d.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    }.items():
        (folder / name).write_text(text)
        error = failure(str(folder / name))
        assert error.code is ErrorCode.STREAM_NO_VIDEO, name


def test_stopping_while_a_playlist_stalls(site: Site, folder: Path) -> None:
    site.stall = {"/list1.ts"}
    with pytest.raises(StreamerError) as caught:
        numbers(f"{site.url}/list.m3u8", read_timeout=0.6)
    assert caught.value.code is ErrorCode.STREAM_TIMEOUT
    stopping = threading.Event()
    seen = []
    source = Source(
        f"{site.url}/list.m3u8",
        live=False,
        access=HERE,
        read_timeout=10,
        stopping=stopping.is_set,
    )
    with source:
        for _ in source:
            seen.append(1)
            if len(seen) > 40:
                stopping.set()
    assert len(seen) < 60


@pytest.mark.parametrize("marked", [True, False])
def test_a_live_encoder_that_restarts_silences_nothing(
    site: Site, folder: Path, marked: bool
) -> None:
    # given a live playlist whose encoder restarts, so that its clock starts over
    for place in range(4):
        pictures = [numbered_picture(50 * place + n, 160, 120) for n in range(50)]
        start = 7000.0 + 2 * place if place < 2 else 2.0 * (place - 2)
        times = [start + n / 25 for n in range(50)]
        write_video(
            folder / f"{place}.ts", times=times, gop=25, width=160, height=120, pictures=pictures
        )

    def playlist(count: int) -> str:
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2"]
        for place in range(count):
            lines += ["#EXT-X-DISCONTINUITY"] if marked and place == 2 else []
            lines += ["#EXTINF:2.0,", f"{place}.ts"]
        return "\n".join([*lines, ""])

    (folder / "live.m3u8").write_text(playlist(2))
    frames = []

    # when it is read, with a frame a second wanted
    sampler = FpsSampler(1.0)
    url = f"{site.url}/live.m3u8"
    with Source(url, live=True, access=HERE, read_timeout=20, sampler=lambda: sampler) as source:
        for frame in source:
            if not sampler.keep(frame.pts, frame.image):
                continue
            frames.append(frame)
            if len(frames) == 3:
                (folder / "live.m3u8").write_text(playlist(4))
            if len(frames) == 8:
                break

    # then a frame a second comes, and none is dated in the future
    found = [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]
    assert found == [25 * n for n in range(8)]
    assert [frame.pts for frame in frames] == pytest.approx(range(8), abs=0.1)
    assert all(frame.time <= time.time() for frame in frames)
