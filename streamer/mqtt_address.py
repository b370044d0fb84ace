"""The address of an MQTT broker: host, port, login and TLS."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_CERTIFICATES = "ssl_ca_certs"
_FORM = "write mqtt://USER:PASSWORD@HOST:1883, or mqtts:// for TLS"


@dataclass(frozen=True)
class MqttAddress:
    """A broker as the setting `mqtt_url` names it.

    Attributes:
        host, port: where it listens.
        username, password: the login; None: connect without one.
        tls: whether to encrypt the connection, and verify the broker's certificate.
        ca_certs: file with the authorities to trust; None: those of the system.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: Path | None = None

    @classmethod
    def of(cls, url: str) -> Self:
        """Read an address such as `mqtts://user:password@broker:8883?ssl_ca_certs=ca.pem`.

        Raises ValueError that shows the form, without the URL because it may have a password.
        """
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            raise ValueError(
                f"{_FORM}; percent-encode special characters in the password"
            ) from None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"{_FORM}; percent-encode special characters in the password")
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        certificates = parameters.pop(_CERTIFICATES, None)
        if parameters or parts.fragment:
            raise ValueError(f"{_FORM}; the only parameter is {_CERTIFICATES}, a file")
        return cls(
            parts.hostname,
            port or _PORTS[parts.scheme],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password is not None else None,
            tls=parts.scheme == "mqtts",
            ca_certs=Path(certificates) if certificates else None,
        )

    def __str__(self) -> str:
        """Return the address to show, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context; None without TLS. Raises OSError for an unreadable file."""
        return ssl.create_default_context(cafile=self.ca_certs) if self.tls else None
