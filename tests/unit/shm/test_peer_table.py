"""The peer table: records and rows that never overlap, routes of which a reader never sees half."""

from __future__ import annotations

import secrets
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import parse
from pipeline.errors import LocalError
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.shm import layout, peer_table, segment
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import RECORD_WORDS, ROUTES_MAX
from pipeline.shm.peer_table import PeerTable, Route, RouteReader
from tests.harness.config_problems import problems
from tests.harness.factory import factory

CAPACITY, LANES, ROWS = 3, 2, 4
U64 = (1 << 64) - 1

Make = Callable[..., PeerTable]


@pytest.fixture
def make() -> Iterator[Make]:
    def create(capacity: int = CAPACITY, lanes: int = LANES, rows: int = ROWS, datagrams: bool = False) -> PeerTable:
        name = f"/tunnel@peerstest@{secrets.token_hex(4)}@peer-table"
        return peer_table.create(name, capacity, lanes, rows, datagrams)

    def dispose(made: PeerTable) -> None:
        segment.unlink(made.memory.name)
        made.close()

    with factory(create, dispose) as make_table:
        yield make_table


@pytest.fixture
def table(make: Make) -> PeerTable:
    return make()


def row(**changes: object) -> ConnectionStatus:
    return ConnectionStatus("established", "192.0.2.1:9000", 1, 7, 10, 20, 30, 40, 50, 0, 2)._replace(**changes)


def route(network: str, peer_handle: int) -> Route:
    parsed = ip_network(network)
    return parsed.network_address.packed, parsed.prefixlen, peer_handle


def peer_handle(peer: int, session_number: int = 1) -> int:
    return session_number << layout.PEER_INDEX_BITS | peer


def read(table: PeerTable) -> RouteTable:
    found = RouteTable()
    RouteReader(table).read_into(found)
    return found


# -- attaching


def test_in_a_new_table_no_peer_is_connected_and_no_packet_has_a_route(table: PeerTable) -> None:
    for peer in range(CAPACITY):
        assert (table.peer_handle(peer), table.rate(peer), table.established_count(peer)) == (0, 0, 0)
    assert [table.connections(lane) for lane in range(LANES)] == [[], []]
    assert read(table).lookup(bytes(4)) == read(table).lookup(bytes(16)) == NO_PEER


