"""`streamer streams`: list the attached streams and their states."""

from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, open_client, warn_of_missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.text import Text

    from streamer.domain.sampling import Sampling
    from streamer.domain.stream import Drops, Stream
    from streamer.domain.watch import Watch

MAX_NAME_WIDTH = 24
"""Columns that names are padded to; longer ones are shown whole, out of line."""

MAX_SHOWN = 50
"""Streams that are listed one by one without --all."""

_STYLES = {
    "running": "green",
    "connecting": "yellow",
    "reconnecting": "yellow",
    "paused": "dim",
    "ended": "dim",
    "failed": "red",
    "unreadable": "red",
}


_TROUBLED = ("failed", "unreadable", "reconnecting", "connecting")
"""States of streams that show nothing now although they should, the worst first."""


def streams(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME_OR_ID", help="Show everything about this stream."),
    ] = None,
    all_streams: Annotated[
        bool,
        typer.Option(
            "--all",
            help=f"List all streams. Default: of more than {MAX_SHOWN}, how many are in each "
            f"state, and {MAX_SHOWN} of them, those in trouble first.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the attached streams with their states and counters, or show one stream whole.

    --json writes all of them.
    """
    from streamer.terminal import console, json_lines

    with open_client() as client:
        found = client.streams() if name is None else [client.stream(name)]
        warn_of_missing(client)
    if as_json:
        json_lines(found)
        return
    out = console()
    if not found:
        out.print("No stream is attached: attach one with `streamer attach URL_OR_FILE`.")
    elif name is not None:
        _show(out, found[0])
    elif all_streams or len(found) <= MAX_SHOWN:
        _list(out, found)
    else:
        out.print(summary(found))
        _list(out, troubled_first(found)[:MAX_SHOWN])
        out.print(f"{len(found) - MAX_SHOWN} more: list them with `streamer streams --all`.")


def summary(found: "Iterable[Stream]") -> str:
    """Count streams by state: `60 streams: 58 running, 2 failed`."""
    from collections import Counter

    states = Counter(stream.state.value for stream in found)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return f"{states.total()} streams: {counts}"


def troubled_first(found: "Iterable[Stream]") -> "list[Stream]":
    """Sort streams: those in trouble, those with a warning, the others; of each kind those whose
    state changed last come first."""
    ranks = {state: rank for rank, state in enumerate(_TROUBLED)}

    def place(stream: "Stream") -> tuple[int, float]:
        rank = ranks.get(stream.state, len(ranks) + (not (stream.error or stream.warnings)))
        return rank, -stream.since.timestamp()

    return sorted(found, key=place)


def _list(out: "Console", found: "list[Stream]") -> None:
    from rich.text import Text

    from streamer.terminal import INDENT, plain, print_hanging

    names = min(MAX_NAME_WIDTH, max(len(stream.name) for stream in found))
    states = max(len(stream.state) for stream in found)
    margin = Text(" " * INDENT)
    for stream in found:
        head = Text.assemble(
            (f"{stream.name:<{names}}  ", "bold cyan"),
            (f"{stream.state:<{states}}  ", _STYLES.get(stream.state, "")),
        )
        print_hanging(out, head, Text(", ".join(activity(stream))))
        for watch in stream.watches if len(stream.watches) > 1 else ():
            print_hanging(out, margin, watch_line(watch))
        for problem in problems(stream):
            print_hanging(out, margin, problem)
        print_hanging(out, margin, Text(plain(stream.url), "dim"))


def activity(stream: "Stream") -> list[str]:
    """Return what a stream does, in a few words each: `last frame 2 s ago`, `40 sampled`."""
    from streamer.terminal import age, clips

    counters = stream.counters
    frame = f"last frame {age(stream.last_frame_at)} ago"
    lost = drops(counters.dropped)
    facts = [
        f"for {age(stream.since)}",
        frame if stream.last_frame_at is not None else "no frame yet",
        video(stream),
        f"{counters.sampled} sampled",
        f"dropped {lost}" if lost else "",
        f"{clips(counters)} clips" if stream.watches else "",
        f"{counters.reconnects} reconnects" if counters.reconnects else "",
    ]
    return [fact for fact in facts if fact]


def problems(stream: "Stream") -> "list[Text]":
    """Return the reason for the state of a stream, then its warnings."""
    from rich.text import Text

    from streamer.terminal import plain

    reason = [] if stream.error is None else [(stream.error, "red")]
    return [
        Text.assemble((f"{info.code}  ", style), plain(info.message))
        for info, style in [*reason, *((warning, "yellow") for warning in stream.warnings)]
    ]


def _show(out: "Console", stream: "Stream") -> None:
    from rich.text import Text

    from streamer.terminal import plain, print_hanging, time_of_day

    style = _STYLES.get(stream.state, "")
    rows: list[tuple[str, Text]] = [
        ("id", Text(stream.id)),
        ("state", Text.assemble((stream.state, style), f" since {time_of_day(stream.since)}")),
        *(("reason" if stream.error else "warning", line) for line in problems(stream)[:1]),
        *(("warning", line) for line in problems(stream)[1:]),
        ("kind", Text("live" if stream.live else "recording")),
        ("video", Text(video(stream) or "not known yet")),
        ("last frame", Text(time_of_day(stream.last_frame_at))),
        ("frames kept", Text(frames_kept(stream))),
        ("sampling", Text(sampling(stream.sampling))),
        ("history", Text("setting `history`" if stream.history is None else _days(stream.history))),
        ("transport", Text(stream.transport)),
        ("worker", Text(stream.worker or "-")),
        ("attached", Text(time_of_day(stream.created_at))),
        *((name, Text(value)) for name, value in counters(stream)),
        *(("watch", watch_line(watch)) for watch in stream.watches),
        ("url", Text(plain(stream.url))),
    ]
    out.print(Text(stream.name, "bold cyan"), soft_wrap=True)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print_hanging(out, Text(f"  {name:<{width}}  ", "dim"), value)


def frames_kept(stream: "Stream") -> str:
    """Return for how long the frames of a live stream are kept."""
    if stream.kept_seconds is None:
        return "none yet" if stream.live else "for `recorded_frame_ttl`"
    return f"for {stream.kept_seconds:.0f} s"


def counters(stream: "Stream") -> list[tuple[str, str]]:
    """Return the counters of a stream, as pairs of a label and a text."""
    from streamer.terminal import clips, offset

    count = stream.counters
    length = f" of {offset(count.duration)}" if count.duration is not None else ""
    return [
        ("position", offset(count.position) + length),
        ("received", f"{count.packets} packets, {count.bytes / 1e6:.1f} MB"),
        ("decoded", str(count.decoded)),
        ("sampled", str(count.sampled)),
        ("dropped", drops(count.dropped) or "0"),
        ("clips", clips(count)),
        ("reconnects", str(count.reconnects)),
    ]


def sampling(chosen: "Sampling") -> str:
    """Describe how frames are sampled: `fps: 1 per second`, `change: threshold 0.1, ...`."""
    if chosen.mode == "fps":
        return f"fps: {chosen.max_fps:g} per second"
    fields = chosen.model_dump(exclude={"mode"})
    return f"{chosen.mode}: " + ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in fields.items()
    )


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.3g} days" if seconds >= 2 * 86400 else f"{seconds / 3600:.3g} hours"


def video(stream: "Stream") -> str:
    """Describe the video as far as it is known: `1920x1080 25 fps h264 2.1 Mbit/s`; or empty.

    The frame rate is measured; before the first measurement it is what the source declares.
    """
    counters = stream.counters
    fps = counters.measured_fps if counters.measured_fps is not None else counters.fps
    size = f"{counters.width}x{counters.height}" if counters.width else ""
    rate = f"{round(fps, 1):g} fps" if fps is not None else ""
    bits = f"{counters.bit_rate / 1e6:.1f} Mbit/s" if counters.bit_rate is not None else ""
    return " ".join(part for part in (size, rate, counters.codec or "", bits) if part)


def drops(dropped: "Drops") -> str:
    """Return the number of dropped frames by cause, `12 late, 2 redis away`; empty if none."""
    causes = dropped.model_dump().items()
    return ", ".join(f"{n} {cause.replace('_', ' ')}" for cause, n in causes if n)


def watch_line(watch: "Watch") -> "Text":
    """Format a watch: its id, its window, its limits and its question."""
    from rich.text import Text

    from streamer.terminal import plain

    form = "" if watch.response_format.type == "text" else f", {watch.response_format.type}"
    if watch.alert is not None:
        form = f", alert ({watch.alert.severity})"
    facts = f"{watch.id}  every {watch.window:g} s, {watch.max_frames} frames{form}  "
    return Text.assemble((facts, "dim"), plain(watch.prompt))
