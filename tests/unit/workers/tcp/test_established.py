"""Established connections by descriptor and by peer, and which of them a new one replaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.shm.layout import (
    FIRST_PEER_HANDLE,
    LINK_COUNTED_BYTES,
    LINK_ESTABLISHED,
    PEER_INDEX_BITS,
    RECORD_WORDS,
)
from pipeline.transport.connection import Connection
from pipeline.transport.connection_list import ConnectionList
from tests.harness.run import Run
from workers.tcp.established import EstablishedConnections
from workers.tcp.link_publisher import LinkPublisher

LANE = 1
NOW = 1_000_000_000_000


def hand_over(name: str, sock: socket.socket) -> bool:
    raise AssertionError(f"{name}: this test lets each connection keep what the host has")


class Registry:
    """The established connections of the tcp worker of one lane, and how often the Sender was kicked."""

    def __init__(self, run: Run) -> None:
        self.run = run
        attachment = run.attach(f"tcp-{LANE}")
        self.list = ConnectionList(NOW)
        self.kicks = 0
        self.established = EstablishedConnections(
            attachment, self.list, LinkPublisher(attachment), self._kick, hand_over
        )

    def _kick(self) -> None:
        self.kicks += 1

    def add(self, peer: int = 0, dial_index: int = 0) -> Connection:
        connection = self.run.connection(peer)
        connection.dial_index = dial_index
        self.established.prepare_receiver(connection, NOW)
        self.established.add(connection, NOW)
        return connection


@pytest.fixture
def registry() -> Iterator[Registry]:
    run = Run()
    for peer in range(run.plan.peer_table.capacity):
        run.memory.peer_table.write_record(FIRST_PEER_HANDLE | peer, 0)
    yield Registry(run)
    run.close()


def test_an_added_connection_is_known_by_its_descriptor_and_its_peer(registry: Registry) -> None:
    connection = registry.add(peer=2)
    assert registry.established.by_fd == {connection.fd: connection}
    assert registry.established.peers[2].established == (connection,)
    assert registry.list.established == (connection,)
    assert registry.run.word(LANE, 2, LINK_ESTABLISHED) == 1
    assert registry.kicks == 1


def test_a_removed_connection_is_out_of_service_and_its_descriptor_stays_taken(registry: Registry) -> None:
    connection = registry.add(peer=2)
    registry.established.remove(connection, NOW + 1)
    assert registry.established.by_fd == {}
    assert registry.list.established == ()
    assert registry.run.word(LANE, 2, LINK_ESTABLISHED) == 0
    assert registry.kicks == 2
    assert connection.socket.fileno() == connection.fd
    registry.list.seen_version = registry.list.version
    registry.established.close_retired()
    assert connection.socket.fileno() == -1


def test_a_lane_gets_the_frames_of_the_lane_that_the_peer_has_told_turned_by_the_index_of_the_peer(
    registry: Registry,
) -> None:
    def lanes(peer: int) -> list[int]:
        connection = registry.run.connection(peer)
        found = []
        for told in (0, 1, 2, 3, 255):
            registry.established.stamp(connection, told)
            found.append(connection.receive.stamped_lane)
        return found

    assert (lanes(0), lanes(2)) == ([0, 1, 2, 0, 0], [2, 0, 1, 2, 2])


def test_a_connection_replaces_those_of_an_older_session_and_of_its_own_dial_slot(registry: Registry) -> None:
    older = registry.add(peer=1, dial_index=5)
    older.peer_handle += 1 << PEER_INDEX_BITS  # of a session that is not the current one
    dialed_again, another_slot = (registry.add(peer=1, dial_index=dial_index) for dial_index in (0, 1))
    registry.add(peer=2, dial_index=0)
    newest = registry.run.connection(1)
    newest.dial_index = 0
    replaced = dict(registry.established.replaced_by(newest))
    assert set(replaced) == {older, dialed_again}
    assert "newer session" in replaced[older]
    assert "dialed it again" in replaced[dialed_again]
    assert another_slot not in replaced


def test_the_rate_of_a_peer_holds_for_all_its_workers_together(registry: Registry) -> None:
    registry.run.memory.peer_table.write_record(FIRST_PEER_HANDLE | 1, 1_000_000)
    registry.add(peer=1)
    peer = registry.established.peers[1]
    assert peer.bucket.rate == 1_000_000
    assert peer.bucket.in_credit(NOW)
    registry.run.memory.peer_table.links[0][RECORD_WORDS + LINK_COUNTED_BYTES] += 10_000_000  # with another worker
    registry.established.update_peers(NOW)
    assert not peer.bucket.in_credit(NOW)
    peer.record_received(100, 0, NOW)
    assert registry.run.word(LANE, 1, LINK_COUNTED_BYTES) == 100
