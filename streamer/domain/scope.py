"""Define what an API key may do."""

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do. `operate` includes `read`."""

    READ = "read"
    OPERATE = "operate"
