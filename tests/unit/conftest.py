"""A run for the tests of several folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.harness.run import Run


@pytest.fixture
def run() -> Iterator[Run]:
    """The shared memory of a run, without its processes."""
    with closing(Run()) as made:
        yield made
