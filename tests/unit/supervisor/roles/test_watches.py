"""Peers that join and leave, and a client's server that comes and goes, are events with their reasons."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.events import BY_NAME, Event
from pipeline.peers.peer_status import PresentSession
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles import peer_watch, server_watch
from pipeline.supervisor.roles.peer_watch import LEFT_NS, LOOK_NS, WORKER_NS, PeerWatch
from pipeline.supervisor.roles.server_watch import LOST_NS, ServerWatch

SECOND = 1_000_000_000
NAMES = {
    0: PresentSession("ann", "10.0.0.2", 7),
    1: PresentSession("bob", "10.0.0.3", 8),
    2: PresentSession("-"),
}
DEATH = Event(0, BY_NAME["worker-died"], "tcp-0", "SIGKILL", 0)
SUCCESSOR = Event(0, BY_NAME["worker-restarted"], "tcp-0", "pid 7", 0)


class Table:
    """The peer table of one lane, as the watches read it."""

    def __init__(self, capacity: int = 3) -> None:
        self.counts = [0] * capacity
        self.current = [0] * capacity
        self.rows: list[Any] = []
        self.links = [None]

    def established_counts(self) -> list[int]:
        return list(self.counts)

    def established_count(self, peer: int) -> int:
        return self.counts[peer]

    def handles(self) -> list[int]:
        return list(self.current)

    def connections(self, lane: int) -> list[Any]:
        return self.rows

    def connect(self, peer: int, handle: int, host: str = "192.0.2.1", count: int = 8) -> None:
        self.counts[peer], self.current[peer] = count, handle
        row = SimpleNamespace(state="established", peer=peer, address=f"{host}:4000")
        self.rows = [each for each in self.rows if each.peer != peer] + [row]

    def disconnect(self, peer: int) -> None:
        self.counts[peer] = 0
        self.rows = [each for each in self.rows if each.peer != peer]


class Watched:
    def __init__(self, make: Any) -> None:
        self.table = Table()
        self.events = Events()
        self.seen: list[tuple[str, str, str]] = []
        self.events.subscribe(lambda event: self.seen.append((event.kind.name, event.subject, event.text)))
        self.watch = make(self)
        self.now = 10**12

    def after(self, nanoseconds: int) -> list[tuple[str, str, str]]:
        """The events of so much time, and of the look at its end."""
        self.now += nanoseconds
        self.watch.tick(self.now)
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def server() -> Watched:
    return Watched(lambda it: PeerWatch(it.table, it.events, NAMES.get))


@pytest.fixture
def client() -> Watched:
    return Watched(lambda it: ServerWatch(it.table, it.events))


def test_a_peer_joins_with_its_first_connection_and_leaves_a_moment_after_its_last(server: Watched) -> None:
    server.table.connect(0, 100)
    assert server.after(LOOK_NS) == [("peer-joined", "ann", "10.0.0.2, from 192.0.2.1")]
    assert server.after(LOOK_NS) == []
    server.table.disconnect(0)
    server.watch.ended(100, "connection reset by peer")
    assert server.after(LOOK_NS) == []
    assert server.after(LEFT_NS) == [("peer-left", "ann", "connection reset by peer")]
    assert server.after(LEFT_NS) == []


def test_a_peer_that_is_back_within_a_moment_has_not_left(server: Watched) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    server.table.disconnect(0)
    assert server.after(LOOK_NS) == []
    server.table.connect(0, 100)
    assert server.after(LEFT_NS) == []


def test_a_new_session_of_a_peer_joins_again_with_the_reason(server: Watched, monkeypatch: Any) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    server.watch.ended(100, "no answer")
    monkeypatch.setitem(NAMES, 0, NAMES[0]._replace(number=9))  # another start of the client
    server.table.connect(0, 200)
    assert server.after(LOOK_NS) == [("peer-joined", "ann", "10.0.0.2, from 192.0.2.1, again: no answer")]


@pytest.mark.parametrize("looks_between", [True, False])
def test_a_peer_whose_worker_dies_makes_its_connections_anew_and_is_no_event(
    server: Watched, looks_between: bool
) -> None:
    for peer in (0, 1):
        server.table.connect(peer, 100 + peer)
    server.after(LOOK_NS)
    server.watch.note(DEATH)
    if looks_between:
        for peer in (0, 1):
            server.table.disconnect(peer)
        assert server.after(LOOK_NS) == []
        server.watch.note(SUCCESSOR)
        server.table.current[0] = 200  # admitted, and not yet established
        assert server.after(3 * LEFT_NS) == []
    for peer in (0, 1):
        server.table.connect(peer, 200 + peer)
    assert server.after(LOOK_NS) == []
    server.table.disconnect(0)
    server.watch.ended(200, "reset")
    assert server.after(LOOK_NS) == []
    assert server.after(LEFT_NS) == [("peer-left", "ann", "reset")]  # of its present session


def test_a_peer_that_does_not_come_back_after_the_death_of_its_worker_has_left_with_that_reason(
    server: Watched,
) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    server.watch.note(DEATH)
    server.table.disconnect(0)
    server.after(LOOK_NS)
    server.watch.note(SUCCESSOR)
    assert server.after(WORKER_NS - 1) == []
    assert server.after(LOOK_NS) == [("peer-left", "ann", "tcp-0 died")]


def test_a_peer_that_ends_its_connections_while_a_worker_is_dead_leaves_as_ever(server: Watched) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    server.watch.note(DEATH)
    server.watch.ended(100, "closed by the peer")
    server.table.disconnect(0)
    server.after(LOOK_NS)
    assert server.after(LEFT_NS) == [("peer-left", "ann", "closed by the peer")]


def test_a_session_that_the_server_has_ended_joins_again_although_the_client_goes_on(server: Watched) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    server.watch.session_ended(0, "it has another address")
    server.table.connect(0, 200)
    ((kind, name, text),) = server.after(LOOK_NS)
    assert (kind, name) == ("peer-joined", "ann") and text.endswith(", again: it has another address")


def test_an_index_that_another_peer_has_now_is_left_by_the_first(server: Watched, monkeypatch: Any) -> None:
    server.table.connect(0, 100)
    server.after(LOOK_NS)
    monkeypatch.setitem(NAMES, 0, PresentSession("cyd", "10.0.0.4", 7))
    server.table.connect(0, 300)
    assert [row[:2] for row in server.after(LOOK_NS)] == [("peer-left", "ann"), ("peer-joined", "cyd")]


def test_a_session_that_the_server_ends_leaves_with_its_reason(server: Watched) -> None:
    server.table.connect(1, 100)
    server.after(LOOK_NS)
    server.watch.session_ended(1, "revoked")
    server.watch.ended(100, "its session has ended")  # the worker's report, which follows
    server.table.disconnect(1)
    server.table.current[1] = 200
    assert server.after(LOOK_NS) == [("peer-left", "bob", "revoked")]


def test_a_peer_without_a_name_is_called_by_where_it_is(server: Watched) -> None:
    server.table.connect(2, 100, "198.51.100.7")
    assert server.after(LOOK_NS) == [("peer-joined", "198.51.100.7", "from 198.51.100.7")]


def test_a_reason_of_a_worker_that_was_broken_into_is_refused_or_cut(server: Watched) -> None:
    for handle, reason in ((None, "x"), (1.5, "x"), (1, None), (1, ["x"]), (True, "x")):
        with pytest.raises(ValueError, match="end of"):
            server.watch.ended(handle, reason)
    for handle in range(2 * peer_watch.REASONS_MAX):
        server.watch.ended(handle, "x" * 10_000)
    assert len(server.watch._reasons) <= peer_watch.REASONS_MAX


def test_a_client_is_connected_lost_and_connected_again(client: Watched) -> None:
    assert client.after(SECOND) == []
    client.table.connect(0, 1)
    assert client.after(SECOND) == [("connected", "", "to 192.0.2.1")]
    assert client.watch.since_ns == client.now
    client.table.disconnect(0)
    assert client.after(SECOND) == []
    client.watch.trouble(["connection refused"], failed=True, host="hub")
    assert client.after(LOST_NS) == [
        ("server-trouble", "hub", "connection refused"),
        ("lost", "", "connection refused"),
    ]
    assert client.watch.since_ns == 0
    client.table.connect(0, 1)
    assert client.after(SECOND) == [("connected", "", "to 192.0.2.1")]


def test_connections_that_are_back_at_once_are_one_event_with_the_reason(client: Watched) -> None:
    client.table.connect(0, 1)
    client.after(SECOND)
    client.table.disconnect(0)
    client.after(SECOND // 10)
    client.watch.note(Event(0, BY_NAME["worker-died"], "tcp-0", "SIGKILL", 0))
    client.table.connect(0, 1)
    assert client.after(SECOND // 2) == [("reconnected", "", "to 192.0.2.1, after 0.5 s: tcp-0 died")]


def test_another_address_of_the_server_is_an_event(client: Watched) -> None:
    client.table.connect(0, 1)
    client.after(SECOND)
    client.table.disconnect(0)
    client.after(LOST_NS)
    client.after(LOST_NS)
    client.table.connect(0, 1, "192.0.2.9")
    assert client.after(SECOND) == [
        ("connected", "", "to 192.0.2.9"),
        ("server-changed", "", "now 192.0.2.9, before 192.0.2.1"),
    ]


def test_each_reason_of_failed_attempts_is_said_once_until_there_is_a_connection(client: Watched) -> None:
    for number in (1, 1, 2, 1):
        client.watch.trouble([f"reason {number}"], failed=True, host="hub")
    client.watch.trouble(["not yet dialed"], failed=False, host="hub")
    assert [row[2] for row in client.after(SECOND)] == ["reason 1", "reason 2"]
    for number in range(10 * server_watch.SAID_MAX):
        client.watch.trouble([f"another {number}"], failed=True, host="hub")
    assert len(client.watch._said) <= server_watch.SAID_MAX


def test_a_watch_of_new_memory_continues_the_one_before(client: Watched) -> None:
    client.table.connect(0, 1)
    client.after(SECOND)
    client.table = Table()
    client.watch = ServerWatch(client.table, client.events, client.watch)
    assert client.after(SECOND // 4) == []
    client.table.connect(0, 2)
    assert [row[0] for row in client.after(SECOND // 4)] == ["reconnected"]
