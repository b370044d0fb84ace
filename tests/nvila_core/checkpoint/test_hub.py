"""Downloads by huggingface_hub from a small server that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = {"main": "a" * 40, "v2": "b" * 40}
NAME = "Some-Lab/NVILA-Test"


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as every revision of one repository, and records what was
    fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        files = sorted(
            f.relative_to(self.server.folder).as_posix()
            for f in self.server.folder.rglob("*")
            if f.is_file()
        )
        if path.startswith(f"/api/models/{NAME}"):
            revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            commit = COMMIT.get(revision, revision if revision in COMMIT.values() else "")
            if not commit:
                return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
            if "/tree/" in path:
                entries = [{"type": "file", "path": f, "size": 1, "oid": "0"} for f in files]
                return self.reply(
                    200, json.dumps(entries).encode(), Content_Type="application/json"
                )
            info = {"id": NAME, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            return self.reply(200, json.dumps(info).encode(), Content_Type="application/json")
        for commit in COMMIT.values():
            name = path.removeprefix(f"/{NAME}/resolve/{commit}/")
            if name in files:
                if self.command == "GET":
                    self.server.fetched.append(name)
                body = (self.server.folder / name).read_bytes()
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.reply(200, body, ETag=etag, X_Repo_Commit=commit)
        return self.reply(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    """A repository with a checkpoint and other files."""
    import shutil

    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    for name in (
        "README.md",
        "trainer_state.json",
        "llm/pytorch_model.bin",
        "evil.py",
        "runs/1/model.safetensors",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not wanted")
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def find(
    hub_url: str, home: Path, *args: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run find_checkpoint in a separate process, whose hub is `hub_url`."""
    program = (
        "import sys\nfrom nvila_core.checkpoint.hub import find_checkpoint\n"
        "from nvila_core import NVILAError\n"
        "try: print(find_checkpoint(*sys.argv[1:]))\n"
        "except NVILAError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        env={**inherited, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_only_the_checkpoint_is_downloaded_and_only_once(
    hub: Hub, tmp_path: Path, tiny_folder: Path
) -> None:
    # when a repository is asked for
    home = tmp_path / "home"
    first = find(hub.url, home, NAME)
    assert first.returncode == 0, first.stderr
    # then its checkpoint is under HF_HOME, and nothing else was downloaded
    folder = Path(first.stdout.strip())
    wanted = {f.relative_to(tiny_folder).as_posix() for f in tiny_folder.rglob("*") if f.is_file()}
    assert home in folder.parents
    assert set(hub.fetched) == wanted
    assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == wanted
    # and the second time nothing is downloaded, and the hub is not needed
    hub.fetched.clear()
    again = find(hub.url, home, NAME)
    offline = find("http://127.0.0.1:9", home, NAME, HF_HUB_OFFLINE="1")
    assert again.stdout == offline.stdout == first.stdout
    assert hub.fetched == []


def test_revision(hub: Hub, tmp_path: Path) -> None:
    found = find(hub.url, tmp_path / "home", NAME, "v2")
    assert COMMIT["v2"] in found.stdout, found.stderr
    wrong = find(hub.url, tmp_path / "home", NAME, "v9")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("CheckpointError: Some-Lab/NVILA-Test")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_failed_download_is_an_error_of_one_line(hub: Hub, tmp_path: Path, offline: str) -> None:
    wrong = find(hub.url, tmp_path / "home", "Some-Lab/Nothing", HF_HUB_OFFLINE=offline)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("CheckpointError: Some-Lab/Nothing: there is no such folder")
    assert wrong.stderr.count("\n") == 1
