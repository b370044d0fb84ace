"""`streamer streams`: list the attached streams and their states."""

from typing import TYPE_CHECKING

from streamer.cli.context import Json, open_client, warn_of_missing

if TYPE_CHECKING:
    from rich.text import Text

    from streamer.domain import Drops, Stream, Watch

_STYLES = {
    "running": "green",
    "connecting": "yellow",
    "reconnecting": "yellow",
    "paused": "dim",
    "ended": "dim",
    "failed": "red",
}


def streams(as_json: Json = False) -> None:
    """List the attached streams with their states and counters."""
    from rich.text import Text

    from streamer.terminal import age, clips, console, json_lines, plain, table

    with open_client() as client:
        found = client.streams()
        warn_of_missing(client)
    if as_json:
        json_lines(found)
        return
    out = console()
    if not found:
        out.print("No stream is attached: attach one with `streamer attach URL_OR_FILE`.")
        return
    numbers = ("sampled", "dropped", "reconnects", "clips", "last frame")
    shown = table("name", "state", "since", "url", "video", *numbers, right=("since", *numbers))
    for stream in found:
        counters = stream.counters
        shown.add_row(
            Text(stream.name, style="bold cyan"),
            Text(stream.state, style=_STYLES.get(stream.state, "")),
            age(stream.since),
            Text(plain(stream.url), style="dim", overflow="fold"),
            video(stream),
            str(counters.sampled),
            drops(counters.dropped),
            str(counters.reconnects),
            clips(counters),
            age(stream.last_frame_at),
        )
    out.print(shown)
    for stream in found:
        for watch in stream.watches if len(stream.watches) > 1 else ():
            out.print(_watch(stream, watch), soft_wrap=True)
    for stream in found:
        if stream.error is not None:
            out.print(_trouble(stream), soft_wrap=True)


def video(stream: "Stream") -> str:
    """Describe the video as far as it is known: `1920x1080 25 fps h264 2.1 Mbit/s`.

    The frame rate is measured; before the first measurement it is what the source declares.
    """
    counters = stream.counters
    fps = counters.measured_fps if counters.measured_fps is not None else counters.fps
    size = f"{counters.width}x{counters.height}" if counters.width else ""
    rate = f"{round(fps, 1):g} fps" if fps is not None else ""
    bits = f"{counters.bit_rate / 1e6:.1f} Mbit/s" if counters.bit_rate is not None else ""
    return " ".join(part for part in (size, rate, counters.codec or "", bits) if part) or "-"


def drops(dropped: "Drops") -> str:
    """Return the number of dropped frames by cause, `12 late`, one cause per line."""
    causes = dropped.model_dump().items()
    return "\n".join(f"{n} {cause.replace('_', ' ')}" for cause, n in causes if n) or "0"


def _watch(stream: "Stream", watch: "Watch") -> "Text":
    from rich.text import Text

    from streamer.terminal import plain

    facts = f"  {watch.id}  every {watch.window:g} s  "
    return Text.assemble((stream.name, "bold cyan"), (facts, "dim"), plain(watch.prompt))


def _trouble(stream: "Stream") -> "Text":
    from rich.text import Text

    from streamer.terminal import plain

    assert stream.error is not None
    return Text.assemble(
        (stream.name, "bold cyan"), f"  {stream.error.code}  ", plain(stream.error.message)
    )
