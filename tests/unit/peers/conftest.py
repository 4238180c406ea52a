"""Servers for the tests of the hub; all are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.peers.registry import KnownPeer
from tests.harness.hub import MakeServer, Server


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Makes a server with these peers."""
    made: list[Server] = []

    def make(*peers_known: KnownPeer, **shape: object) -> Server:
        made.append(Server(*peers_known, **shape))
        return made[-1]

    yield make
    for each in made:
        each.close()
