"""Senders on the memory of a run, with the other end in the hand of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness.datagram_sender import SenderRun
from tests.harness.factory import factory


@pytest.fixture
def make_sender() -> Iterator[Callable[..., SenderRun]]:
    with factory(SenderRun) as made:
        yield made
