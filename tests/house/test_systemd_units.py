"""configs/systemd/: units that systemd accepts, for programs that exist, with few rights."""

import json
import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from streamer.settings import ENV_PREFIX, Settings
from tests.house.test_containers import check_command

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "configs" / "systemd").glob("*.service"))
PROGRAM = "/opt/streamer/.venv/bin/streamer"

MAX_EXPOSURE = 2.5
"""Of 10, in systemd's review; a program without any restriction has 9.6."""

ids = [unit.name for unit in UNITS]


class _Unit(RawConfigParser):
    """A unit: a key may occur several times, and its values add up."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read(path)
        self.environment = re.findall(r"^Environment=(.*)$", path.read_text(), re.MULTILINE)


@pytest.fixture
def analyze(tmp_path: Path):
    """Run systemd-analyze on copies of the units, whose program is there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    for unit in UNITS:
        name = unit.name.replace("@.", "@0.")
        (tmp_path / name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))

    def run(*arguments: str) -> str:
        names = [path.name for path in tmp_path.glob("*.service")]
        files = [f"./{name}" for name in names] if arguments[0] == "verify" else []
        done = subprocess.run(
            [program, *arguments, *files],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_there_is_a_unit_for_each_program() -> None:
    commands = [_Unit(unit)["Service"]["ExecStart"].split() for unit in UNITS]

    for words in commands:
        assert words[0] == PROGRAM
        check_command(words[1:])
    assert {words[1] for words in commands} == {"up", "serve", "ingest", "worker", "record"}


@pytest.mark.parametrize("path", UNITS, ids=ids)
def test_settings_of_a_unit_exist(path: Path) -> None:
    unit = _Unit(path)
    given = {pair.split("=")[0] for line in unit.environment for pair in line.split()}
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}

    assert {name for name in given if name.startswith(ENV_PREFIX)} <= known
    assert unit["Service"]["EnvironmentFile"] == "-/etc/streamer.env"
    assert ("CUDA_VISIBLE_DEVICES=%i" in unit.environment) is ("@" in path.name)


def test_systemd_accepts_the_units(analyze) -> None:
    assert analyze("verify", "--man=no") == ""


@pytest.mark.parametrize("path", UNITS, ids=ids)
def test_a_unit_gives_few_rights(path: Path, analyze) -> None:
    name = path.name.replace("@.", "@0.")
    reported = analyze("security", "--offline=true", "--json=short", "--no-pager", f"./{name}")
    exposed = sum(float(row["exposure"] or 0) for row in json.loads(reported))
    allowed = analyze(
        "security",
        "--offline=true",
        f"--threshold={MAX_EXPOSURE * 10:g}",
        "--no-pager",
        f"./{name}",
    )

    assert exposed > 0
    assert "Overall exposure level" in allowed
