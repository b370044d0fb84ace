"""Fixtures of the tests of sources."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.web import Site


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    """A web server for the module's own `folder`."""
    with Site(folder) as site:
        yield site
