"""Hubs for the tests of this folder; all are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.factory import factory
from tests.harness.hub import ANN, BOB, HubServer, MakeHub


@pytest.fixture
def make_server() -> Iterator[MakeHub]:
    """Makes a hub with these peers."""
    with factory(HubServer) as make:
        yield make


@pytest.fixture
def server(make_server: MakeHub) -> HubServer:
    return make_server(ANN, BOB)
