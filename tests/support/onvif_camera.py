"""A camera on loopback that speaks ONVIF: WS-Discovery by unicast, SOAP with WS-Security."""

import base64
import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_SOAP = "http://www.w3.org/2003/05/soap-envelope"
_NAMESPACES = (
    f'xmlns:s="{_SOAP}" '
    'xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
    'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" '
    'xmlns:tds="http://www.onvif.org/ver10/device/wsdl" '
    'xmlns:trt="http://www.onvif.org/ver10/media/wsdl" '
    'xmlns:tt="http://www.onvif.org/ver10/schema" '
    'xmlns:ter="http://www.onvif.org/ver10/error"'
)


class OnvifCamera:
    """A device with two streams; use it as a context manager.

    Args:
        reference: its endpoint reference.
        user, password: who may ask for its streams.
        host: address that it listens at.
        claims: host that it tells in its URLs, as a device does whose address has changed.
        rtsp: authority of its streams.

    Attributes:
        port: UDP port of its discovery.
        asked: SOAP operations, in order.
        answers_probes: whether it answers discovery.
    """

    def __init__(
        self,
        reference: str = "urn:uuid:4d454930-0000-1000-8000-bcad28000001",
        *,
        user: str = "admin",
        password: str = "s3cret pass",
        host: str = "127.0.0.1",
        claims: str | None = None,
        rtsp: str = "554",
        udp_port: int = 0,
    ) -> None:
        self.reference = reference
        self.host = host
        self.asked: list[str] = []
        self.seen = b""
        self.answers_probes = True
        self._user, self._password = user, password
        self._rtsp = rtsp
        self._claims = claims or host
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((host, udp_port))
        self.port: int = self._udp.getsockname()[1]
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                camera.seen += body
                status, answer = camera._answer(body.decode())
                data = answer.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/soap+xml; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._web = ThreadingHTTPServer((host, 0), Handler)

    @property
    def service(self) -> str:
        """URL of its device service."""
        return f"http://{self._claims}:{self._web.server_port}/onvif/device_service"

    def __enter__(self) -> Self:
        for target in (self._probes, lambda: self._web.serve_forever(0.02)):
            threading.Thread(target=target, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.host, self.port))
        self._web.shutdown()
        self._web.server_close()

    def _probes(self) -> None:
        with self._udp:
            while True:
                data, sender = self._udp.recvfrom(65_535)
                if not data:
                    return
                asked = re.search(rb"MessageID>([^<]+)<", data)
                if self.answers_probes and b"Probe" in data and asked:
                    self._udp.sendto(self._match(asked[1].decode()).encode(), sender)

    def _match(self, asked: str) -> str:
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<s:Envelope {_NAMESPACES}><s:Header><a:RelatesTo>{asked}</a:RelatesTo></s:Header><s:Body>
<d:ProbeMatches><d:ProbeMatch>
<a:EndpointReference><a:Address>{self.reference}</a:Address></a:EndpointReference>
<d:Types>dn:NetworkVideoTransmitter</d:Types>
<d:Scopes>onvif://www.onvif.org/name/Front%20door onvif://www.onvif.org/hardware/C100
 onvif://www.onvif.org/location/garden</d:Scopes>
<d:XAddrs>{self.service}</d:XAddrs><d:MetadataVersion>1</d:MetadataVersion>
</d:ProbeMatch></d:ProbeMatches></s:Body></s:Envelope>"""

    def _answer(self, request: str) -> tuple[int, str]:
        body = request.partition("Body>")[2]
        found = re.search(r"<(?:\w+:)?(\w+)", body)
        operation = found[1] if found else ""
        self.asked.append(operation)
        free = ("GetSystemDateAndTime", "GetCapabilities", "GetServices")
        if operation not in free and not self._authorised(request):
            return 401, _fault("ter:NotAuthorized", "Sender not authorized")
        answer = getattr(self, f"_{operation}", None)
        if answer is None:
            return 500, _fault("ter:ActionNotSupported", "Optional action not implemented")
        return 200, f"<s:Envelope {_NAMESPACES}><s:Body>{answer(body)}</s:Body></s:Envelope>"

    def _authorised(self, request: str) -> bool:
        """Check a UsernameToken: Base64(SHA-1(nonce + created + password))."""

        def part(name: str) -> str:
            found = re.search(rf"<[\w:]*{name}[^>]*>([^<]*)</", request)
            return found[1] if found else ""

        nonce = base64.b64decode(part("Nonce"))
        text = nonce + part("Created").encode() + self._password.encode()
        digest = base64.b64encode(hashlib.sha1(text).digest()).decode()
        return part("Username") == self._user and part("Password") == digest

    def _GetSystemDateAndTime(self, _: str) -> str:  # noqa: N802
        from datetime import UTC, datetime

        now = datetime.now(UTC)
        return f"""<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:UTCDateTime>
