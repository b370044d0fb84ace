"""`streamer probe`: describe a source, or report which step to its first frame fails."""

from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, open_settings, typed
from streamer.cli.program_time import running_for
from streamer.cli.stream_options import LiveOption, TransportOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from streamer.media.probe.report import ProbeReport, ProbeStep


def probe_source(
    source: Annotated[
        str,
        typer.Argument(
            metavar="URL_OR_FILE",
            help="rtsp://, rtmp:// or http(s):// URL, or a file. -: read it from standard input.",
        ),
    ],
    transport: TransportOption = None,
    live: LiveOption = None,
    as_json: Json = False,
) -> None:
    """Describe a source, or report which step fails and what to try, within 15 seconds.

    The service does not have to run. The exit code is 0 only if frames were decoded.
    """
    from streamer.media.access_policy import AccessPolicy
    from streamer.media.probe.prober import MAX_PROBE_SECONDS, probe
    from streamer.terminal import console, json_lines

    settings = open_settings()
    with console(stderr=True).status("Opening the source ..."):
        found = probe(
            typed(source),
            transport=transport or "auto",
            live=live,
            hwaccel=settings.hwaccel,
            access=AccessPolicy.of(settings),
            limit=MAX_PROBE_SECONDS - running_for(),
        )
    if as_json:
        json_lines([found])
    else:
        _show(console(), found)
    if not found.ok:
        raise typer.Exit(1)


def _show(out: "Console", found: "ProbeReport") -> None:
    from rich.text import Text

    from streamer.terminal import plain, print_hanging

    out.print(Text(plain(found.url), style="bold"), soft_wrap=True)
    for step in found.steps:
        print_hanging(out, *_step_line(step))
    if found.ok:
        out.print()
        for name, value in facts(found):
            print_hanging(out, Text(f"  {name:<14}", "dim"), Text(plain(value)))
    lead = "  Note: " if found.ok else "  Try: "
    if found.advice:
        out.print()
    for line in found.advice:
        print_hanging(out, Text(lead, "yellow"), Text(line))


def _step_line(step: "ProbeStep") -> "tuple[Text, Text]":
    from rich.text import Text

    from streamer.terminal import plain

    mark = ("  ok      ", "green") if step.ok else ("  FAILED  ", "bold red")
    took = (f" {step.ms:.0f} ms", "dim")
    return Text.assemble(mark, f"{step.name:<14}"), Text.assemble(plain(step.detail), took)


def facts(found: "ProbeReport") -> list[tuple[str, str]]:
    """Return what is known about a working source, as pairs of a label and a text."""
    video = " ".join(
        part for part in (found.codec, found.profile, found.pixel_format) if part is not None
    )
    size = f"{found.width}x{found.height}{', interlaced' if found.interlaced else ''}"
    rows = [("video", video), ("size", size), ("kind", "live" if found.live else "recording")]
    if found.fps is not None:
        rows.append(("frame rate", f"{found.fps:.4g} fps"))
    if found.gop_seconds is not None:
        rows.append(("key frames", f"every {found.gop_seconds:.3g} s ({found.gop_frames} frames)"))
    if found.bit_rate is not None:
        rows.append(("bit rate", f"{found.bit_rate / 1e6:.3g} Mbit/s"))
    if found.duration is not None:
        rows.append(("length", f"{found.duration:.1f} s"))
    if found.transport is not None:
        rows.append(("transport", found.transport))
        rows.append(("login", found.auth or "none"))
    if found.server is not None:
        rows.append(("server", found.server))
    if found.clock_drift is not None:
        rows.append(("clock", describe_drift(found.clock_drift)))
    if found.first_frame_ms is not None:
        rows.append(("first picture", f"after {found.first_frame_ms:.0f} ms"))
    if found.decode_ms is not None:
        rows.append(("decoding", f"{found.decode_ms:.1f} ms per frame"))
    return rows


def describe_drift(drift: float) -> str:
    """Describe the drift of a stream's clock, given in seconds per second."""
    milliseconds = round(1000 * drift, 1)
    if not milliseconds:
        return "no drift"
    return f"{abs(milliseconds):g} ms per second {'slow' if milliseconds > 0 else 'fast'}"
