"""Hardware decoding: works on a machine with a GPU, falls back with a log line elsewhere."""

import logging
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from streamer.media import hardware
from streamer.media.source import Source
from tests.support.videos import write_video


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    kept = (hardware.cuda_unavailable_reason, hardware._log_software_decoding)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.fixture
def video(tmp_path: Path) -> str:
    write_video(tmp_path / "v.mp4", seconds=1.0)
    return str(tmp_path / "v.mp4")


@pytest.fixture
def no_card() -> None:
    if hardware.cuda_unavailable_reason() is None:
        pytest.skip("this machine has a card")


@pytest.mark.parametrize(("wanted", "level"), [("auto", "INFO"), ("cuda", "WARNING")])
def test_without_a_card_it_is_software_and_said_once(
    no_card: None,
    video: str,
    wanted: hardware.Hardware,
    level: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in range(3):
        with Source(video, live=False, hwaccel=wanted) as source:
            assert sum(1 for _ in source) == 25
    said = [record for record in caplog.records if "software" in record.getMessage()]
    assert [record.levelname for record in said] == [level]
    assert "driver" in said[0].getMessage() or "CUDA" in said[0].getMessage()


def test_none_never_looks(video: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Source(video, live=False) as source:
        assert sum(1 for _ in source) == 25
    assert hardware.cuda_unavailable_reason.cache_info().currsize == 0
    assert not caplog.records


def test_the_trap_that_this_is_for(no_card: None, video: str) -> None:
    """If PyAV ever falls back by itself, the module can be removed."""
    with pytest.raises((av.FFmpegError, OSError)):
        av.open(video, hwaccel=av.codec.hwaccel.HWAccel("cuda", allow_software_fallback=True))


def test_a_card_that_fails_later_is_left_alone(
    no_card: None, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that has found a GPU, which is lost or full now
    tried = hardware._try_device
    monkeypatch.setattr(hardware, "cuda_unavailable_reason", lambda: None)

    with hardware.open_input("auto", file=video) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25
    assert tried() is not None


def test_a_source_that_fails_is_told_as_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hardware.open_input("auto", file=str(tmp_path / "absent.mp4"))


def test_a_card_proves_itself_by_its_pixels(no_card: None) -> None:
    assert hardware.decoder_missing_reason() is not None


@pytest.mark.gpu
def test_a_card_decodes(video: str) -> None:
    assert hardware.cuda_unavailable_reason() is None
    assert hardware.decoder_missing_reason() is None
    with Source(video, live=False, hwaccel="cuda") as source:
        frames = list(source)
    assert len(frames) == 25
    assert frames[0].image.format.name == "nv12"
