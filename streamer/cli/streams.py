"""`streamer streams`: what is attached, and how it is."""

from typing import TYPE_CHECKING

from streamer.cli.context import Json, open_client

if TYPE_CHECKING:
    from rich.text import Text

    from streamer.domain import Stream

_STYLES = {
    "running": "green",
    "connecting": "yellow",
    "reconnecting": "yellow",
    "ended": "dim",
    "failed": "red",
}


def streams(as_json: Json = False) -> None:
    """List the attached streams with their states and counters."""
    from rich.text import Text

    from streamer.cli.output import age, clips, console, json_lines, plain, table

    with open_client() as client:
        found = client.streams()
    if as_json:
        json_lines(found)
        return
    out = console()
    if not found:
        out.print("No stream is attached: `streamer attach URL_OR_FILE` attaches one.")
        return
    numbers = ("sampled", "dropped", "clips", "last frame")
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
            str(counters.dropped),
            clips(counters),
            age(stream.last_frame_at),
        )
    out.print(shown)
    for stream in found:
        if stream.error is not None:
            out.print(_trouble(stream), soft_wrap=True)


def video(stream: "Stream") -> str:
    """What the source sends, `1920x1080 25 fps h264`, as far as it is known."""
    counters = stream.counters
    size = f"{counters.width}x{counters.height}" if counters.width else ""
    rate = f"{counters.fps:g} fps" if counters.fps else ""
    return " ".join(part for part in (size, rate, counters.codec or "") if part) or "-"


def _trouble(stream: "Stream") -> "Text":
    from rich.text import Text

    from streamer.cli.output import plain

    assert stream.error is not None
    return Text.assemble(
        (stream.name, "bold cyan"), f"  {stream.error.code}  ", plain(stream.error.message)
    )
