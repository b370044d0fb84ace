"""The archive on a disk and in a bucket: written in a thread, found by time."""

import json
import random
import threading
import uuid
import zipfile

import fsspec
import pytest

from streamer.domain.frame import FrameRef
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.archive import Archive
from streamer.frames.archive_writer import ArchiveWriter
from tests.support.clocks import ManualClock

START = 1_800_000_000.0  # 2027-01-15 08:00 UTC
STREAM = "str_0123456789abcdef"
DAY = 86400.0


def frame(at, change=0.0, stream_id=STREAM):
    """Return a reference and its JPEG, whose bytes name the time of capture."""
    time = START + at
    ref = FrameRef(
        stream_id=stream_id,
        id=f"{time * 1000:.0f}-0",
        time=time,
        pts=at,
        width=8,
        height=8,
        change=change,
    )
    return ref, f"jpeg {at}".encode()


@pytest.fixture(params=["folder", "bucket"])
def url(request, tmp_path):
    """A folder, and an in-memory file system of fsspec."""
    if request.param == "folder":
        return str(tmp_path / "archive with blanks")
    return f"memory://{uuid.uuid4().hex}/frames"


@pytest.fixture
def archive(url):
    return Archive(url)


@pytest.fixture
def files(url):
    """The file system of `archive`, which fsspec shares, and the folder in it."""
    return fsspec.url_to_fs(url)


def minutes(archive, first, last, change=None):
    """Write one frame per second for some minutes, one file per minute."""
    for minute in range(first, last):
        archive.write(
            STREAM,
            [frame(60 * minute + s, (change or {}).get(60 * minute + s, 0.0)) for s in range(60)],
        )


def test_frames_come_back_as_they_went_in(archive):
    written = [frame(s, change=s / 10) for s in range(5)]
    archive.write(STREAM, written)
    found = archive.between(STREAM, START, START + 10, count=5)
    assert [f.ref for f in found] == [ref for ref, _ in written]
    assert archive.load(found) == [jpeg for _, jpeg in written]
    assert archive.load(found[::-1]) == [jpeg for _, jpeg in written[::-1]]


def test_a_range_is_half_open_and_of_its_stream_only(archive):
    minutes(archive, 0, 3)
    archive.write("str_fedcba9876543210", [frame(70, stream_id="str_fedcba9876543210")])
    found = archive.between(STREAM, START + 59, START + 62, count=100)
    assert [f.ref.time - START for f in found] == [59, 60, 61]
    assert archive.between(STREAM, START + 1000, START + 2000, count=9) == []
    assert archive.between("str_nobody", START, START + 2000, count=9) == []


def test_midnight_is_no_border(archive):
    midnight = DAY - START % DAY
    archive.write(STREAM, [frame(midnight + s) for s in range(-30, 30)])
    archive.write(STREAM, [frame(midnight + s) for s in range(30, 60)])
    found = archive.between(STREAM, START + midnight + 10, START + midnight + 40, count=100)
    assert [f.ref.time - START - midnight for f in found] == list(range(10, 40))


def test_of_a_long_range_few_files_are_read_among_them_where_something_happened(
    archive, files, monkeypatch
):
    # given five hours with one event
    minutes(archive, 0, 300, change={10_017: 0.4})
    read = []
    system, _ = files
    opened = system.open
    monkeypatch.setattr(
        system, "open", lambda path, *args, **kw: read.append(path) or opened(path, *args, **kw)
    )
    found = archive.between(STREAM, START, START + 18_000, count=8)
    assert len(read) == 32
    times = [f.ref.time - START for f in found]
    assert 10_017 in times
    assert times[0] < 60
    assert times[-1] > 17_900


def test_frames_of_a_newer_release_are_read_and_others_left_out_one_by_one(archive, files):
    # given a file of three frames, to which a newer release adds fields, and changes the second
    made = [frame(at) for at in range(3)]
    archive.write(STREAM, made)
    system, root = files
    (path,) = system.find(root)
    records = [ref.model_dump(mode="json", exclude={"stream_id"}) | {"lens": 1} for ref, _ in made]
    records[1]["width"] = {"pixels": 8}
    with system.open(path, "wb") as file, zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr("frames.json", json.dumps(records))
        for position, (_, jpeg) in enumerate(made):
            bundle.writestr(f"{position}.jpg", jpeg)
    # then the others are found, each with its own picture
    found = archive.between(STREAM, START, START + 10, 10)
    assert [each.ref for each in found] == [made[0][0], made[2][0]]
    assert archive.load(found) == [made[0][1], made[2][1]]


def test_a_damaged_file_is_left_out(archive, files):
    minutes(archive, 0, 1)
    system, root = files
    (path,) = system.glob(f"{root}/{STREAM}/*/*.zip")
    minutes(archive, 1, 2)
    system.pipe_file(path, b"PK\x03\x04 half of it")
    found = archive.between(STREAM, START, START + 200, count=200)
    assert [f.ref.time - START for f in found] == list(range(60, 120))


