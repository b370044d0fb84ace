"""Programs of others, each in an environment of its own that later runs of the tests use again.

The folder is `NVILA_TEST_CLIENTS`, by default in the user's cache. Packages come from the
registries that pip and npm are set up with.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from platformdirs import user_cache_path

CACHE_VARIABLE = "NVILA_TEST_CLIENTS"

INSTALL = 1800.0
"""Seconds that an installation may take."""

RUN = 600.0
"""Seconds that a program may run."""


def cache_folder() -> Path:
    """Return the folder that holds the environments."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else user_cache_path("nvila-streamer-test-clients")


def python_with(name: str, *packages: str, alone: str | None = None) -> Path:
    """Return a Python that has `packages`, installed for the test `name` at its first run.

    `alone` is a package that is installed without what it requires.
    """
    folder = cache_folder() / name
    wanted, installed = (
        "\n".join([*packages, *([alone] if alone else [])]),
        folder / "installed.txt",
    )
    python = folder / "bin" / "python"
    if not (installed.is_file() and installed.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *packages], check=True, timeout=INSTALL)
        if alone is not None:
            subprocess.run([*pip, "--no-deps", alone], check=True, timeout=INSTALL)
        installed.write_text(wanted)
    return python


def node_with(name: str, *packages: str) -> Path:
    """Return a folder in which Node.js finds `packages`. Skips the test without npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js is not installed: apt-get install nodejs npm")
    folder = cache_folder() / name
    wanted, installed = "\n".join(packages), folder / "installed.txt"
    if not (installed.is_file() and installed.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install = [npm, "install", "--silent", "--no-audit", "--no-fund", *packages]
        subprocess.run(install, cwd=folder, check=True, timeout=INSTALL)
        installed.write_text(wanted)
    return folder


def run(
    command: list[str], cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """Run a program to its successful end; return what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=RUN,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
