"""The doctor on this machine, which is well, and on machines that are not."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from streamer import redis_keys
from streamer.cli.app import app
from streamer.doctor import database, machine, model, redis_server
from streamer.doctor.check import Check
from streamer.doctor.examination import Examination, examine
from streamer.domain.result import Result
from streamer.local.redis_server import EmbeddedServer
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from tests.support.clocks import ShiftedClock

PASSWORD = "hunter2secret"


def by_name(found: list[Check]) -> dict[str, Check]:
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    for check in found:
        assert check.message.endswith(".")
        assert "\n" not in check.message
        assert PASSWORD not in check.message
    return {check.name: check for check in found}


def only(examination: Examination, settings: Settings) -> dict[str, Check]:
    return by_name(list(examination(settings)))


def test_a_machine_that_is_well(settings: Settings) -> None:
    found = by_name(examine(settings, limit=100.0))

    states = {name: check.state for name, check in found.items()}
    assert states.pop("ingest workers") == states.pop("model workers") == "warn"  # none runs
    assert set(states.values()) <= {"ok", "warn"}, found
    for name in ("python", "packages", "redis", "clock", "model", "codecs", "disk"):
        assert states[name] == "ok", found[name]
    assert re.search("demo in b?float(32|16) on main memory", found["model"].message)
    assert "***" in found["redis"].message
    assert "h264, hevc" in found["codecs"].message
    assert {"redis memory", "hardware decoding", "limits"} <= set(found)


def test_the_database_is_asked_and_not_changed(settings: Settings) -> None:
    # given no database, an empty one, one with a result, one that is damaged, and one that is away
    path = settings.data_dir / "timeline.db"
    path.unlink()
    found = only(database.database, settings)["database"]
    assert (found.state, path.exists()) == ("ok", False)
    assert "makes its table" in found.message
    timeline = Timeline(settings.timeline_url)
    timeline.record(
        [Result(request_id="a", kind="answer", stream_id=None, stream_name=None, prompt="?")]
    )
    timeline.close()
    assert "holds 1 results" in only(database.database, settings)["database"].message
    path.write_bytes(b"this is a text file, and a long one at that" * 100)
    broken = only(database.database, settings)["database"]
    assert (broken.state, "not a database" in broken.message) == ("fail", True)
    for url in ("nonsense", f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/db"):
        away = settings.model_copy(update={"database_url": url})
        assert only(database.database, away)["database"].state == "fail"


def test_before_anything_runs(tmp_path: Path) -> None:
    found = only(redis_server.servers, Settings(data_dir=tmp_path))
    assert (found["redis"].state, list(found)) == ("ok", ["redis"])
    assert "`streamer up` starts" in found["redis"].message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://:{PASSWORD}@127.0.0.1:1/0", "check that it is running"),
        (f"http://:{PASSWORD}@127.0.0.1/", "is not a Redis address"),
    ],
)
def test_redis_that_is_not_there(url: str, said: str) -> None:
    (check,) = only(redis_server.servers, Settings(redis_url=url)).values()
    assert check.state == "fail"
    assert said in check.message


def test_a_password_that_redis_refuses(valkey: EmbeddedServer) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}/0"
    (check,) = only(redis_server.servers, Settings(redis_url=url)).values()
    assert check.state == "fail"
    assert "password" in check.message


def test_policies_of_memory(tmp_path: Path) -> None:
    # given frames on a server of their own, and both servers set up with a bound
    with (
        EmbeddedServer(tmp_path / "a", persistent=False, max_memory=64 << 20) as main,
        EmbeddedServer(tmp_path / "b", persistent=False, max_memory=64 << 20) as frames,
    ):
        settings = Settings(redis_url=main.url, frames_redis_url=frames.url)
        with redis.Redis.from_url(main.url) as a, redis.Redis.from_url(frames.url) as b:
            a.config_set("maxmemory-policy", "noeviction")
            found = only(redis_server.servers, settings)
            assert found["redis memory"].state == "ok"
            assert found["redis memory (frames)"].state == "ok"
            assert "clock" in found

            a.config_set("maxmemory-policy", "allkeys-lru")
            b.config_set("maxmemory", "0")
            found = only(redis_server.servers, settings)
            assert found["redis memory"].state == "warn"
            assert "noeviction" in found["redis memory"].message
            assert found["redis memory (frames)"].state == "warn"
            assert "maxmemory" in found["redis memory (frames)"].message


@pytest.mark.parametrize(("ahead", "state"), [(0.0, "ok"), (2.0, "warn"), (-60.0, "fail")])
def test_clocks_that_disagree(settings: Settings, ahead: float, state: str) -> None:
    ours = ShiftedClock(ahead)
    clock = only(lambda given: redis_server.servers(given, ours), settings)["clock"]
    assert clock.state == state
    assert ("NTP" in clock.message) == (state != "ok")


def test_a_worker_whose_clock_is_wrong_is_named(
    settings: Settings, redis_client: redis.Redis
) -> None:
    # given two workers, one of them on a machine whose clock is an hour ahead
    for name, offset in (("right", 0.1), ("wrong", 3600.0)):
        redis_client.sadd("rq:workers", f"rq:worker:{name}")
        redis_client.hset(redis_keys.worker(name), "clock_offset_seconds", offset)
    found = only(redis_server.servers, settings)["clocks of workers"]
    assert found.state == "warn"
    assert "wrong (+3600.0 s)" in found.message
    assert "right" not in found.message
    redis_client.hset(redis_keys.worker("wrong"), "clock_offset_seconds", -0.5)
    assert "clocks of workers" not in only(redis_server.servers, settings)


def test_a_model_that_cannot_be_used(
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nvila_core.checkpoint import (
        footprint,  # what `_model` runs as a program: that takes seconds
    )

    def check_of(path: str, *arguments: str) -> Check:
        footprint.main([path, "--device", "cpu", *arguments])
        return model.judge("it", json.loads(capsys.readouterr().out))

    broken = tmp_path / "broken"
    shutil.copytree(random_checkpoint, broken)
    shutil.rmtree(broken / "llm")
    check = check_of(str(broken))
    assert check.state == "fail"
    assert "llm" in check.message

    huge = check_of(str(random_checkpoint), "--kv-cache-tokens", str(10**12))
    assert huge.state == "fail"
    assert "does not fit" in huge.message
    assert "kv_cache_tokens" in huge.message
    assert "set quantize to int4" in huge.message

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    absent = check_of("Efficient-Large-Model/NVILA-Lite-2B")
    assert absent.state == "warn"
    assert "downloads it" in absent.message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check_of("Efficient-Large-Model/NVILA-Lite-2B").state == "fail"


def test_a_model_in_fewer_bits_is_judged_by_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvila_core.checkpoint import footprint

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        said = io.StringIO()  # in this process: importing PyTorch once more takes seconds
        with contextlib.redirect_stdout(said):
            footprint.main(command[3:])
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run)
    # given a machine in which the weights fit only when they are quantized
    monkeypatch.setattr(footprint, "main_memory", lambda: (8_000_000, 8_000_000))
    full, small = (
        Settings(
            data_dir=tmp_path, device="cpu", dtype="float32", kv_cache_tokens=256, quantize=mode
        )
        for mode in (None, "int8")
    )
    deadline = time.monotonic() + 120
    (refused,), (taken,) = model.model(full, deadline), model.model(small, deadline)

    assert (refused.state, taken.state) == ("fail", "ok"), (refused, taken)
    assert "demo in int8 and float32 on main memory" in taken.message


def test_a_pytorch_that_hangs_or_breaks(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    python = tmp_path / "python"
    for script, limit, state, said in [
        ("exec sleep 600", 1.0, "warn", "did not start"),
        ("echo libcudart.so: cannot open >&2; exit 1", 60.0, "fail", "libcudart.so"),
    ]:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        (check,) = model.model(settings, time.monotonic() + limit, str(python))
        assert (check.state, said in check.message) == (state, True), check


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path / "not" / "yet" / "there")
    real = shutil.disk_usage(tmp_path)
    for free, state in ((100 << 30, "ok"), (2 << 30, "warn"), (1 << 20, "fail")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: real._replace(free=free))
        assert only(machine.disk, settings)["disk"].state == state
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(("prefix", "looked_at"), [("", True), ("file://", True), ("s3:/", False)])
def test_the_disk_of_a_local_archive(tmp_path: Path, prefix: str, looked_at: bool) -> None:
    # Given an archive inside of a file instead of a folder
    (tmp_path / "file").touch()
    settings = Settings(data_dir=tmp_path, archive_url=f"{prefix}{tmp_path}/file/frames")

    # When the disks are checked
    found = only(machine.disk, settings)

    # Then a problem with it is reported, and other places are not checked
    assert found["disk"].state != "fail"
    assert ("archive" in found) == looked_at
    if looked_at:
        assert "archive_url" in found["archive"].message


@pytest.mark.parametrize(("wanted", "state"), [("none", "ok"), ("auto", "ok"), ("cuda", "warn")])
def test_hardware_decoding(wanted: str, state: str) -> None:
    from streamer.media import hardware

    if hardware.cuda_unavailable_reason() is None:
        pytest.skip("this machine has a card")
    check = only(machine.hardware, Settings(hwaccel=wanted))["hardware decoding"]
    assert check.state == state
    assert ("software" in check.message) == (wanted != "none")


def test_a_check_that_breaks_or_hangs_hides_no_other(settings: Settings) -> None:
    def breaks(_: Settings) -> list[Check]:
        raise RuntimeError(f"redis://:{PASSWORD}@host is odd")

    def hangs(_: Settings) -> list[Check]:
        time.sleep(60)
        return []

    checks = {"codecs": breaks, "disk": hangs, "python": machine.python}
    found = by_name(examine(settings, limit=3.0, examinations=checks))
    assert found["codecs"].state == "fail"
    assert "RuntimeError" in found["codecs"].message
    assert found["disk"].state == "warn"
    assert found["python"].state == "ok"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "model", lambda *_: [])
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    well = CliRunner().invoke(app, ["doctor"])
    assert well.exit_code == 0, well.output
    assert "ok    python" in well.stdout

    monkeypatch.setenv("STREAMER_REDIS_URL", f"redis://:{PASSWORD}@127.0.0.1:1/0")
    ill = CliRunner().invoke(app, ["doctor", "--json"])
    assert ill.exit_code == 1
    records = [json.loads(line) for line in ill.stdout.splitlines()]
    assert {record["name"]: record["state"] for record in records}["redis"] == "fail"
    assert PASSWORD not in ill.output
