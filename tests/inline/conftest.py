"""Ends and peers for the tests here; all are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count

import pytest

from pipeline.fec.reorder import WAIT_NS
from pipeline.wire import framing
from tests.harness.factory import factory
from tests.inline.harness.ends import WELCOME, Dial, End, HandmadeServer, Make, Peer, hello, until
from tests.inline.harness.hub_ends import Hosts


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes ends; all are closed after the test."""
    seeds = count()
    with factory(lambda mode, **options: End(mode, seed=next(seeds), **options)) as make_end:
        yield make_end


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard is given up because this machine is slow. Without a missing block nothing waits for these times."""
    monkeypatch.setattr("pipeline.fec.reassembly.KEEP_NS", 60_000_000_000)
    monkeypatch.setitem(WAIT_NS, framing.BULK, 5_000_000_000)
    monkeypatch.setattr("workers.dgram.reception.WAIT_OF_PATHS_NS", 5_000_000_000)


@pytest.fixture(autouse=True)
def keeps_its_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk is not tried on TCP because this machine is slow."""
    monkeypatch.setattr("pipeline.policy.bulk_carrier.LIMITED_NS", 3600_000_000_000)


@pytest.fixture
def server() -> Iterator[End]:
    with closing(End("server", timeout=5.0)) as made:
        yield made


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Peers that dial an end; closed after the test."""
    with factory(Peer.dial) as dial_port:

        def peer(end: End, first_bytes: bytes = b"", **options: int) -> Peer:
            made = dial_port(end.port, **options)
            if first_bytes:
                before = end.established()
                made.send(first_bytes)
                until(lambda: end.established() == before + 1 and WELCOME in made.kinds(), end)
            return made

        yield peer


@pytest.fixture
def hosts(make: Make, dial: Dial) -> Hosts:
    """A server of several peers and the clients 1 and 2, each a connection in the test's hand.

    `takes`: the offloads that their devices accept.
    """

    def made(takes: tuple[int, int] = (0, 0), features: int = 0, **settings: object) -> tuple[End, Peer, Peer]:
        server = make("server", capacity=4, **settings)
        first, second = (
            dial(server, hello(client=client, offloads=takes[client - 1], features=features)) for client in (1, 2)
        )
        return server, first, second

    return made


@pytest.fixture
def handmade_server() -> Iterator[HandmadeServer]:
    with closing(HandmadeServer()) as made:
        yield made


@pytest.fixture
def client_of(handmade_server: HandmadeServer) -> Iterator[Callable[..., End]]:
    """Clients that dial the handmade server."""
    with factory(partial(End, "client", port=handmade_server.port, client_id=1, session=1)) as make_client:
        yield make_client
