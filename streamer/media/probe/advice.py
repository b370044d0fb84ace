"""What to try, after a probe: sentences for people."""

from urllib.parse import urlsplit

from streamer.media.probe.report import ProbeReport

RTSP_PORT = 554

PATHS = {
    "Hikvision": "/Streaming/Channels/101",
    "Dahua, Amcrest": "/cam/realmonitor?channel=1&subtype=0",
    "Axis": "/axis-media/media.amp",
    "Reolink": "/h264Preview_01_main",
    "TP-Link Tapo": "/stream1",
    "Hanwha": "/profile2/media.smp",
    "Uniview": "/unicast/c1/s0/live",
    "Vivotek": "/live.sdp",
    "Foscam": "/videoMain",
}
"""Paths that makers of cameras are known to use: examples, which differ by model and firmware."""

_LONG_GOP = 4.0
_FAST_OR_SLOW = 0.005
_LOST = 0.8


def after_failure(
    report: ProbeReport, step: str, url: str, neighbour: int | None, *, silent: bool = True
) -> list[str]:
    """What to try when `step` failed; `neighbour` is another port of the host that is open, and
    `silent` whether not even a packet of video came."""
    rtsp = urlsplit(url).scheme in {"rtsp", "rtsps"}
    code = report.error.code if report.error is not None else ""
    said: list[str] = []
    if neighbour is not None:
        said.append(f"Port {neighbour} of the same host is open: try the URL with :{neighbour}.")
    if step == "name":
        said.append("Write the camera's IP address in place of its name.")
    elif step == "connect" and rtsp and neighbour is None:
        said.append(
            f"RTSP listens on port {RTSP_PORT} on most cameras, and is switched off in the settings"
            " of some: look there."
        )
    elif step == "describe":
        said += _after_describe(code, rtsp)
    elif step in {"open", "first picture"} and rtsp and report.steps_ok("describe"):
        said += _after_open(report, code, silent)
    return said


def _after_describe(code: str, rtsp: bool) -> list[str]:
    if code == "STREAM_NOT_FOUND":
        examples = "; ".join(f"{maker} {path}" for maker, path in PATHS.items())
        return [f"Paths that cameras use, as examples: {examples}. The manual tells yours."]
    if code == "STREAM_AUTH_FAILED":
        return [
            "Cameras often have users of their own for RTSP or ONVIF, and lock an account for some "
            "minutes after a few wrong passwords.",
            "Put a password with special characters into single quotes in the shell.",
        ]
    if code == "STREAM_TIMEOUT" and rtsp:
        return ["The port is open and silent: is it the camera's RTSP port?"]
    return []


def _after_open(report: ProbeReport, code: str, silent: bool) -> list[str]:
    if code == "STREAM_TIMEOUT" and silent:
        crowded = (
            "A camera that has as many viewers as it allows answers and sends nothing: "
            "close other players."
        )
        if report.url.startswith("rtsps:"):  # which comes over TCP only
            return [crowded]
        other = "tcp" if report.transport == "udp" else "udp"
        why = "a firewall may drop UDP" if other == "tcp" else "some cameras send only by UDP"
        return [
            f"No picture came over {report.transport}: try `--transport {other}` ({why}).",
            crowded,
        ]
    if code == "STREAM_CODEC_UNSUPPORTED":
        return ["Set the camera's video to H.264 or H.265, without 'smart' codec additions."]
    return []


def after_success(report: ProbeReport) -> list[str]:
    """What could be better about a source that works."""
    said: list[str] = []
    if report.gop_seconds is not None and report.gop_seconds > _LONG_GOP:
        said.append(
            f"Key frames come every {report.gop_seconds:.0f} s: set the camera's key frame interval"
            " to 1 or 2 s, so that pictures come sooner after a loss and sampling costs less."
        )
    if report.live and report.gop_seconds is None and report.frames > 1:
        said.append(
            "No second key frame came while it was watched: set the camera's key frame interval "
            "to 1 or 2 s."
        )
    if report.clock_drift is not None and abs(report.clock_drift) > _FAST_OR_SLOW:
        how = "slow" if report.clock_drift > 0 else "fast"
        said.append(
            f"Its clock runs {abs(report.clock_drift):.1%} {how}: pictures are re-timed by our "
            "clock, and may repeat or jump a little."
        )
    if report.damaged:
        over = " Try `--transport tcp`." if report.transport == "udp" else ""
        said.append(f"{report.damaged} packets were damaged: packets are lost on the way.{over}")
    elif report.live and (report.fps or 0.0) < _LOST * (report.claimed_fps or 0.0):
        said.append(
            f"It claims {report.claimed_fps:.3g} frames a second and sends {report.fps or 0.0:.3g}:"
            " the network or the camera is too slow, or it lowers its rate in the dark."
        )
    return said
