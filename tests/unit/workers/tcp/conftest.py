"""Send queues and a ring for their items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.harness.send_queues import Ends, OutboundRing


@pytest.fixture
def ends() -> Iterator[Ends]:
    with closing(Ends()) as made:
        yield made


@pytest.fixture
def ring() -> OutboundRing:
    return OutboundRing()
