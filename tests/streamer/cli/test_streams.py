"""`streamer streams`: what is attached and how it is, as a table and as JSON."""

import itertools
import json
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

from streamer.cli.streams import MAX_SHOWN, drops, video
from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import Drops, StreamCounters, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.service import Service
from tests.support.installation import run_cli


def test_state_reason_and_counters_are_shown(client: Service) -> None:
    # given
    client.attach("rtsp://me:hunter2@cam.invalid/live", "yard", watches=[], probe=False)
    stream = client.stream("yard")
    counters = StreamCounters(
        packets=1000,
        decoded=990,
        sampled=40,
        dropped=Drops(late=7, redis_away=2),
        reconnects=3,
        measured_fps=24.96,
        bit_rate=2_140_000,
        fps=30.0,
        width=1920,
        height=1080,
        codec="h264",
    )
    error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="It sent nothing for 8 s.")
    status = StreamStatus(
        state=StreamState.RECONNECTING,
        error=error,
        last_frame_at=utc_now(),
        reported_at=utc_now(),
        counters=counters,
    )
    redis_url = client.settings.redis_url or ""

    def shown_by(*arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command just after a worker has reported."""
        status.reported_at = utc_now()
        client.registry.save_status(stream.id, status)
        return run_cli(*arguments, STREAMER_REDIS_URL=redis_url)

    # when
    table, record = shown_by("streams"), shown_by("streams", "--json")
    # then
    assert table.returncode == record.returncode == 0
    for shown in (
        "reconnecting",
        "1920x1080 25 fps h264 2.1 Mbit/s",
        "7 late",
        "2 redis away",
        "STREAM_TIMEOUT  It sent nothing for 8 s.",
    ):
        assert shown in table.stdout
    shown_record = json.loads(record.stdout)
    assert shown_record["state"] == "reconnecting"
    assert shown_record["error"]["code"] == "STREAM_TIMEOUT"
    assert shown_record["counters"]["dropped"] == {
        "late": 7,
        "decode_error": 0,
        "redis_away": 2,
        "redis_full": 0,
        "archive": 0,
    }
    assert shown_record["counters"]["measured_fps"] == 24.96
    assert 0 <= shown_record["last_frame_age"] < 600
    assert "hunter2" not in table.stdout + record.stdout


# lists are in the order of these, and two streams may be attached within a millisecond
ATTACHED = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in itertools.count())


def report(client: Service, name: str, state: StreamState, seconds: float, **fields: Any) -> None:
    """Attach a camera whose state changed some `seconds` ago."""
    spec = StreamSpec(name=name, url="rtsp://camera/x", live=True, created_at=next(ATTACHED))
    client.registry.create(spec, spec.url)
    now = utc_now()
    since = now - timedelta(seconds=seconds)
    status = StreamStatus(state=state, since=since, reported_at=now, **fields)
    client.registry.save_status(spec.id, status)


def test_many_streams_are_summed_up_and_those_in_trouble_come_first(client: Service) -> None:
    # given more streams than are listed one by one, some of them in trouble
    for number in range(MAX_SHOWN):
        report(client, f"fine-{number}", StreamState.RUNNING, 60 + number)
    lost = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="It sent nothing for 8 s.")
    wrong = ErrorInfo(code=ErrorCode.STREAM_CLOCK_WRONG, message="Its clock is wrong.")
    report(client, "warned", StreamState.RUNNING, 4000, warnings=[wrong])
    report(client, "lost-long-ago", StreamState.RECONNECTING, 3000, error=lost)
    report(client, "lost-now", StreamState.RECONNECTING, 3, error=lost)
    report(client, "broken", StreamState.FAILED, 9000, error=lost)
    redis_url = client.settings.redis_url or ""
    # when they are listed
    shown, whole, records = (
        run_cli("streams", *options, STREAMER_REDIS_URL=redis_url).stdout.splitlines()
        for options in ((), ("--all",), ("--json",))
    )
    # then how many are in each state comes first, and the rest is named
    assert shown[0] == f"{MAX_SHOWN + 4} streams: {MAX_SHOWN + 1} running, 2 reconnecting, 1 failed"
    assert shown[-1] == "4 more: list them with `streamer streams --all`."
    names = [line.split()[0] for line in shown[1:-1] if line[0] != " "]
    assert names[:5] == ["broken", "lost-now", "lost-long-ago", "warned", "fine-0"]
    assert len(names) == MAX_SHOWN
    # and everything is there on request
    listed = [line.split()[0] for line in whole if line[0] != " "]
    assert len(listed) == len(records) == MAX_SHOWN + 4
    assert [json.loads(record)["name"] for record in records] == listed
    assert listed[0] == "fine-0"


def test_what_is_not_known_is_left_out(client: Service) -> None:
    client.attach("rtsp://cam.invalid/live", "yard", watches=[], probe=False)
    assert video(client.stream("yard")) == ""
    assert drops(Drops()) == ""
