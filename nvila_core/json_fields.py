"""Read JSON files of a checkpoint field by field, with errors that name the file and the field."""

import json
import math
from pathlib import Path
from typing import Any

from nvila_core.errors import CheckpointError, first_line
from nvila_core.file_kind import GIT_LFS, HTML, file_kind, read_head

MISSING: Any = object()
MAX_JSON_BYTES = 64 * 2**20


class Fields:
    """A JSON object and its source, e.g. "llm/config.json" or "config.json, text_config"."""

    def __init__(self, values: dict[str, Any], file: str) -> None:
        self.values, self.file = values, file

    @classmethod
    def read(cls, path: Path, shown: str | None = None) -> "Fields":
        """Read the JSON object in `path`.

        Raises:
            CheckpointError: the file is missing, unreadable, not JSON, or not an object.
        """
        return cls(read_json(path), shown or str(path))

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, name: str, problem: str, expected: object = None) -> CheckpointError:
        """Return a CheckpointError about field `name`."""
        found = repr(self.values[name]) if name in self.values else "nothing"
        return CheckpointError(self.file, problem, field=name, expected=expected, found=found)

    def raw(self, name: str, default: Any = MISSING) -> Any:
        """Return the value as stored; null counts as absent."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise self.error(name, "the field is missing")
        return default

    def integer(
        self, name: str, default: Any = MISSING, *, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """Return an integer from `low` to `high`."""
        value = self.raw(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, "the number is out of range", f"an integer from {low} to {high}")
        return value

    def number(self, name: str, default: Any = MISSING, *, low: float = 0.0) -> float:
        """Return a finite number of at least `low`."""
        value = self.raw(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "the value is not a number", "a number")
        if not (math.isfinite(value) and low <= value <= 1e30):
            raise self.error(name, "the number is out of range", f"a finite number from {low:g}")
        return float(value)  # transformers stores "no limit" as 1e30

    def boolean(self, name: str, default: Any = MISSING) -> bool:
        """Return a boolean."""
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "the value is not true or false", "true or false")
        return value

    def string(self, name: str, default: Any = MISSING) -> str:
        """Return a string."""
        value = self.raw(name, default)
        if not isinstance(value, str):
            raise self.error(name, "the value is not a string", "a string")
        return value

    def child(self, name: str, default: Any = MISSING) -> "Fields":
        """Return a nested object; a string that holds a JSON object counts as one."""
        value = self.raw(name, default)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise self.error(name, "the value is not an object", "a JSON object")
        return Fields(value, f"{self.file}, {name}")


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(path, f"the file is larger than {MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(path, "the file is missing; download the checkpoint again") from None
    except (OSError, ValueError, RecursionError) as error:
        problem = f"the file cannot be read as JSON: {first_line(error)}"
        if (kind := file_kind(read_head(path))) in (GIT_LFS, HTML):
            problem = f"the file is {kind.name}; {kind.remedy}"
        raise CheckpointError(path, problem) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            path, "the file does not hold a JSON object", found=type(value).__name__
        )
    return value