def test_an_attached_process_reads_the_words_of_the_others(table: PeerTable) -> None:
    attached = peer_table.attach(table.memory.name, CAPACITY, LANES, ROWS)
    attached.links[1][2 * RECORD_WORDS + layout.LINK_ESTABLISHED] = 3
    attached.write_status_row(1, 0, row())
    table.write_record(peer_handle(2), 1000)
    table.write_routes([route("10.0.0.0/24", peer_handle(2))])
    assert (table.established_count(2), table.connections(1)) == (3, [row()])
    assert (attached.peer_handle(2), attached.rate(2)) == (peer_handle(2), 1000)
    assert read(attached).lookup(b"\x0a\0\0\1") == peer_handle(2)
    attached.close()


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (layout.MAGIC_AT, "magic"),
        (layout.VERSION_AT, "layout version"),
        (layout.PEER_TABLE_CAPACITY_AT, "capacity"),
        (layout.PEER_TABLE_LANES_AT, "lanes"),
        (layout.PEER_TABLE_STATUS_ROWS_AT, "status rows"),
        (layout.PEER_TABLE_DATAGRAMS_AT, "dgram workers"),
    ],
)
def test_a_segment_whose_header_differs_is_refused_with_what_was_expected_and_found(
    table: PeerTable, at: int, what: str
) -> None:
    expected = table.memory.words[at // 8]
    table.memory.words[at // 8] = 99
    with pytest.raises(LocalError, match=f"{table.memory.name}: {what}: expected {expected}, found 99"):
        peer_table.attach(table.memory.name, CAPACITY, LANES, ROWS)


@pytest.mark.parametrize(
    "geometry", [(CAPACITY + 1, LANES, ROWS), (CAPACITY, LANES - 1, ROWS), (CAPACITY, LANES, ROWS + 1)]
)
def test_a_table_of_another_geometry_is_refused(table: PeerTable, geometry: tuple[int, int, int]) -> None:
    with pytest.raises(LocalError, match=r"expected \d+( bytes)?, (has|found) \d+"):
        peer_table.attach(table.memory.name, *geometry)


def test_a_segment_of_as_many_bytes_but_another_shape_is_refused(make: Make) -> None:
    made = make(capacity=4, lanes=1, rows=5)
    assert layout.peer_table_bytes(4, 1, 5) == layout.peer_table_bytes(2, 1, 10)
    with pytest.raises(LocalError, match="capacity: expected 2, found 4"):
        peer_table.attach(made.memory.name, 2, 1, 10)


# -- records


def views(table: PeerTable) -> list[memoryview]:
    tables = table.links, table.sent, table.numbers, table.transit_numbers, table.recoveries, table.paths, table.arrived
    of_datagrams = table.datagrams_in, table.datagrams_out, table.datagrams_fake_tcp
    return [table.records, *(view for views in (*tables, *of_datagrams) for view in views)]


@pytest.mark.parametrize("datagrams", [False, True])
@pytest.mark.parametrize("geometry", [(1, 1, 64), (CAPACITY, LANES, ROWS), (2, 3, 1)], ids=str)
def test_records_and_rows_share_no_byte_and_fill_the_segment(
    make: Make, geometry: tuple[int, int, int], datagrams: bool
) -> None:
    made = make(*geometry, datagrams)
    capacity, lanes, rows = geometry
    header = bytes(made.memory.view[: layout.RECORDS_AT])
    number = 0
    for view in views(made):
        assert len(view) == capacity * RECORD_WORDS
        for word in range(len(view)):
            number += 1
            assert view[word] == 0
            view[word] = number
    for lane in range(lanes):
        assert made.connections(lane) == []
        for index in range(rows):
            made.write_status_row(lane, index, row(serial=1000 * lane + index, address="x" * layout.STATUS_ROW_BYTES))
    assert [word for view in views(made) for word in view] == list(range(1, number + 1))
    for lane in range(lanes):
        assert [each.serial for each in made.connections(lane)] == [1000 * lane + index for index in range(rows)]
    assert bytes(made.memory.view[: layout.RECORDS_AT]) == header
    kinds = len(layout.LANE_RECORDS) + (len(layout.DATAGRAM_RECORDS) if datagrams else 0)
    tables, pages = 1 + kinds * lanes, layout.records_bytes(capacity) // layout.MAP_PAGE
    assert len(views(made)) == tables
    assert layout.records_bytes(capacity) - layout.MAP_PAGE < 64 * capacity <= layout.records_bytes(capacity)
    expected = layout.RECORDS_AT + layout.MAP_PAGE * pages * tables + lanes * layout.status_rows_bytes(rows)
    assert made.memory.size == expected


def test_words_of_different_writers_share_no_cache_line() -> None:
    assert RECORD_WORDS * 8 == layout.CACHE_LINE
    assert layout.RECORDS_AT % layout.CACHE_LINE == layout.STATUS_ROW_BYTES % layout.CACHE_LINE == 0
    assert layout.ROUTES_VERSION_AT // layout.CACHE_LINE > layout.PEER_TABLE_STATUS_ROWS_AT // layout.CACHE_LINE
    assert layout.ROUTES_AT + layout.ROUTE_BYTES * ROUTES_MAX <= layout.RECORDS_AT


def test_the_words_of_a_record_are_different_words_and_fit_it() -> None:
    for kinds in (
        ("PEER_HANDLE", "PEER_RATE", "PEER_BULK_RATE"),
        "LINK_",
        "SENT_",
        "NUMBER_",
        "TRANSIT_NUMBER_",
        "ARRIVED_",
        (
            *("DATAGRAM_PATH", "DATAGRAM_STATE", "DATAGRAM_RECEIVED_", "DATAGRAM_RECOVERED", "DATAGRAM_EXPIRED"),
            *("DATAGRAM_SINCE", "DATAGRAM_HOST"),
        ),
        (
            "DATAGRAM_SENT_",
            "DATAGRAM_DROPPED",
            "DATAGRAM_RATE",
            "DATAGRAM_ROUND_TRIP",
            "DATAGRAM_LOST_",
            "DATAGRAM_CUT",
            "DATAGRAM_BULK_",
        ),
    ):
        words = [value for name, value in vars(layout).items() if name.startswith(kinds)]
        assert sorted(words) == list(range(len(words)))
        assert 0 < len(words) <= RECORD_WORDS


def test_the_record_of_a_peer_holds_its_handle_and_its_rate_and_no_other_peers(table: PeerTable) -> None:
    table.write_record(peer_handle(1, 7), 125_000)
    assert [(table.peer_handle(peer), table.rate(peer)) for peer in range(CAPACITY)] == [
        (0, 0),
        (peer_handle(1, 7), 125_000),
        (0, 0),
    ]
    table.write_record(peer_handle(1, 8), 0)
    assert (table.peer_handle(1), table.rate(1)) == (peer_handle(1, 8), 0)


@pytest.mark.parametrize("rate", [None, 0, 5_000_000])
def test_the_record_of_a_peer_holds_its_rate_of_bulk_if_it_has_its_own(table: PeerTable, rate: int | None) -> None:
    table.write_record(peer_handle(1, 7), 125_000, rate)
    assert [table.bulk_rate(peer) for peer in range(CAPACITY)] == [None, rate, None]
    table.write_record(peer_handle(1, 8), 125_000)
    assert table.bulk_rate(1) is None


def test_bytes_that_have_arrived_are_summed_over_the_lanes_for_each_peer(table: PeerTable) -> None:
    for lane in range(2):
        for word in range(4):
            table.arrived[lane][RECORD_WORDS + word] = 10 ** (word + lane)
    assert table.arrived_bytes(1) == [11, 110, 1100, 11000]
    assert table.arrived_bytes(0) == table.arrived_bytes(2) == [0] * 4


def test_what_datagrams_carry_counts_wherever_that_of_connections_does(make: Make) -> None:
    table = make(datagrams=True)
    sums = (
        (table.sent_bytes, table.sent, layout.SENT_BYTES, table.datagrams_out, layout.DATAGRAM_SENT_BYTES),
        (table.dropped, table.sent, layout.SENT_DROPPED, table.datagrams_out, layout.DATAGRAM_DROPPED),
        (table.received_bytes, table.links, layout.LINK_RECEIVED_BYTES,
         table.datagrams_in, layout.DATAGRAM_RECEIVED_BYTES),
        (table.recovered, table.recoveries, layout.RECOVERED_BLOCKS, table.datagrams_in, layout.DATAGRAM_RECOVERED),
        (table.expired, table.recoveries, layout.EXPIRED_BLOCKS, table.datagrams_in, layout.DATAGRAM_EXPIRED),
    )  # fmt: skip
    for number, (_, words, word, of_datagrams, datagram_word) in enumerate(sums, 1):
        for lane in range(LANES):
            words[lane][RECORD_WORDS + word] = number * 10**lane
            of_datagrams[lane][RECORD_WORDS + datagram_word] = number * 100 * 10**lane
    assert [total(1) for total, *_ in sums] == [number * 1111 for number in range(1, len(sums) + 1)]
    assert [total(peer) for total, *_ in sums for peer in (0, 2)] == [0] * 2 * len(sums)


def test_a_table_with_dgram_workers_is_another_one_than_a_table_without(make: Make) -> None:
    for datagrams in (False, True):
        made = make(datagrams=datagrams)
        with pytest.raises(LocalError, match="expected"):
            peer_table.attach(made.memory.name, CAPACITY, LANES, ROWS, datagrams=not datagrams)
        attached = peer_table.attach(made.memory.name, CAPACITY, LANES, ROWS, datagrams=datagrams)
        for records in (attached.datagrams_in, attached.datagrams_out, attached.datagrams_fake_tcp):
            assert len(records) == (LANES if datagrams else 0)
        attached.close()


def test_a_dgram_worker_writes_the_datagram_records_of_its_lane_alone(make: Make) -> None:
    made = make(datagrams=True)
    writer = "dgram", 1, layout.DUTIES
    attached = peer_table.attach(made.memory.name, CAPACITY, LANES, ROWS, writer, datagrams=True)
    written = *attached.datagrams_in, *attached.datagrams_out, *attached.datagrams_fake_tcp
    assert [view.readonly for view in written] == [True, False] * 3
    assert all(view.readonly for view in (*attached.links, *attached.sent, attached.records))
    attached.datagrams_in[1][layout.DATAGRAM_PATH] = peer_handle(0)
    assert made.datagrams_in[1][layout.DATAGRAM_PATH] == peer_handle(0)
    attached.close()


def test_the_rate_of_all_peers_is_in_the_table_and_in_no_record(table: PeerTable) -> None:
    assert table.total_rate() == 0
    table.write_total_rate(5_000_000)
    assert table.total_rate() == 5_000_000
    assert [table.rate(peer) for peer in range(CAPACITY)] == [0] * CAPACITY


def test_a_peer_handle_has_room_for_every_index_that_a_configuration_can_ask_for() -> None:
    most = layout.PEER_INDEX_MASK + 1
    assert parse({"mode": "server", "tunnel_addr": "10.0.0.1/16", "max_clients": most}).max_clients == most
    assert any(problem.path == "max_clients" for problem in problems({"mode": "server", "max_clients": most + 1}))
    assert layout.FIRST_PEER_HANDLE == most == 1 << layout.PEER_INDEX_BITS


def test_the_connections_of_a_peer_are_counted_over_all_lanes(table: PeerTable) -> None:
    for lane, count in enumerate((2, 5)):
        table.links[lane][1 * RECORD_WORDS + layout.LINK_ESTABLISHED] = count
    assert [table.established_count(peer) for peer in range(CAPACITY)] == [0, 7, 0]


# -- rows


def test_rows_are_read_back_in_order_and_cleared_ones_are_gone(table: PeerTable) -> None:
    table.write_status_row(1, 0, row(serial=1))
    table.write_status_row(1, 2, row(serial=2, state="handshake", address="[2001:db8::1]:9000"))
    table.write_status_row(1, ROWS - 1, row(serial=3, state="handshake"))
    assert [(r.serial, r.state) for r in table.connections(1)] == [
        (1, "established"),
        (2, "handshake"),
        (3, "handshake"),
    ]
    assert table.connections(0) == []
    table.write_status_row(1, 0, None)
    assert [r.serial for r in table.connections(1)] == [2, 3]


@given(
    st.builds(
        ConnectionStatus,
        st.sampled_from(["handshake", "established"]),
        st.from_regex(r"[0-9a-f.:\[\]]{0,53}", fullmatch=True),
        st.integers(0, 65535),
        st.integers(0, 2**32 - 1),
        st.integers(0, U64),
        st.integers(0, U64),
        st.integers(0, U64),
        st.integers(0, U64),
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
        st.integers(0, 65535),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
        st.from_regex(r"[a-z0-9_-]{0,11}", fullmatch=True),
    )
)
def test_any_row_is_read_as_it_was_written(original: ConnectionStatus) -> None:
    assert len(original.pack()) <= layout.STATUS_ROW_BYTES
    assert ConnectionStatus.unpack(original.pack().ljust(layout.STATUS_ROW_BYTES, b"\0")) == original


def test_a_long_address_leaves_less_room_for_the_congestion_control() -> None:
    long = row(address="f" * 62, congestion="highspeed")
    data = long.pack()
    assert len(data) == layout.STATUS_ROW_BYTES
    assert ConnectionStatus.unpack(data) == long._replace(congestion="hi")


@given(st.binary(min_size=layout.STATUS_ROW_BYTES, max_size=layout.STATUS_ROW_BYTES))
def test_a_reader_bears_any_bytes_in_a_row(data: bytes) -> None:
    found = ConnectionStatus.unpack(data)
    assert found is None or len(found.address) <= layout.STATUS_ROW_BYTES


def test_an_address_that_is_too_long_is_cut_and_the_next_row_is_whole(table: PeerTable) -> None:
    table.write_status_row(0, 1, row(serial=2))
    table.write_status_row(0, 0, row(serial=1, address="é" * 500))
    assert [r.serial for r in table.connections(0)] == [1, 2]
    assert table.connections(0)[0].address.startswith("é" * 20)


def test_a_row_has_its_fields_where_the_document_says(table: PeerTable) -> None:
    table.write_status_row(0, 1, row(address="[::1]:9", traffic_class=1))
    at = layout.status_rows_at(CAPACITY, LANES, ROWS, 0) + layout.STATUS_ROW_BYTES
    data = bytes(table.memory.view[at : at + layout.STATUS_ROW_BYTES])
    assert data == (struct.pack("<BBHI4QIBBH", 2, 7, 1, 7, 10, 20, 30, 40, 50, 1, 0, 2) + bytes(16) + b"[::1]:9").ljust(
        layout.STATUS_ROW_BYTES, b"\0"
    )


# -- routes

ANN, BOB, CYD = peer_handle(0, 5), peer_handle(1, 1 << 40), peer_handle(2)
ROUTES = [
    route("10.0.0.0/24", ANN),
    route("10.0.0.7/32", BOB),
    route("10.0.0.9/32", NO_PEER),
    route("fd00::/64", CYD),
    route("::/0", ANN),
]


def test_routes_are_read_as_they_were_written(table: PeerTable) -> None:
    table.write_routes(ROUTES)
    found = read(table)
    expected = RouteTable()
    expected.replace(ROUTES)
    for address in ("0a000001", "0a000007", "0a000009", "0b000001", "fd" + "00" * 15, "fe" + "00" * 15):
        assert found.lookup(bytes.fromhex(address)) == expected.lookup(bytes.fromhex(address))
    assert found.lookup(b"\x0a\0\0\x07") == BOB
    assert found.lookup(b"\x0a\0\0\x09") == NO_PEER


def test_a_route_has_its_fields_where_the_document_says(table: PeerTable) -> None:
    table.write_routes([route("10.1.0.0/16", NO_PEER), route("2001:db8::/32", CYD)])
    assert bytes(table.memory.view[layout.ROUTES_AT : layout.ROUTES_AT + 64]) == (
        b"\x04\x10"
        + bytes(6)
        + b"\xff" * 8
        + b"\x0a\1\0\0"
        + bytes(12)
        + b"\x06\x20"
        + bytes(6)
        + b"\x02\x10"
        + bytes(6)
        + b"\x20\1\x0d\xb8"
        + bytes(12)
    )
    assert table.memory.words[layout.ROUTES_COUNT_AT // 8] == 2


def test_fewer_routes_replace_more(table: PeerTable) -> None:
    table.write_routes(ROUTES)
    table.write_routes(ROUTES[:1])
    assert read(table).lookup(b"\x0a\0\0\x07") == ANN
    assert read(table).lookup(bytes(16)) == NO_PEER
    table.write_routes([])
    assert read(table).lookup(b"\x0a\0\0\x07") == NO_PEER


def test_a_route_to_everything_in_both_families_is_known_as_such(table: PeerTable) -> None:
    table.write_routes([route("0.0.0.0/0", BOB), route("::/0", BOB)])
    assert read(table).only == BOB


def test_as_many_routes_as_fit_are_written_and_one_more_changes_nothing(table: PeerTable) -> None:
    many = [(number.to_bytes(4), 32, number % CAPACITY) for number in range(ROUTES_MAX + 1)]
    table.write_record(ANN, U64)
    table.write_routes(many[:-1])
    reader, found = RouteReader(table), RouteTable()
    reader.read_into(found)
    assert [found.lookup(address) for address, _, _ in many] == [peer for _, _, peer in many[:-1]] + [NO_PEER]
    assert (table.peer_handle(0), table.rate(0)) == (ANN, U64)  # what follows the routes
    with pytest.raises(LocalError, match=f"at most {ROUTES_MAX} are possible, there are {ROUTES_MAX + 1}: join "):
        table.write_routes(many)
    assert not reader.has_changed()


def test_a_reader_learns_of_a_change_and_reads_it_once(table: PeerTable) -> None:
    reader, found = RouteReader(table), RouteTable()
    assert reader.has_changed()
    reader.read_into(found)
    assert not reader.has_changed()
    table.write_routes(ROUTES)
    assert reader.has_changed()
    reader.read_into(found)
    assert not reader.has_changed()
    assert found.lookup(b"\x0a\0\0\x07") == BOB


def test_while_routes_are_being_written_a_reader_keeps_those_that_it_has(table: PeerTable) -> None:
    reader, found = RouteReader(table), RouteTable()
    table.write_routes(ROUTES)
    reader.read_into(found)
    table.memory.words[layout.ROUTES_VERSION_AT // 8] += 1
    table.memory.view[layout.ROUTES_AT : layout.ROUTES_AT + 64] = bytes(64)
    table.memory.words[layout.ROUTES_COUNT_AT // 8] = 1
    reader.read_into(found)
    assert reader.has_changed()
    assert found.lookup(b"\x0a\0\0\x07") == BOB


def test_a_count_that_is_no_count_is_read_no_further_than_there_are_routes(table: PeerTable) -> None:
    table.write_routes(ROUTES)
    table.memory.words[layout.ROUTES_COUNT_AT // 8] = U64
    assert read(table).lookup(b"\x0a\0\0\x07") == BOB


WRITER = """
import select, sys
from pipeline.shm import peer_table
table = peer_table.attach(sys.argv[1], 3, 2, 4)
tables = [[(number.to_bytes(4), 32, peer) for number in range(size)] for peer, size in enumerate((50, 400, 170))]
written = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for each in tables:
        table.write_routes(each)
        written += 1
        for _ in range(997 * written % 5000):  # at another point of its work at each look of the reader
            pass
table.close()
"""
LOOKS = 40
"""Tables that the reader has to meet in turn."""


def test_another_process_never_sees_half_a_table(table: PeerTable) -> None:
    sizes = {0: 50, 1: 400, 2: 170, NO_PEER: 0}
    reader, found = RouteReader(table), RouteTable()
    seen = [NO_PEER]
    with subprocess.Popen([sys.executable, "-c", WRITER, table.memory.name], stdin=subprocess.PIPE) as writer:
        while len(seen) < LOOKS or set(seen) != set(sizes):
            assert writer.poll() is None
            if not reader.has_changed():
                continue
            reader.read_into(found)
            owners = [found.lookup(number.to_bytes(4)) for number in range(400)]
            owner = owners[0]
            assert owners == [owner] * sizes[owner] + [NO_PEER] * (400 - sizes[owner])
            if owner != seen[-1]:
                seen.append(owner)
        assert writer.stdin is not None
        writer.stdin.close()
    assert writer.returncode == 0


def test_closing_unmaps_the_memory(table: PeerTable) -> None:
    attached = peer_table.attach(table.memory.name, CAPACITY, LANES, ROWS)
    attached.close()
    with pytest.raises(ValueError, match="released"):
        attached.peer_handle(0)


def test_blocks_that_could_not_be_opened_count_for_their_connection_whatever_other_tun_workers_have_noted(
    table: PeerTable,
) -> None:
    def note(lane: int, tcp_lane: int, serial: int, count: int) -> None:
        table.transit_numbers[lane][RECORD_WORDS + layout.TRANSIT_UNOPENED] = (tcp_lane << 40 | serial) << 16 | count

    assert table.unopened(1, 0, 7) == 0
    note(0, 0, 7, 64)  # it has ended for that, and the word stays
    note(1, 0, 9, 5)
    assert [table.unopened(1, 0, serial) for serial in (7, 8, 9)] == [64, 0, 5]
    assert table.unopened(1, 1, 7) == table.unopened(0, 0, 7) == 0
    note(0, 0, 9, 3)
    assert table.unopened(1, 0, 9) == 5
