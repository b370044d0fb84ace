"""Ctrl-C: a command that was not done ends with exit code 130, and says nothing more."""

import signal
import socket
from pathlib import Path

import pytest

from streamer.local.process import spawn, stop
from streamer.settings import Settings
from tests.support.installation import PROGRAM, clean_environment


@pytest.mark.parametrize(
    "command",
    [
        ["probe", "{url}"],
        ["attach", "{url}"],
    ],
    ids=" ".join,
)
def test_ctrl_c_ends_a_command_that_waits(
    settings: Settings, tmp_path: Path, command: list[str]
) -> None:
    # given a camera that accepts connections and says nothing, and a command that waits for it
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as camera:
        camera.settimeout(100)
        source = f"rtsp://127.0.0.1:{camera.getsockname()[1]}/live"
        running = spawn(
            [*PROGRAM, *(word.format(url=source) for word in command)],
            env=clean_environment(
                STREAMER_REDIS_URL=settings.redis_url or "", STREAMER_OPEN_TIMEOUT="100"
            ),
            log=log,
        )
        try:
            connection, _ = camera.accept()
            with connection:
                # when somebody presses Ctrl-C
                running.send_signal(signal.SIGINT)
                # then it ends with 130
                assert running.wait(60) == 130, log.read_text()
        finally:
            stop(running)
    assert "Traceback" not in log.read_text()
    assert "Unexpected" not in log.read_text()
