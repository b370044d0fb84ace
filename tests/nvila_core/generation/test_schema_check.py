"""What a JSON schema may cost: nothing of it is compiled in this process before that is known."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nvila_core.errors import PromptError
from nvila_core.generation import schema_check
from nvila_core.generation.grammar import grammar_of, schema_text
from nvila_core.generation.schema_check import CheckedSchema, SchemaChecker, TooManySchemas
from nvila_core.generation.schema_limits import (
    MAX_ALL_OF,
    MAX_PATTERNS,
    MAX_SCHEMA,
    MAX_SCHEMA_DEPTH,
    check_shape,
)
from nvila_core.generation.schema_process import MAX_MEMORY

GOOD = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(scope="module")
def shared() -> Iterator[SchemaChecker]:
    checker = SchemaChecker()
    yield checker
    checker.close()


@pytest.fixture
def checker(shared: SchemaChecker) -> SchemaChecker:
    """A checker that remembers nothing, with a process that may have served another test."""
    shared.forget()
    return shared


def nested(depth: int) -> dict[str, Any]:
    """Return a schema that is `depth` objects deep."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


COSTLY = {
    # each multiplies the states of the others
    "patterns that hold at once": {
        "type": "string",
        "allOf": [{"pattern": f".*{chr(97 + i)}.*"} for i in range(MAX_ALL_OF)],
    },
    # what has as many states as the number is large
    "a large multiple": {"type": "integer", "multipleOf": 99_999_999},
    "many multiples": {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer", "multipleOf": 50_001 + i} for i in range(60)},
    },
}


def test_a_schema_is_compiled_to_the_grammar_that_a_worker_uses(checker: SchemaChecker) -> None:
    checked = checker.check(schema_text(GOOD))

    assert checked.grammar == grammar_of(schema=schema_text(GOOD))
    assert 0 <= checked.memory < MAX_MEMORY


