"""The log of peers' connections: the first change at once, the others summed up, few lines whatever a peer does."""

from __future__ import annotations

import logging
import re

import pytest

from workers.tcp import connection_log
from workers.tcp.connection_log import INTERVAL_NS, MOMENT_NS, ConnectionLog

NOW = 1_000_000_000_000
TICK_NS = 100_000_000


class Peers:
    """A log, and the peers whose connections come and go."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self.log = ConnectionLog()
        self.now = NOW
        self._serial = 0

    def begin(self, peer: str = "ann") -> int:
        self._serial += 1
        self.log.identify(self._serial, peer)
        self.log.begun(self._serial, f"192.0.2.1:{5000 + self._serial}", self.now)
        return self._serial

    def end(self, connection: int, reason: str = "closed by the peer") -> None:
        self.log.ended(connection, reason, self.now)
        self.log.forget(connection)

    def refuse(self, peer: str = "ann") -> None:
        self._serial += 1
        self.log.identify(self._serial, peer)
        self.log.refused(self._serial, "refused: too many connections", self.now)
        self.log.forget(self._serial)

    def wait(self, ns: int) -> None:
        end = self.now + ns
        while self.now < end:
            self.now += TICK_NS
            self.log.tick(self.now)

    def lines(self) -> list[str]:
        """The lines since the last call."""
        found = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def peers(caplog: pytest.LogCaptureFixture) -> Peers:
    return Peers(caplog)


def test_the_first_connection_is_written_at_once_and_the_others_together_a_moment_later(peers: Peers) -> None:
    peers.begin()
    assert peers.lines() == ["peer ann: 1 connection from 192.0.2.1:5001 established; 1 now"]
    for _ in range(7):
        peers.wait(TICK_NS)
        peers.begin()
    assert peers.lines() == []
    peers.wait(2 * MOMENT_NS)
    assert peers.lines() == ["peer ann: 7 connections from 192.0.2.1:5008 established; 8 now"]
    peers.wait(10 * INTERVAL_NS)
    assert peers.lines() == []


def test_the_end_of_all_connections_is_told_with_its_reason(peers: Peers) -> None:
    connections = [peers.begin() for _ in range(3)]
    peers.wait(3 * INTERVAL_NS)
    peers.lines()
    for connection in connections:
        peers.end(connection)
    assert peers.lines() == ["peer ann: 1 connection ended: closed by the peer; 2 now"]
    peers.wait(2 * MOMENT_NS)
    assert peers.lines() == ["peer ann: 2 connections ended: closed by the peer; 0 now"]


def test_a_peer_that_flaps_has_a_line_every_ten_seconds_that_counts_everything(peers: Peers) -> None:
    minutes = 5
    count = 0
    for _ in range(minutes * 60 * 10):
        peers.end(peers.begin())
        count += 1
        peers.wait(TICK_NS)
    peers.wait(2 * INTERVAL_NS)
    lines = peers.lines()
    assert len(lines) <= minutes * 6 + 3
    for what in ("from", "ended"):
        assert sum(map(int, re.findall(rf"(\d+) connections? {what}", "\n".join(lines)))) == count
    assert lines[-1].endswith("; 0 now")


def test_refusals_are_warnings_and_are_summed_up_as_well(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(1000):
        peers.refuse()
    peers.wait(2 * MOMENT_NS)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert peers.lines() == [
        "peer ann: 1 connection refused: too many connections; 0 now",
        "peer ann: 999 connections refused: too many connections; 0 now",
    ]


def test_one_peer_that_flaps_hides_nothing_of_another(peers: Peers) -> None:
    for _ in range(10):
        peers.end(peers.begin())
    peers.lines()
    peers.begin("bob")
    assert [line[:8] for line in peers.lines()] == ["peer bob"]


@pytest.mark.parametrize("identified", [True, False])
def test_clients_without_a_name_are_summed_up_together(peers: Peers, identified: bool) -> None:
    if identified:
        peers.log.identify(7, "")
    peers.log.begun(7, "192.0.2.1:5000", NOW)
    assert peers.lines() == ["clients without a name: 1 connection from 192.0.2.1:5000 established; 1 now"]


def test_nothing_is_remembered_of_connections_that_have_ended_and_of_peers_that_are_away(peers: Peers) -> None:
    for number in range(20):
        peers.end(peers.begin(f"peer-{number}"))
    peers.wait(3 * INTERVAL_NS)
    assert peers.log._peers == {} and peers.log._records == {}


def test_names_that_clients_make_up_fill_neither_memory_nor_the_log(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_log, "PEERS_MAX", 5)
    for number in range(1000):
        peers.refuse(f"client-{number}")
    peers.wait(2 * MOMENT_NS)
    assert len(peers.log._records) == 6
    assert len(peers.lines()) == 5 + 2