<tt:Time><tt:Hour>{now.hour}</tt:Hour><tt:Minute>{now.minute}</tt:Minute>
<tt:Second>{now.second}</tt:Second></tt:Time><tt:Date><tt:Year>{now.year}</tt:Year>
<tt:Month>{now.month}</tt:Month><tt:Day>{now.day}</tt:Day></tt:Date></tt:UTCDateTime>
</tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>"""

    def _GetServices(self, _: str) -> str:  # noqa: N802
        media = self.service.replace("device_service", "media_service")
        services = {
            "http://www.onvif.org/ver10/device/wsdl": self.service,
            "http://www.onvif.org/ver10/media/wsdl": media,
        }
        each = "".join(
            f"<tds:Service><tds:Namespace>{name}</tds:Namespace><tds:XAddr>{url}</tds:XAddr>"
            "<tds:Version><tt:Major>2</tt:Major><tt:Minor>0</tt:Minor></tds:Version></tds:Service>"
            for name, url in services.items()
        )
        return f"<tds:GetServicesResponse>{each}</tds:GetServicesResponse>"

    def _GetDeviceInformation(self, _: str) -> str:  # noqa: N802
        return """<tds:GetDeviceInformationResponse><tds:Manufacturer>Acme</tds:Manufacturer>
<tds:Model>C100</tds:Model><tds:FirmwareVersion>1.2</tds:FirmwareVersion>
<tds:SerialNumber>0042</tds:SerialNumber><tds:HardwareId>7</tds:HardwareId>
</tds:GetDeviceInformationResponse>"""

    def _GetEndpointReference(self, _: str) -> str:  # noqa: N802
        return f"""<tds:GetEndpointReferenceResponse><tds:GUID>{self.reference}</tds:GUID>
</tds:GetEndpointReferenceResponse>"""

    def _GetProfiles(self, _: str) -> str:  # noqa: N802
        def profile(token: str, width: int, height: int) -> str:
            return f"""<trt:Profiles token="{token}" fixed="true"><tt:Name>{token}</tt:Name>
<tt:VideoEncoderConfiguration token="e{token}"><tt:Name>e</tt:Name><tt:Encoding>H264</tt:Encoding>
<tt:Resolution><tt:Width>{width}</tt:Width><tt:Height>{height}</tt:Height></tt:Resolution>
<tt:RateControl><tt:FrameRateLimit>25</tt:FrameRateLimit></tt:RateControl>
</tt:VideoEncoderConfiguration></trt:Profiles>"""

        return f"""<trt:GetProfilesResponse>{profile("main", 1920, 1080)}{profile("sub", 640, 360)}
</trt:GetProfilesResponse>"""

    def _GetStreamUri(self, body: str) -> str:  # noqa: N802
        token = "sub" if ">sub<" in body else "main"
        uri = f"rtsp://leak:hunter2@{self._claims}:{self._rtsp}/{token}"
        return f"""<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>{uri}</tt:Uri>
</trt:MediaUri></trt:GetStreamUriResponse>"""


def _fault(code: str, reason: str) -> str:
    return f"""<s:Envelope {_NAMESPACES}><s:Body><s:Fault><s:Code><s:Value>s:Sender</s:Value>
<s:Subcode><s:Value>{code}</s:Value></s:Subcode></s:Code><s:Reason>
<s:Text xml:lang="en">{reason}</s:Text></s:Reason></s:Fault></s:Body></s:Envelope>"""
