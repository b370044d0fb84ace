"""Serve an RTSP camera with passwords; runs in the system's Python, which has `gi`.

usage: gst_camera.py --tell FD [--host ADDRESS] [--port N]
           [--user NAME --password WORD] [--digest] [--transport tcp|udp] PATH=UNITS ...
UNITS is a file of access units as tests/support/cameras.py writes it; it plays in an endless loop,
its timestamps always rising. Writes the port to the descriptor --tell once it listens.
"""

import argparse
import itertools
import json
import os
import struct
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402


class Camera(GstRtspServer.RTSPMediaFactory):
    """One mount: H.264 or HEVC access units, sent in real time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        data = path.read_bytes()
        length = struct.unpack_from(">I", data)[0]
        header = json.loads(data[4 : 4 + length])
        self._units = []
        position = 4 + length
        for size, key, seconds in header["units"]:
            self._units.append((data[position : position + size], key, seconds))
            position += size
        kind = {"h264": "h264", "hevc": "h265"}[header["codec"]]
        self.set_launch(
            "( appsrc name=src is-live=true block=true format=time "
            f'caps="video/x-{kind},stream-format=byte-stream,alignment=au" '
            f"! {kind}parse ! rtp{kind}pay name=pay0 pt=96 config-interval=-1 )"
        )
        self.set_shared(True)
        self.connect("media-configure", self._configure)

    def _configure(self, _factory: object, media: GstRtspServer.RTSPMedia) -> None:
        units = itertools.cycle(self._units)
        now = 0.0

        def need_data(source: Gst.Element, _length: int) -> None:
            nonlocal now
            unit, key, seconds = next(units)
            buffer = Gst.Buffer.new_wrapped(unit)
            buffer.pts = buffer.dts = int(now * Gst.SECOND)
            buffer.duration = int(seconds * Gst.SECOND)
            if not key:
                buffer.set_flags(Gst.BufferFlags.DELTA_UNIT)
            now += seconds
            source.emit("push-buffer", buffer)

        media.get_element().get_by_name_recurse_up("src").connect("need-data", need_data)


def authorise(arguments: argparse.Namespace) -> GstRtspServer.RTSPAuth:
    """Return the authentication, Basic or Digest, of the one permitted user."""
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if arguments.digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(arguments.user, arguments.password, token)
    else:
        basic = GstRtspServer.RTSPAuth.make_basic(arguments.user, arguments.password)
        auth.add_basic(basic, token)
    return auth


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="0")
    parser.add_argument("--tell", type=int, required=True)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--transport", choices=["tcp", "udp"])
    parser.add_argument("mounts", nargs="+", metavar="PATH=UNITS")
    arguments = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(arguments.host)
    server.set_service(arguments.port)
    if arguments.user is not None:
        server.set_auth(authorise(arguments))
    for mount in arguments.mounts:
        name, units = mount.split("=", 1)
        camera = Camera(Path(units))
        if arguments.transport is not None:
            camera.set_protocols(getattr(GstRtsp.RTSPLowerTrans, arguments.transport.upper()))
        if arguments.user is not None:
            permissions = GstRtspServer.RTSPPermissions()
            for right in ("access", "construct"):
                permissions.add_permission_for_role("viewer", f"media.factory.{right}", True)
            camera.set_permissions(permissions)
        server.get_mount_points().add_factory(f"/{name}", camera)
    if not server.attach(None):
        raise SystemExit("port in use")
    os.write(arguments.tell, str(server.get_bound_port()).encode())
    os.close(arguments.tell)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
