"""A tcp worker publishes its connections: a link record for each peer, a status row for each connection."""

from __future__ import annotations

import pytest

from pipeline.runtime import link_paths
from pipeline.shm.layout import (
    FIRST_PEER_HANDLE,
    LINK_ACCEPTS_SHARDS,
    LINK_COUNTED_BYTES,
    LINK_ESTABLISHED,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_RECEIVED_BYTES,
    RECORD_WORDS,
)
from pipeline.shm.link_requests import NONE, LinkRequests
from pipeline.wire import framing
from pipeline.wire.uplink import Uplink
from tests.harness.run import OFFLOADS, Run
from workers.tcp.link_publisher import LinkPublisher

LANE = 1


@pytest.fixture
def publisher(run: Run) -> LinkPublisher:
    return LinkPublisher(run.attach(f"tcp-{LANE}"))


def published(run: Run, peer: int, lane: int = LANE) -> dict[str, int]:
    return {
        name: run.word(lane, peer, word)
        for name, word in (
            ("established", LINK_ESTABLISHED),
            ("light", LINK_LIGHT),
            ("offloads", LINK_OFFLOADS),
            ("decodes", LINK_ACCEPTS_SHARDS),
        )
    }


NOTHING = {"established": 0, "light": 0, "offloads": OFFLOADS, "decodes": 0}


def test_without_connections_a_link_record_is_empty(run: Run, publisher: LinkPublisher) -> None:
    for peer in range(4):
        assert published(run, peer) == NOTHING


def test_connections_accept_together_what_each_and_this_end_accepts(run: Run, publisher: LinkPublisher) -> None:
    publisher.publish(
        2, [run.connection(offloads=0b1111), run.connection(offloads=0b1110, traffic_class=framing.LIGHT)]
    )
    assert published(run, 2) == {"established": 2, "light": 1, "offloads": 0b110, "decodes": 1}


def test_a_peer_accepts_shards_if_every_connection_does(run: Run, publisher: LinkPublisher) -> None:
    publisher.publish(0, [run.connection(), run.connection(decodes=False), run.connection()])
    assert published(run, 0)["decodes"] == 0


def test_a_link_record_belongs_to_one_peer_and_one_worker(run: Run, publisher: LinkPublisher) -> None:
    publisher.publish(2, [run.connection(2, offloads=0)])
    publisher.request(2, LinkRequests(3, 2, 1000))
    publisher.add_received(2, 1000, 2000)
    for peer in (0, 1, 3):
        assert published(run, peer) == NOTHING
        assert (run.requests(LANE, peer), run.word(LANE, peer, LINK_RECEIVED_BYTES)) == (NONE, 0)
    for lane in (0, 2):
        assert not any(run.memory.peer_table.links[lane])


def test_after_the_last_connection_a_link_record_is_empty(run: Run, publisher: LinkPublisher) -> None:
    publisher.publish(2, [run.connection(offloads=0, traffic_class=framing.LIGHT)])
    publisher.publish(2, [])
    assert published(run, 2) == NOTHING


def test_requests_are_replaced_and_received_bytes_are_added_up(run: Run, publisher: LinkPublisher) -> None:
    publisher.request(1, LinkRequests(3, 2, 7000))
    publisher.request(1, LinkRequests(2, 1, 0))
    publisher.add_received(1, 10, 20)
    publisher.add_received(1, 5, 9)
    assert (run.requests(LANE, 1), run.word(LANE, 1, LINK_RECEIVED_BYTES)) == (LinkRequests(2, 1, 0), 15)
    assert run.word(LANE, 1, LINK_COUNTED_BYTES) == 29


