"""Encrypt what must stay secret for storage: URLs of streams with passwords, and signing keys."""

import base64
import binascii
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_MARK = "sealed:1:"
"""Prefix of an encrypted text; no URL or path begins with it."""

_SALT_BYTES = 16
_KEY_BYTES = 32
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}  # 32 MiB and about 0.1 s per guess


class SecretBox:
    """Encrypts texts with the first of `keys`, and decrypts texts encrypted with any of them.

    A key is 32 random bytes in base64, or a passphrase of any length. Without keys, texts are
    stored as they are. To change the key, put the new key in front of the old one, encrypt every
    secret again (:meth:`is_current`), then remove the old key. Thread-safe.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self._salt = base64.urlsafe_b64encode(secrets.token_bytes(_SALT_BYTES)).decode()

    @property
    def has_key(self) -> bool:
        """Whether texts are encrypted."""
        return bool(self._keys)

    def seal(self, text: str) -> str:
        """Return `text` for storage: encrypted and authenticated (Fernet) if there is a key."""
        if not self._keys:
            return text
        token = _fernet(self._keys, self._salt).encrypt(text.encode()).decode()
        return f"{_MARK}{self._salt}:{token}"

    def unseal(self, stored: str, owner: str, what: str = "URL") -> str:
        """Return the text of `stored`. `owner` names whose it is in the error message, `what` it.

        Raises StreamerError(SECRET_UNREADABLE) if it was encrypted with a key that is not here.
        """
        if not stored.startswith(_MARK):
            return stored
        if not self._keys:
            raise StreamerError(
                ErrorCode.SECRET_UNREADABLE,
                f"The {what} of {owner} is encrypted: set STREAMER_SECRET_KEY here to the key with "
                "which it was stored, as the ingest workers have it.",
            )
        text = _decrypt(self._keys, stored)
        if text is None:
            raise StreamerError(
                ErrorCode.SECRET_UNREADABLE,
                f"The {what} of {owner} was encrypted with another STREAMER_SECRET_KEY: append "
                f"that key after a comma, or set the {what} again where the right key is set.",
            )
        return text

    def is_current(self, stored: str) -> bool:
        """Return whether `stored` is encrypted with the first key; True without keys."""
        if not self._keys:
            return True
        return stored.startswith(_MARK) and _decrypt(self._keys[:1], stored) is not None


def _decrypt(keys: tuple[str, ...], stored: str) -> str | None:
    from cryptography.fernet import InvalidToken

    salt, _, token = stored.removeprefix(_MARK).partition(":")
    try:
        return _fernet(keys, salt).decrypt(token).decode()
    except (InvalidToken, binascii.Error, ValueError):
        return None


@lru_cache(maxsize=64)
def _fernet(keys: tuple[str, ...], salt: str) -> "MultiFernet":
    from cryptography.fernet import Fernet, MultiFernet

    return MultiFernet([Fernet(_raw_key(key) or _derive(key, salt)) for key in keys])


def _raw_key(key: str) -> bytes | None:
    """Return the Fernet key, if `key` is 32 bytes in base64 of either alphabet."""
    try:
        raw = base64.b64decode(key.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return base64.urlsafe_b64encode(raw) if len(raw) == _KEY_BYTES else None


@lru_cache(maxsize=256)
def _derive(passphrase: str, salt: str) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    kdf = Scrypt(salt=base64.urlsafe_b64decode(salt), length=_KEY_BYTES, **_SCRYPT)
    return base64.urlsafe_b64encode(kdf.derive(passphrase.encode()))
