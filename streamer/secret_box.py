"""Secrets at rest: how a stream's full URL is kept in Redis when `secret_key` is set."""

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
"""What a sealed text begins with, and no URL or path does."""

_SALT_BYTES = 16
_KEY_BYTES = 32
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}  # 32 MiB and about 0.1 s for a guess


class SecretBox:
    """Seals texts with the first of `keys` and opens those that any of them sealed.

    A key is 32 random bytes in base64, or a passphrase of any length. Without keys texts are
    stored as they are. To change the key put the new one in front of the old one, let every
    secret be sealed anew (:meth:`is_current`), then drop the old one. Thread-safe.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self._salt = base64.urlsafe_b64encode(secrets.token_bytes(_SALT_BYTES)).decode()

    @property
    def has_key(self) -> bool:
        """Whether texts are encrypted at all."""
        return bool(self._keys)

    def seal(self, text: str) -> str:
        """`text` as it may be stored: encrypted and authenticated (Fernet) if there is a key."""
        if not self._keys:
            return text
        token = _fernet(self._keys, self._salt).encrypt(text.encode()).decode()
        return f"{_MARK}{self._salt}:{token}"

    def unseal(self, stored: str, owner: str) -> str:
        """The text that `stored` is; `owner` says in the error whose it is.

        Raises StreamerError(SECRET_UNREADABLE) when it was sealed with none of our keys.
        """
        if not stored.startswith(_MARK):
            return stored
        if not self._keys:
            raise StreamerError(
                ErrorCode.SECRET_UNREADABLE,
                f"The URL of {owner} is encrypted: set STREAMER_SECRET_KEY to the key of the "
                "ingest workers, here too.",
            )
        text = _decrypt(self._keys, stored)
        if text is None:
            raise StreamerError(
                ErrorCode.SECRET_UNREADABLE,
                f"The URL of {owner} was encrypted with another STREAMER_SECRET_KEY: add that key "
                "behind a comma, or give the URL again where the right key is set.",
            )
        return text

    def is_current(self, stored: str) -> bool:
        """Whether `stored` is as :meth:`seal` would make it today, with the first key."""
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
    """The Fernet key that `key` is, if it is 32 bytes in base64 of either alphabet."""
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
