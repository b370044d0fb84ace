"""The log of every program: one format, one redactor, whatever a caller logs."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from streamer.logging_setup import configure_logging, redact_event
from tests.support.fork_server import run_python
from tests.support.installation import clean_environment

URL = "rtsp://admin:s3cret@camera/live"
SHOWN = "rtsp://admin:***@camera/live"

PROGRAM = """
import logging, structlog
from streamer.logging_setup import configure_logging
configure_logging({level!r})
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


def run(program: str, *, fresh: bool = False) -> str:
    """Run `program` and return what it wrote to stderr, which holds no secret."""
    if fresh:
        finished = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
    else:
        finished = run_python(["-c", program], env=clean_environment())
    assert finished.stdout == ""
    assert "s3cret" not in finished.stderr
    return finished.stderr


def lines(level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(PROGRAM.format(level=level)).splitlines()]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; its handlers and what else is set up for the process are restored."""
    logger, hooks = logging.getLogger(), (sys.excepthook, sys.unraisablehook)
    before = logger.handlers[:], logger.level, logging.lastResort
    log = structlog.get_config()
    yield logger
    logger.handlers[:], level, logging.lastResort = before
    logger.setLevel(level)
    sys.excepthook, sys.unraisablehook = hooks
    structlog.configure(**log)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_that_a_program_is_ready_is_said_at_every_level(level: str) -> None:
    program = (
        "from streamer.logging_setup import configure_logging, log_ready\n"
        f"configure_logging({level!r}); log_ready(url='rtsp://admin:s3cret@camera/live')"
    )
    event = json.loads(run(program))
    assert event.pop("timestamp")
    assert event == {"event": "ready", "level": "info", "url": SHOWN}


def test_one_json_object_a_line_on_stderr_without_any_password() -> None:
    opened, library, failed = lines()
    assert opened["event"] == "opened"
    assert opened["level"] == "info"
    assert opened["timestamp"].endswith("Z")
    assert opened["url"] == SHOWN
    assert opened["nested"] == {"u": "rtsp://a:***@b/"}
    assert library["event"] == f"cannot open {SHOWN}"
    assert "Traceback" in failed["exception"]
    assert SHOWN in failed["exception"]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["a_detail", "opened", "noise", "failed"]),
        ("warning", ["failed"]),
        ("error", ["failed"]),
    ],
)
def test_the_level_applies_to_every_logger(level: str, events: list[str]) -> None:
    found = [line["event"] for line in lines(level)]
    assert [event for event in found if not event.startswith("cannot open")] == events


class Camera:
    """An object whose text holds a password."""

    def __repr__(self) -> str:
        return f"Camera({URL})"


@pytest.mark.parametrize(
    "value",
    [
        URL,
        {"inner": [{"url": URL}]},
        {URL: 1},
        (URL, 1),
        {URL},
        OSError(URL),
        [OSError(URL)],
        Camera(),
        URL.encode(),
        "password=s3cret",
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_secret_is_masked_in_any_field(value: object) -> None:
    event = redact_event(None, "info", {"event": value, "field": value})
    assert "s3cret" not in json.dumps(event)
    assert "***" in json.dumps(event["field"])
    assert event["event"] == event["field"]


def test_numbers_stay_numbers() -> None:
    event = {"event": "answered", "ms": 12, "share": 0.5, "live": True, "error": None}
    assert redact_event(None, "info", dict(event)) == event


@pytest.mark.parametrize(
    "crash",
    [
        "raise OSError(url) from ValueError(url)",
        "import threading; threading.Thread(target=lambda: open(url)).start()",
        "class Fragile:\n  def __del__(self): raise OSError(url)\nfragile = Fragile(); del fragile",
    ],
    ids=["program", "thread", "destructor"],
)
def test_a_secret_is_masked_in_the_traceback_of_a_crash(crash: str) -> None:
    (line,) = run(
        "from streamer.logging_setup import configure_logging\n"
        f"configure_logging()\nurl = {URL!r}\n{crash}"
    ).splitlines()
    crashed = json.loads(line)
    assert (crashed["event"], crashed["level"]) == ("crashed", "critical")
    assert "Traceback" in crashed["exception"]
    assert SHOWN in crashed["exception"]


def test_a_terminal_gets_lines_for_people(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging("info")
    structlog.get_logger().info("opened", url=URL)
    written = capsys.readouterr().err
    assert "opened" in written
    assert "s3cret" not in written
    assert not written.startswith("{")


def test_a_command_that_logs_nothing_sets_nothing_up() -> None:
    assert (
        run(
            "import sys\n"
            "from streamer.logging_setup import configure_logging_on_demand\n"
            "configure_logging_on_demand()\n"
            "assert 'structlog' not in sys.modules\n",
            fresh=True,
        )
        == ""
    )


def test_the_first_warning_of_a_command_sets_the_log_up() -> None:
    (line,) = run(
        "import logging\n"
        "from streamer.logging_setup import configure_logging_on_demand\n"
        "configure_logging_on_demand()\n"
        "log = logging.getLogger('library')\n"
        "log.info('a detail')\n"
        f"log.warning('cannot open %s', {URL!r})\n"
    ).splitlines()
    assert json.loads(line)["event"] == f"cannot open {SHOWN}"
