"""Ends and peers for the tests here; all are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.fec.reorder import WAIT_NS
from pipeline.wire import framing
from tests.inline.harness.ends import WELCOME, Acceptor, Dial, End, Make, Peer, hello, until
from tests.inline.harness.hub_ends import Hosts


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes ends; all are closed after the test."""
    made: list[End] = []

    def end(mode: str, **options: object) -> End:
        made.append(End(mode, seed=len(made), **options))
        return made[-1]

    yield end
    for each in made:
        each.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard is given up because this machine is slow. Without a missing block nothing waits for these times."""
    monkeypatch.setattr("pipeline.fec.reassembly.KEEP_NS", 60_000_000_000)
    monkeypatch.setitem(WAIT_NS, framing.BULK, 5_000_000_000)


@pytest.fixture
def server() -> Iterator[End]:
    made = End("server", timeout=5.0)
    yield made
    made.close()


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Peers that dial an end; closed after the test."""
    made: list[Peer] = []

    def peer(end: End, greeting: bytes = b"", **options: int) -> Peer:
        made.append(Peer.dial(end.port, **options))
        if greeting:
            before = end.established()
            made[-1].send(greeting)
            until(lambda: end.established() == before + 1 and WELCOME in made[-1].kinds(), end)
        return made[-1]

    yield peer
    for each in made:
        each.close()


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
def acceptor() -> Iterator[Acceptor]:
    made = Acceptor()
    yield made
    made.close()


@pytest.fixture
def client_of(acceptor: Acceptor) -> Iterator[Callable[..., End]]:
    """Clients that dial the acceptor."""
    made: list[End] = []

    def client(**settings: object) -> End:
        made.append(End("client", port=acceptor.port, client=1, session=1, **settings))
        return made[-1]

    yield client
    for each in made:
        each.close()