def test_a_successor_clears_all_that_its_predecessor_published_except_what_was_counted(
    run: Run, publisher: LinkPublisher
) -> None:
    publisher.publish(3, [run.connection(3, offloads=0)])
    publisher.request(3, LinkRequests(3, 2, 1000))
    publisher.add_received(3, 77, 88)
    connection = run.connection(3)
    connection.receive.status_row = publisher.acquire_row()
    publisher.write_rows([connection])
    run.write_link(0, 3, established=5)
    LinkPublisher(run.attach(f"tcp-{LANE}"))
    assert published(run, 3) == NOTHING
    assert (run.requests(LANE, 3), run.word(LANE, 3, LINK_RECEIVED_BYTES)) == (NONE, 77)
    assert run.memory.peer_table.connections(LANE) == []
    assert run.memory.peer_table.established_count(3) == 5


def test_a_connection_is_current_as_long_as_its_session_is(run: Run, publisher: LinkPublisher) -> None:
    connection, other = run.connection(2), run.connection(1)
    run.memory.peer_table.write_record(FIRST_PEER_HANDLE | 2, 0)
    assert publisher.is_current(connection)
    assert not publisher.is_current(other)
    run.memory.peer_table.write_record(FIRST_PEER_HANDLE | 1, 0)
    assert publisher.is_current(connection) and publisher.is_current(other)
    run.memory.peer_table.write_record(2 * FIRST_PEER_HANDLE | 2, 0)
    assert not publisher.is_current(connection)
    assert publisher.is_current(other)


# -- status rows


def test_each_row_is_given_out_once_and_then_there_is_none(run: Run, publisher: LinkPublisher) -> None:
    rows = [publisher.acquire_row() for _ in range(run.plan.peer_table.status_rows)]
    assert sorted(rows) == list(range(run.plan.peer_table.status_rows))
    assert publisher.acquire_row() == -1
    publisher.release_row(5)
    assert (publisher.acquire_row(), publisher.acquire_row()) == (5, -1)


def test_a_row_shows_the_peer_of_a_connection_and_its_address(run: Run, publisher: LinkPublisher) -> None:
    connection = run.connection(3, traffic_class=framing.LIGHT, address=("2001:db8::1", 40000, 0, 0))
    connection.receive.status_row, connection.receive.stamped_lane = publisher.acquire_row(), 2
    connection.send.byte_count, connection.receive.byte_count = 10, 20
    publisher.write_rows([connection])
    (row,) = run.memory.peer_table.connections(LANE)
    assert (row.peer, row.address, row.lane, row.traffic_class) == (3, "[2001:db8::1]:40000", 2, framing.LIGHT)
    assert (row.state, row.serial, row.sent_bytes, row.received_bytes) == ("established", connection.serial, 10, 20)
    assert [run.memory.peer_table.connections(lane) for lane in (0, 2)] == [[], []]


def test_a_row_that_is_released_is_empty(run: Run, publisher: LinkPublisher) -> None:
    connections = [run.connection(peer) for peer in range(2)]
    for connection in connections:
        connection.receive.status_row = publisher.acquire_row()
    publisher.write_rows(connections)
    publisher.release_row(connections[0].receive.status_row)
    assert [row.peer for row in run.memory.peer_table.connections(LANE)] == [1]


def test_connections_on_uplinks_have_a_path_record_and_those_on_a_backup_come_last(
    run: Run, publisher: LinkPublisher
) -> None:
    uplinks = (Uplink(1, "wwan0", True), Uplink(0, "eth0", False), None)
    connections = [run.connection(2) for _ in uplinks]
    for connection, uplink in zip(connections, uplinks, strict=True):
        connection.uplink = uplink
    publisher.publish(2, connections[:2])
    at = 2 * RECORD_WORDS
    words = run.memory.peer_table.paths[LANE]
    found = link_paths.unpack(words[at : at + 3], 2, 0)
    assert found.bulk == (0, 1) and found.mains == {0} and set(found.rates) == {0, 1}
    first = published(run, 2)["decodes"]
    assert first & 1 and first > 1
    publisher.set_rates(2, {0: 1e6, 1: 2e6}, connections[:2])
    assert published(run, 2)["decodes"] not in (0, first), "readers see that it has changed"
    publisher.publish(2, connections[2:])
    assert published(run, 2)["decodes"] == 1
    publisher.publish(2, [])
    assert published(run, 2) == NOTHING
