"""`pytest --cpu-report`: the processor time of each test, programs that it starts included."""

import os
from collections.abc import Generator
from typing import Any

import pytest

from tests.support.fork_server import seconds_of_programs

_KEY = "processor seconds"
_BEFORE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--cpu-report",
        type=int,
        default=0,
        metavar="N",
        help="list the N tests that took the most processor time, fixtures and programs included",
    )


def used() -> float:
    """Return the processor time of this process and of its programs that ended, in seconds."""
    return sum(os.times()[:4]) + seconds_of_programs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the last report of a test how much it took since the last one of the test before."""
    report = yield
    if call.when == "teardown":
        now = used()
        before = item.config.stash.get(_BEFORE, 0.0)
        item.config.stash[_BEFORE] = now
        report.user_properties.append((_KEY, now - before))
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin after the imports."""
    session.config.stash[_BEFORE] = used()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List the tests that took the most."""
    if not (count := config.getoption("--cpu-report")):
        return
    took = [
        (seconds, report.nodeid)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, seconds in report.user_properties
        if name == _KEY and isinstance(seconds, float)
    ]
    terminalreporter.section(f"processor time: {sum(s for s, _ in took):.0f} s in the tests")
    for seconds, name in sorted(took, reverse=True)[:count]:
        terminalreporter.line(f"{seconds:7.2f} s  {name}")
