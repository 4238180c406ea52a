"""What a tcp worker tells of its connections: for each peer what they accept together, and a row for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.shm.layout import (
    FIRST_PEER_HANDLE,
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_PARITY,
    LINK_RECEIVED_BYTES,
)
from pipeline.wire import framing
from tests.harness.run import OFFLOADS, Run
from workers.tcp.link_publisher import LinkPublisher

LANE = 1


@pytest.fixture
def run() -> Iterator[Run]:
    made = Run()
    yield made
    made.close()


@pytest.fixture
def carrier(run: Run) -> LinkPublisher:
    return LinkPublisher(run.attach(f"tcp-{LANE}"))


def said(run: Run, peer: int, lane: int = LANE) -> dict[str, int]:
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


def test_without_connections_there_is_nothing_to_carry_with(run: Run, carrier: LinkPublisher) -> None:
    for peer in range(4):
        assert said(run, peer) == NOTHING


def test_connections_accept_together_what_each_and_this_end_accepts(run: Run, carrier: LinkPublisher) -> None:
    carrier.write(2, [run.connection(offloads=0b1111), run.connection(offloads=0b1110, traffic_class=framing.LIGHT)])
    assert said(run, 2) == {"established": 2, "light": 1, "offloads": 0b110, "decodes": 1}


def test_shards_go_to_who_takes_them_on_every_connection(run: Run, carrier: LinkPublisher) -> None:
    carrier.write(0, [run.connection(), run.connection(decodes=False), run.connection()])
    assert said(run, 0)["decodes"] == 0


def test_what_is_said_of_one_peer_is_said_of_no_other_and_by_no_other_worker(run: Run, carrier: LinkPublisher) -> None:
    carrier.write(2, [run.connection(2, offloads=0)])
    carrier.call_for(2, 3)
    carrier.received(2, 1000)
    for peer in (0, 1, 3):
        assert said(run, peer) == NOTHING
        assert run.word(LANE, peer, LINK_PARITY) == run.word(LANE, peer, LINK_RECEIVED_BYTES) == 0
    for lane in (0, 2):
        assert not any(run.memory.peers.links[lane])


def test_the_last_connection_takes_all_with_it(run: Run, carrier: LinkPublisher) -> None:
    carrier.write(2, [run.connection(offloads=0, traffic_class=framing.LIGHT)])
    carrier.write(2, [])
    assert said(run, 2) == NOTHING


def test_parity_is_called_for_and_received_bytes_are_added_up(run: Run, carrier: LinkPublisher) -> None:
    carrier.call_for(1, 3)
    carrier.call_for(1, 2)
    carrier.received(1, 10)
    carrier.received(1, 5)
    assert (run.word(LANE, 1, LINK_PARITY), run.word(LANE, 1, LINK_RECEIVED_BYTES)) == (2, 15)


def test_a_successor_clears_what_its_predecessor_said_but_what_was_counted(run: Run, carrier: LinkPublisher) -> None:
    carrier.write(3, [run.connection(3, offloads=0)])
    carrier.call_for(3, 3)
    carrier.received(3, 77)
    connection = run.connection(3)
    connection.row = carrier.take_row()
    carrier.write_rows([connection])
    run.say(0, 3, established=5)
    LinkPublisher(run.attach(f"tcp-{LANE}"))
    assert said(run, 3) == NOTHING
    assert (run.word(LANE, 3, LINK_PARITY), run.word(LANE, 3, LINK_RECEIVED_BYTES)) == (0, 77)
    assert run.memory.peers.connections(LANE) == []
    assert run.memory.peers.count(3) == 5


def test_a_connection_is_current_as_long_as_its_seat_is(run: Run, carrier: LinkPublisher) -> None:
    connection, other = run.connection(2), run.connection(1)
    run.memory.peers.write_record(FIRST_PEER_HANDLE | 2, 0)
    assert carrier.current(connection)
    assert not carrier.current(other)
    run.memory.peers.write_record(FIRST_PEER_HANDLE | 1, 0)
    assert carrier.current(connection) and carrier.current(other)
    run.memory.peers.write_record(2 * FIRST_PEER_HANDLE | 2, 0)
    assert not carrier.current(connection)
    assert carrier.current(other)


# -- rows


def test_each_row_is_taken_once_and_then_there_is_none(run: Run, carrier: LinkPublisher) -> None:
    rows = [carrier.take_row() for _ in range(run.plan.peers.rows)]
    assert sorted(rows) == list(range(run.plan.peers.rows))
    assert carrier.take_row() == -1
    carrier.give_back(5)
    assert (carrier.take_row(), carrier.take_row()) == (5, -1)


def test_a_row_says_whose_connection_it_is_and_from_where(run: Run, carrier: LinkPublisher) -> None:
    connection = run.connection(3, traffic_class=framing.LIGHT, address=("2001:db8::1", 40000, 0, 0))
    connection.row, connection.stamped_lane, connection.sent_bytes, connection.received_bytes = (
        carrier.take_row(),
        2,
        10,
        20,
    )
    carrier.write_rows([connection])
    (row,) = run.memory.peers.connections(LANE)
    assert (row.peer, row.address, row.lane, row.traffic_class) == (3, "[2001:db8::1]:40000", 2, framing.LIGHT)
    assert (row.state, row.serial, row.sent_bytes, row.received_bytes) == ("established", connection.serial, 10, 20)
    assert [run.memory.peers.connections(lane) for lane in (0, 2)] == [[], []]


def test_a_row_that_is_given_back_is_empty(run: Run, carrier: LinkPublisher) -> None:
    connections = [run.connection(peer) for peer in range(2)]
    for connection in connections:
        connection.row = carrier.take_row()
    carrier.write_rows(connections)
    carrier.give_back(connections[0].row)
    assert [row.peer for row in run.memory.peers.connections(LANE)] == [1]