def test_what_a_schema_takes_is_measured_whatever_this_process_takes(
    checker: SchemaChecker,
) -> None:
    # given a process that takes more than compiling may
    held = bytes(range(256)) * (MAX_MEMORY // 128)
    # when a schema is compiled that needs megabytes, and one that needs little
    numbers = {f"p{i}": {"type": "integer", "multipleOf": 50_001 + i} for i in range(6)}
    large = checker.check(schema_text({"type": "object", "properties": numbers}))
    small = checker.check(schema_text(GOOD))
    # then what they took is known
    assert len(held) == 2 * MAX_MEMORY
    assert 8 << 20 < large.memory < MAX_MEMORY
    assert small.memory < 2 << 20


@pytest.mark.parametrize("name", COSTLY)
def test_a_small_schema_that_needs_much_memory_is_refused(
    checker: SchemaChecker, name: str
) -> None:
    schema = schema_text(COSTLY[name])
    assert len(schema) < 4096
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(PromptError, match="cannot be followed") as caught:
        checker.check(schema)

    assert len(str(caught.value).splitlines()) == 1
    assert "simplify it" in str(caught.value)
    # this process grew by nothing that the compiler took, and the other one only for a while
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mine
    assert grown << 10 < MAX_MEMORY // 4
    with open(f"/proc/{checker.pid}/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    assert resident < MAX_MEMORY
    # and it serves the next schema
    pid = checker.pid
    assert isinstance(checker.check(schema_text(GOOD)), CheckedSchema)
    assert checker.pid == pid


def test_an_outcome_is_remembered_good_or_bad(checker: SchemaChecker) -> None:
    # given two schemas that were checked
    bad = schema_text({"not": {"type": "string"}})
    first = checker.check(schema_text(GOOD))
    with pytest.raises(PromptError) as refused:
        checker.check(bad)
    # when there is nothing any more that could compile them
    pid = checker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    # then they have the same outcomes
    try:
        assert checker.check(schema_text(GOOD)) is first
        with pytest.raises(PromptError) as again:
            checker.check(bad)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert str(again.value) == str(refused.value)


def test_a_killed_process_is_replaced_and_no_check_fails(checker: SchemaChecker) -> None:
    checker.check(schema_text(GOOD))
    pid = checker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    checked = checker.check(schema_text({"type": "string"}))

    assert checked.grammar
    assert checker.pid not in (None, pid)


def test_a_process_that_hangs_is_killed_and_replaced(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that does not answer
    checker.check(schema_text(GOOD))
    pid = checker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    # when a schema is checked
    waits = iter([0.05, 60.0])
    monkeypatch.setattr(SchemaChecker, "max_silence", property(lambda _: next(waits)))
    checked = checker.check(schema_text({"type": "boolean"}))
    # then another process has done it, and the first one is gone
    assert checked.grammar
    assert checker.pid != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_gets_no_secret_and_ends_with_its_parent() -> None:
    # given a program that checks a schema and is killed
    program = (
        "import sys, time\n"
        "from nvila_core.generation.schema_check import CHECKER\n"
        "CHECKER.check('{}')\n"
        "assert 'torch' not in sys.modules\n"
        "print(CHECKER.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "STREAMER_SECRET_KEY": "correct horse battery"},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    with open(f"/proc/{pid}/environ", "rb") as file:
        environment = file.read()
    parent.kill()
    parent.wait()
    # then the process saw no secret, and ends
    assert b"battery" not in environment
    ended = threading.Event()
    for _ in range(6000):
        if not _runs(pid):
            return
        ended.wait(0.01)
    raise AssertionError("the process outlives its parent")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_impatient_callers_are_refused_while_many_wait(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "MAX_WAITING_SCHEMAS", 2)
    # given two callers whose schemas wait for a process that does not go on
    checker.check(schema_text(GOOD))
    pid = checker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        try:
            waiting = [
                pool.submit(checker.check, schema_text({"maxLength": i, "type": "string"}))
                for i in range(2)
            ]
            while checker.waiting < 2:
                pass
            # then a third is refused at once, unless it is patient or its schema is known
            with pytest.raises(TooManySchemas, match="try again"):
                checker.check('{"type":"null"}', patient=False)
            assert checker.check(schema_text(GOOD), patient=False).grammar
            patient = pool.submit(checker.check, '{"type":"null"}')
        finally:
            os.kill(pid, signal.SIGCONT)
    assert all(one.result().grammar for one in (*waiting, patient))


@pytest.mark.parametrize(
    ("fits", "exceeds", "reason"),
    [
        (nested(MAX_SCHEMA_DEPTH), nested(MAX_SCHEMA_DEPTH + 1), "64 levels"),
        (
            {"anyOf": [{"pattern": f"^{i}$"} for i in range(MAX_PATTERNS)]},
            {"anyOf": [{"pattern": f"^{i}$"} for i in range(MAX_PATTERNS + 1)]},
            "65 patterns",
        ),
        (
            {"patternProperties": {f"^{i}$": {} for i in range(MAX_PATTERNS)}},
            {"patternProperties": {f"^{i}$": {"pattern": "^a$"} for i in range(MAX_PATTERNS)}},
            "128 patterns",
        ),
        (
            {"allOf": [{"minLength": i} for i in range(MAX_ALL_OF)]},
            {"allOf": [{"minLength": i} for i in range(MAX_ALL_OF + 1)]},
            "17 schemas in one allOf",
        ),
        (
            {"title": "x" * (MAX_SCHEMA - len('{"title":""}'))},
            {"title": "x" * (MAX_SCHEMA - len('{"title":""}') + 1)},
            "65536 characters",
        ),
    ],
    ids=["depth", "patterns", "patternProperties", "allOf", "length"],
)
def test_each_limit_of_size_admits_what_reaches_it_and_refuses_one_more(
    fits: dict[str, Any], exceeds: dict[str, Any], reason: str
) -> None:
    check_shape(json.dumps(fits, separators=(",", ":")))

    with pytest.raises(PromptError, match=reason):
        check_shape(json.dumps(exceeds, separators=(",", ":")))
    with pytest.raises(PromptError, match=reason):  # for a caller that gives it to a model
        schema_text(exceeds)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_schema_nested_without_end_is_refused(depth: int) -> None:
    text = '{"items":' * depth + "{}" + "}" * depth

    with pytest.raises(PromptError):
        schema_text(text)
