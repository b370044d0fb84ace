"""Make the ids of records."""

import secrets


def new_id(prefix: str) -> str:
    """Return a new id such as `str_9f2c4e1ab07d8a36`: its kind, then 64 random bits; URL-safe."""
    return f"{prefix}_{secrets.token_hex(8)}"
