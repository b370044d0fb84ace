"""Measure what compiling JSON schemas costs, up to the worst that is accepted.

    .venv/bin/python benchmarks/schemas.py [--json]

Each schema is checked as the API and the worker check it, in the process that is limited to
`MAX_MEMORY` and `MAX_SECONDS`. The worst accepted one is searched: of families of schemas that grow
with a number, the largest number that passes. For each: the memory that compiling it took, the
processor time of it, and the memory by which this process grew. The processor time is that of the
child of the checking process, which the operating system adds up.
"""

import argparse
import os
import resource
import string
from collections.abc import Callable
from typing import Any

from report import publish

from nvila_core.errors import PromptError
from nvila_core.generation.grammar import schema_text
from nvila_core.generation.schema_check import CHECKER
from nvila_core.generation.schema_process import MAX_MEMORY, MAX_SECONDS

FORM = {
    "type": "object",
    "properties": {
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
        "colour": {"enum": ["red", "green", "blue", "white"]},
        "note": {"type": "string", "maxLength": 200},
        "seen": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["people", "colour"],
}

FAMILIES: dict[str, tuple[Callable[[int], dict[str, Any]], int]] = {
    "patterns that hold at once": (
        lambda n: {
            "type": "string",
            "allOf": [{"pattern": f".*{c}.*"} for c in string.ascii_letters[:n]],
        },
        16,
    ),
    "multipleOf": (lambda n: {"type": "integer", "multipleOf": n}, 10**7),
    "properties": (
        lambda n: {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(n)}},
        4000,
    ),
    "values of an enum": (lambda n: {"enum": [f"{i:08d}" for i in range(n)]}, 5500),
    "nested repetition": (
        lambda n: {"type": "string", "pattern": f"^((a{{1,{n}}}b){{1,{n}}}c){{1,{n}}}$"},
        10**6,
    ),
}


def main() -> None:
    """Print a table of the schemas and their costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.parse_args()
    rows = [row("a form of four fields", "", FORM)]
    for name, (family, most) in FAMILIES.items():
        number = largest(family, most)
        rows.append(row(name, f"{number}", family(number)))
    header = ["schema", "largest", "characters", "memory, MiB", "processor, s", "here, MiB"]
    result = {"limit_mib": MAX_MEMORY >> 20, "limit_s": MAX_SECONDS, "rows": rows}
    publish(result, header, [list(one.values()) for one in rows])


def largest(family: Callable[[int], dict[str, Any]], most: int) -> int:
    """Return the largest number up to `most` whose schema is accepted, by halving."""
    low, high = 1, most + 1
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        if accepted(family(middle)):
            low = middle
        else:
            high = middle
    return low


def accepted(schema: dict[str, Any]) -> bool:
    """Return whether a schema passes the check."""
    try:
        CHECKER.check(schema_text(schema))
    except PromptError:
        return False
    return True


def row(name: str, number: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the costs of one schema, compiled again."""
    CHECKER.check("{}")  # so that the process runs
    CHECKER.forget()
    before, mine = _seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = CHECKER.check(schema_text(schema)).memory
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mine
    return {
        "schema": name,
        "largest": number,
        "characters": len(schema_text(schema)),
        "memory_mib": memory / 2**20,
        "seconds": _seconds() - before,
        "grown_mib": grown / 2**10,
    }


def _seconds() -> float:
    """Return the processor time of the ended children of the checking process."""
    with open(f"/proc/{CHECKER.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
