"""Every command of the README and docs/ can be pasted: parsed always, and run where it can be."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from streamer.cli.app import app
from streamer.demo.loopback_camera import LoopbackCamera
from tests.support.installation import Up, clean_environment
from tests.support.videos import write_video

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The `sh` blocks of a page."""
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def command_lines(page: Path) -> list[str]:
    """Its `streamer` commands in `sh` blocks and in `ExecStart` lines of units."""
    text = "\n".join(re.sub(r"\\\n\s*", " ", block) for block in blocks(page))
    units = re.findall(r"^ExecStart=\S+/(streamer .*)$", page.read_text(), re.MULTILINE)
    return re.findall(r"^(streamer .*)$", text, re.MULTILINE) + units


COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for line in dict.fromkeys(command_lines(page))
]


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_understood(line: str) -> None:
    words = shlex.split(re.sub(r" [<>|].*", "", line), comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context = command.make_context("streamer", words)
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, list(words), parent=context)
    assert context.params is not None


@pytest.mark.slow
@pytest.mark.timeout(1200)  # twenty programs one after the other
def test_the_tour_can_be_pasted(installation: Up, tmp_path: Path) -> None:
    # given a folder with an environment and a film, a camera, and the service of the first block
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "streamer").write_text(f'#!/bin/sh\nexec {sys.executable} -m streamer.cli "$@"\n')
    (scripts / "streamer").chmod(0o755)
    (scripts / "activate").write_text(f'export PATH="{scripts}:$PATH"\n')
    write_video(tmp_path / "holiday.mp4", seconds=4.0)
    tour = [block for block in blocks(ROOT / "README.md") if re.search("attach|curl", block)]
    assert len(tour) == 2
    environment = clean_environment(
        STREAMER_DATA_DIR=str(installation.data_dir), PYTHONPATH=str(ROOT), HOME=os.environ["HOME"]
    )
    with LoopbackCamera(tmp_path / "holiday.mp4") as camera:
        for block in tour:
            script = re.sub(r"rtsp://[^\s\"]+", camera.url, block)
            script = script.replace("http://", "").replace("127.0.0.1:8080", installation.api_url)
            # when it is pasted
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-x"],
                input=script.replace("curl -s", "curl -sS --fail-with-body"),
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
            )
            # then each command succeeds
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Traceback" not in done.stderr
    installation.cli("detach", "yard")
