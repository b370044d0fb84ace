"""A real PostgreSQL server on a free loopback port, with its data in a folder of its own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest


def program(name: str) -> str | None:
    """Return the path of a program of the server; Debian keeps them outside of PATH."""
    found = [shutil.which(name), *sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)]
    return next((path for path in found if path), None)


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    """The port of a server that lets the user `test` in; skips without server or driver."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: nvila-streamer[postgres]")
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        other: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        data = folder / "data"
        options = ["--no-sync", "--no-locale", "-E", "UTF8", "-A", "trust", "-U", "test"]
        subprocess.run(
            [initdb, "-D", str(data), *options], check=True, capture_output=True, cwd="/", **other
        )
        listening = ["-h", "127.0.0.1", "-p", str(port), "-k", name, "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [postgres, "-D", str(data), *listening], stdout=log, stderr=log, cwd="/", **other
            )
        try:
            _await_server(port, server)
            yield port
        finally:
            server.terminate()
            server.wait(120)


def _await_server(port: int, server: "subprocess.Popen[bytes]") -> None:
    import psycopg

    deadline = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(f"postgresql://test@127.0.0.1:{port}/postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@contextlib.contextmanager
def new_database(port: int) -> Iterator[str]:
    """Make an empty database, give its name, and drop it."""
    import psycopg

    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    admin = f"postgresql://test@127.0.0.1:{port}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield name
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def postgres_database(postgres_port: int) -> Iterator[str]:
    """The name of an empty database."""
    with new_database(postgres_port) as name:
        yield name
