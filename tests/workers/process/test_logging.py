import json
import logging
import subprocess
import sys

import pytest
import structlog

from workers.process.logging import configure

PROGRAM = """
import logging, structlog
from workers.log import configure
configure({level!r})
log = structlog.get_logger()
log.debug("a_detail")
log.info("opened", url="rtsp://admin:s3cret@camera/live", nested={{"u": "rtsp://a:s3cret@b/"}})
logging.getLogger("library").warning("cannot open %s", "rtsp://admin:s3cret@camera/live")
logging.getLogger("rq.worker").info("noise")
try:
    raise OSError("rtsp://admin:s3cret@camera/live")
except OSError as error:
    log.exception("failed", error=error)
"""


def lines(level="info"):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(level=level)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert finished.stdout == ""
    assert "s3cret" not in finished.stderr
    return [json.loads(line) for line in finished.stderr.splitlines()]


def test_one_json_object_a_line_on_stderr_without_any_password():
    opened, library, failed = lines()
    assert opened["event"] == "opened"
    assert opened["level"] == "info"
    assert opened["timestamp"].endswith("Z")
    assert opened["url"] == "rtsp://admin:***@camera/live"
    assert library["event"] == "cannot open rtsp://admin:***@camera/live"
    assert "Traceback" in failed["exception"]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["a_detail", "opened", "noise", "failed"]),
        ("warning", ["failed"]),
        ("error", ["failed"]),
    ],
)
def test_the_level_holds_for_all(level, events):
    found = [line["event"] for line in lines(level)]
    assert [event for event in found if not event.startswith("cannot open")] == events


def test_a_terminal_gets_lines_for_people(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure("info")
        structlog.get_logger().info("opened", url="rtsp://a:s3cret@b/")
        written = capsys.readouterr().err
    finally:
        root.handlers[:], root.level = before
        structlog.reset_defaults()
    assert "opened" in written
    assert "s3cret" not in written
    assert not written.startswith("{")
