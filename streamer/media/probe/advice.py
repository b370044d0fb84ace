"""Advise what to try after a probe."""

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
"""Example paths by manufacturer; they differ by model and firmware."""

_MAX_GOP_SECONDS = 4.0
_MAX_DRIFT = 0.005
_MIN_RATE_SHARE = 0.8


def after_failure(
    report: ProbeReport, step: str, url: str, neighbour: int | None, *, silent: bool = True
) -> list[str]:
    """Return advice for a failed `step`.

    Args:
        neighbour: another port of the host that is open.
        silent: whether no packet of video arrived.
    """
    rtsp = urlsplit(url).scheme in {"rtsp", "rtsps"}
    code = report.error.code if report.error is not None else ""
    advice: list[str] = []
    if neighbour is not None:
        advice.append(f"Port {neighbour} of the same host is open: try the URL with :{neighbour}.")
    if step == "name":
        advice.append("Use the camera's IP address instead of its name.")
    elif step == "connect" and rtsp and neighbour is None:
        advice.append(
            f"Most cameras serve RTSP on port {RTSP_PORT}; some need it enabled in their settings."
        )
    elif step == "describe":
        advice += _after_describe(code, rtsp)
    elif step in {"open", "first picture"} and rtsp and report.succeeded("describe"):
        advice += _after_open(report, code, silent)
    return advice


def _after_describe(code: str, rtsp: bool) -> list[str]:
    if code == "STREAM_NOT_FOUND":
        examples = "; ".join(f"{maker} {path}" for maker, path in PATHS.items())
        return [f"Examples of paths: {examples}. The manual of the camera has the right one."]
    if code == "STREAM_AUTH_FAILED":
        return [
            "Many cameras have separate users for RTSP or ONVIF, and lock an account for some "
            "minutes after a few wrong passwords.",
            "In a shell, put a URL with special characters into single quotes.",
        ]
    if code == "STREAM_TIMEOUT" and rtsp:
        return ["The port is open and silent: check that it is the camera's RTSP port."]
    return []


def _after_open(report: ProbeReport, code: str, silent: bool) -> list[str]:
    if code == "STREAM_TIMEOUT" and silent:
        crowded = (
            "A camera with its maximum number of viewers answers, but sends no video: "
            "close other players."
        )
        if report.url.startswith("rtsps:"):  # which uses TCP only
            return [crowded]
        other = "tcp" if report.transport == "udp" else "udp"
        why = "a firewall may drop UDP" if other == "tcp" else "some cameras only support UDP"
        return [
            f"No frame arrived over {report.transport}: try `--transport {other}` ({why}).",
            crowded,
        ]
    if code == "STREAM_CODEC_UNSUPPORTED":
        return ["Set the camera to H.264 or H.265, and turn off its 'smart' codec."]
    return []


def after_success(report: ProbeReport) -> list[str]:
    """Return advice to improve a source that works."""
    advice: list[str] = []
    if report.gop_seconds is not None and report.gop_seconds > _MAX_GOP_SECONDS:
        advice.append(
            f"Key frames arrive every {report.gop_seconds:.0f} s: set the camera's key frame "
            "interval to 1 or 2 s, for quicker recovery after losses and cheaper sampling."
        )
    if report.live and report.gop_seconds is None and report.frames > 1:
        advice.append(
            "No second key frame arrived during the probe: set the camera's key frame interval "
            "to 1 or 2 s."
        )
    if report.clock_drift is not None and abs(report.clock_drift) > _MAX_DRIFT:
        how = "slow" if report.clock_drift > 0 else "fast"
        advice.append(
            f"The camera's clock runs {abs(report.clock_drift):.1%} {how}: its frames are dated "
            "by the clock of this machine, so sampling may repeat or skip a few."
        )
    if report.damaged:
        over = " Try `--transport tcp`." if report.transport == "udp" else ""
        advice.append(f"{report.damaged} packets were damaged: the network loses packets.{over}")
    elif report.live and (report.fps or 0.0) < _MIN_RATE_SHARE * (report.claimed_fps or 0.0):
        advice.append(
            f"The camera announces {report.claimed_fps:.3g} fps and sends {report.fps or 0.0:.3g}: "
            "it or the network is too slow, or it lowers its rate in the dark."
        )
    return advice