def test_old_days_go_and_nothing_that_is_not_ours(archive, files):
    for day in range(4):
        archive.write(STREAM, [frame(day * DAY)])
    system, root = files
    for foreign in (f"{root}/holiday/2001-01-01/me.jpg", f"{root}/{STREAM}/notes.txt"):
        system.makedirs(foreign.rsplit("/", 1)[0], exist_ok=True)
        system.pipe_file(foreign, b"mine")
    assert archive.expire(START + 2 * DAY) == 2
    found = archive.between(STREAM, START - DAY, START + 9 * DAY, count=99)
    assert [f.ref.time - START for f in found] == [2 * DAY, 3 * DAY]
    assert archive.expire(START + 99 * DAY) == 2
    assert system.exists(f"{root}/holiday/2001-01-01/me.jpg")
    assert system.exists(f"{root}/{STREAM}/notes.txt")
    assert archive.expire(START + 99 * DAY) == 0


def test_an_archive_that_is_empty_has_nothing_to_delete(archive):
    assert archive.expire(START) == 0


def test_a_file_is_an_ordinary_zip_of_jpegs(tmp_path):
    Archive(str(tmp_path)).write(STREAM, [frame(0), frame(1)])
    (path,) = tmp_path.rglob("*.zip")
    with zipfile.ZipFile(path) as bundle:
        assert bundle.namelist() == ["frames.json", "0.jpg", "1.jpg"]
    assert path.parent.name == "2027-01-15"


@pytest.mark.parametrize("address", ["nosuchscheme://user:s3cret@host/x", "s3cret://"])
def test_an_address_that_nobody_understands_is_one_sentence(address):
    with pytest.raises(StreamerError, match="archive_url") as caught:
        Archive(address)
    assert caught.value.code is ErrorCode.ARCHIVE_UNAVAILABLE
    assert ":s3cret@" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StreamerError, match="cannot be used") as caught:
        Archive(str(tmp_path / "file" / "archive")).require_writable()
    assert caught.value.code is ErrorCode.ARCHIVE_UNAVAILABLE
    Archive(str(tmp_path / "new" / "archive")).require_writable()
    assert list((tmp_path / "new" / "archive").iterdir()) == []


# The writer


def test_what_is_put_in_is_written_when_the_writer_closes(archive):
    with ArchiveWriter(archive, days=7) as writer:
        assert [writer.put(*frame(s)) for s in range(10)] == [0] * 10
    assert len(archive.between(STREAM, START, START + 60, count=99)) == 10


def test_a_file_is_written_after_a_minute(archive, eventually):
    clock = ManualClock(START)
    with ArchiveWriter(archive, days=7, clock=clock) as writer:
        for second in range(59):
            clock.now = START + second
            writer.put(*frame(second))
        assert archive.between(STREAM, START, START + 60, count=99) == []
        clock.now = START + 60
        eventually(lambda: len(archive.between(STREAM, START, START + 60, count=99)) == 59)


def test_old_days_are_deleted_once_an_hour(archive, eventually):
    for day in range(4):
        archive.write(STREAM, [frame(day * DAY)])
    clock = ManualClock(START + 3.5 * DAY)

    def left():
        return len(archive.between(STREAM, START - DAY, START + 9 * DAY, count=99))

    with ArchiveWriter(archive, days=2, clock=clock):
        eventually(lambda: left() == 3)
        clock.now = START + 4.5 * DAY
        eventually(lambda: left() == 2)


class Slow(Archive):
    """A disk that hangs until it is released."""

    def __init__(self, url):
        super().__init__(url)
        self.released = threading.Event()
        self.entered = threading.Event()

    def write(self, stream_id, frames):
        self.entered.set()
        self.released.wait(120)
        super().write(stream_id, frames)


def test_a_disk_that_hangs_costs_frames_of_the_archive_and_nothing_else(tmp_path, eventually):
    # given a disk that hangs, and room for a hundred frames
    slow = Slow(str(tmp_path))
    writer = ArchiveWriter(slow, days=7, memory=100_000)
    picture = random.Random(1).randbytes(1000)
    lost = [writer.put(frame(s)[0], picture) for s in range(250)]
    # then put does not wait, and counts each frame that does not fit
    assert slow.entered.wait(60)
    assert sum(lost) == 150
    assert lost[:100] == [0] * 100
    # and close gives up, but accepted frames are written when the disk recovers
    writer.close(timeout=0.05)
    slow.released.set()
    eventually(lambda: len(slow.between(STREAM, START, START + 999, count=999)) == 100)


class Full(Archive):
    """A disk that is full, and then is not."""

    full = True

    def write(self, stream_id, frames):
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(stream_id, frames)


def test_frames_that_could_not_be_written_are_told_with_the_next(tmp_path, eventually):
    archive, clock = Full(str(tmp_path)), ManualClock(START)
    with ArchiveWriter(archive, days=7, clock=clock) as writer:
        for second in range(10):
            assert writer.put(*frame(second)) == 0
        clock.now = START + 61
        eventually(lambda: writer.pending_bytes == 0)
        assert writer.put(*frame(61)) == 10
        archive.full = False
    assert len(archive.between(STREAM, START, START + 99, count=99)) == 1
