"""The peer table: which peers are connected, over what, and which packets are theirs.

    supervisor    writes the routes, the rate of all peers, and a record for each peer: its handle, its rates
    tcp workers   write records for each peer: the state of its link, what was sent; and a status row a connection
    tun workers   write records for each peer: the next block number of each of its streams
    fec workers   write records for each peer: blocks that were recovered or given up
    dgram workers write records for each peer: whether a path is open; what was sent and received in datagrams
    all           read

A peer has an index, 0 to capacity - 1; a client has one peer, the server. One view holds the records of all peers: word
w of peer p is records[p * RECORD_WORDS + w]. Offsets: `layout`.

A peer handle is an index together with the session that uses it. Another peer under the index, or another session of
the peer, has another handle with equal lower PEER_INDEX_BITS. Slots, routes and connections carry handles, so nothing
that was meant for one session reaches the next.

The version of the routes is odd while they are written. A reader compares it before and after; if it has changed, what
was read is thrown away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.packet.route_table import RouteTable
from pipeline.shm import layout, link_requests, segment
from pipeline.shm.connection_status import ConnectionColumns, ConnectionStatus, read_columns, rows_by_peer
from pipeline.shm.layout import (
    DATAGRAM_RECORDS,
    LANE_RECORDS,
    LINK_ESTABLISHED,
    PEER_INDEX_MASK,
    RECORD_WORDS,
    ROUTES_MAX,
)
from pipeline.shm.memory_order import fence

_ROUTE = struct.Struct("<BB6xq16s")
_VERSION = layout.ROUTES_VERSION_AT // 8
_COUNT = layout.ROUTES_COUNT_AT // 8
_TOTAL_RATE = layout.TOTAL_RATE_AT // 8

WRITTEN_BY = {
    ("tcp", "outbound"): ("sent",),
    ("tcp", "inbound"): ("link", "path"),
    ("tun", "outbound"): ("number",),
    ("tun", "inbound"): ("transit", "arrived"),
    ("fec", "outbound"): (),
    ("fec", "inbound"): ("recovered",),
    ("dgram", "outbound"): ("datagram_out",),
    ("dgram", "inbound"): ("datagram_in", "datagram_fake_tcp"),
}
"""Records of its lane that a duty writes, by the kind of its worker."""

CLASSES = ("voice", "normal_light", "normal_bulk", "bulk")
"""Of packets from TUN: the class of each, and whether its flow is light. Without rules all are normal."""

ARRIVED_CLASSES = ("bulk", "light")
"""Of packets from peers: the traffic class that the other end has given them. More of its rules is not told."""

DATAGRAM_COUNTS = {
    "sent_segments": ("datagram_out", layout.DATAGRAM_SENT_SEGMENTS),
    "lost_segments": ("datagram_out", layout.DATAGRAM_LOST_SEGMENTS),
    "sent_bytes": ("datagram_out", layout.DATAGRAM_SENT_BYTES),
    "received_bytes": ("datagram_in", layout.DATAGRAM_RECEIVED_BYTES),
    "recovered_blocks": ("datagram_in", layout.DATAGRAM_RECOVERED),
}
"""Counts of datagrams that observers show: the records and the word of each."""

Writer = tuple[str, int, Sequence[str]]
"""A worker: its kind, its lane, its duties."""

Route = tuple[bytes, int, int]
"""Address of 4 or 16 bytes, prefix length, peer handle (NO_PEER for a prefix that belongs to none)."""

assert _ROUTE.size == layout.ROUTE_BYTES


class Geometry(NamedTuple):
    """The numbers that the offsets in a peer table follow from."""

    capacity: int
    lanes: int
    status_rows: int
    datagrams: bool = False  # there are dgram workers

    @property
    def size(self) -> int:
        return layout.peer_table_bytes(*self)

    def tables(self) -> list[tuple[str, int]]:
        """Each kind of records, and in how many lanes they are."""
        lanes_of_datagrams = self.lanes if self.datagrams else 0
        return [(kind, self.lanes) for kind in LANE_RECORDS] + [(kind, lanes_of_datagrams) for kind in DATAGRAM_RECORDS]

    def records_at(self, lane: int, kind: str) -> int:
        """Offset of a lane's records of any kind."""
        if kind in DATAGRAM_RECORDS:
            return layout.datagram_records_at(self.capacity, self.lanes, self.status_rows, lane, kind)
        return layout.records_at(self.capacity, lane, kind)

    def status_rows_of(self, lane: int) -> tuple[int, int]:
        """Offset and bytes of a tcp worker's status rows."""
        at = layout.status_rows_at(self.capacity, self.lanes, self.status_rows, lane)
        return at, layout.STATUS_ROW_BYTES * self.status_rows

    @property
    def fields(self) -> list[segment.Field]:
        return [
            segment.Field(layout.PEER_TABLE_CAPACITY_AT, self.capacity, "capacity"),
            segment.Field(layout.PEER_TABLE_LANES_AT, self.lanes, "lanes"),
            segment.Field(layout.PEER_TABLE_STATUS_ROWS_AT, self.status_rows, "status rows"),
            segment.Field(layout.PEER_TABLE_DATAGRAMS_AT, int(self.datagrams), "dgram workers"),
        ]


class PeerTable:
    """An attached peer table. `datagrams_in`, `datagrams_out`, `datagrams_fake_tcp` are empty if there are no dgram
    workers."""

    def __init__(self, memory: segment.Segment, geometry: Geometry) -> None:
        self.memory = memory
        self.capacity, self.status_rows = geometry.capacity, geometry.status_rows
        self._words = memory.words
        self.records = self._cut(layout.RECORDS_AT)
        self._tables = {
            kind: [self._cut(geometry.records_at(lane, kind)) for lane in range(lanes)]
            for kind, lanes in geometry.tables()
        }
        self.links, self.sent, self.numbers, self.transit_numbers, self.recoveries, self.paths, self.arrived = (
            self._tables[kind] for kind in LANE_RECORDS
        )
        self.datagrams_in, self.datagrams_out, self.datagrams_fake_tcp = (
            self._tables[kind] for kind in DATAGRAM_RECORDS
        )
        self._rows = [memory.cut(*geometry.status_rows_of(lane)) for lane in range(geometry.lanes)]

    def _cut(self, at: int) -> memoryview:
        return self.memory.cut_words(at, RECORD_WORDS * self.capacity)

    def peer_handle(self, peer: int) -> int:
        """The current handle of an index; connections with an earlier one end."""
        return self.records[peer * RECORD_WORDS + layout.PEER_HANDLE]

    def rate(self, peer: int) -> int:
        """Bytes a second, each way; 0: no limit."""
        return self.records[peer * RECORD_WORDS + layout.PEER_RATE]

    def bulk_rate(self, peer: int) -> int | None:
        """Bytes a second of the class bulk for this peer, 0: no limit; None: as for all peers."""
        word = self.records[peer * RECORD_WORDS + layout.PEER_BULK_RATE]
        return word - 1 if word else None

    def total_rate(self) -> int:
        """Bytes a second of all peers together, each way; 0: no limit."""
        return self._words[_TOTAL_RATE]

    def sent_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that the tcp workers of other lanes have sent to this peer."""
        at = peer * RECORD_WORDS + layout.SENT_BYTES
        return sum(words[at] for other, words in enumerate(self.sent) if other != lane)

    def received_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that count against this peer's rate, received by the tcp workers of other lanes."""
        at = peer * RECORD_WORDS + layout.LINK_COUNTED_BYTES
        return sum(words[at] for other, words in enumerate(self.links) if other != lane)

    def charged(self, peer: int) -> int:
        """The late charges of the tun workers to this peer (`workers.tun.late_charges`)."""
        at = peer * RECORD_WORDS + layout.TRANSIT_CHARGE
        return sum(words[at] for words in self.transit_numbers)

    def packets_for(self, peer: int) -> int:
        """Packets of bulk from TUN for this peer."""
        at = peer * RECORD_WORDS + layout.NUMBER_PACKETS
        return sum(words[at] for words in self.numbers)

    def spacing_ns(self, peer: int) -> int:
        """The time between two copies of a light packet for this peer, or two runs of a block; 0: none."""
        at = peer * RECORD_WORDS + layout.LINK_REQUESTS
        return 1000 * max(words[at] >> link_requests.SPACING_SHIFT for words in self.links)

    def copied_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes of copies for this peer that the tun workers of other lanes have made."""
        at = peer * RECORD_WORDS + layout.NUMBER_COPIED
        return sum(words[at] for other, words in enumerate(self.numbers) if other != lane)

    def bulk_class_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes of the class bulk for this peer that the tun workers of other lanes have put into blocks."""
        at = peer * RECORD_WORDS + layout.NUMBER_BULK_CLASS
        return sum(words[at] for other, words in enumerate(self.numbers) if other != lane)

    def class_bytes(self, peer: int) -> list[int]:
        """Bytes of packets from TUN for every peer that has had this index, in the order of CLASSES."""
        first = peer * RECORD_WORDS + layout.NUMBER_LIGHT_BYTES
        of_lanes = (words[first : first + len(CLASSES)] for words in self.numbers)
        light, bulk, voice_class, bulk_class = map(sum, zip(*of_lanes, strict=True))
        return [voice_class, light - voice_class, bulk - bulk_class, bulk_class]

    def arrived_bytes(self, peer: int) -> list[int]:
        """Bytes of packets from every peer that has had this index, in the order of ARRIVED_CLASSES; and likewise of
        those of other peers for it."""
        first = peer * RECORD_WORDS
        of_lanes = (words[first : first + 2 * len(ARRIVED_CLASSES)] for words in self.arrived)
        return list(map(sum, zip(*of_lanes, strict=True)))

    def transit(self) -> list[tuple[list[int], list[int]]]:
        """Of each lane, by peer index: bytes of packets of other peers for it, and the handle that sent the latest."""
        columns = []
        for words in self.arrived:
            bulk, light, senders = (
                words[word::RECORD_WORDS].tolist()
                for word in (
                    layout.ARRIVED_TRANSIT_BULK_BYTES, layout.ARRIVED_TRANSIT_LIGHT_BYTES, layout.ARRIVED_TRANSIT_FROM,
                )
            )  # fmt: skip
            columns.append((list(map(sum, zip(bulk, light, strict=True))), senders))
        return columns

    def established_count(self, peer: int) -> int:
        """Established connections of a peer."""
        return sum(words[peer * RECORD_WORDS + layout.LINK_ESTABLISHED] for words in self.links)

    def established_counts(self) -> list[int]:
        """Established connections of every peer, by its index."""
        counts = (words[LINK_ESTABLISHED::RECORD_WORDS].tolist() for words in self.links)
        return [sum(of_lanes) for of_lanes in zip(*counts, strict=True)]

    def handles(self) -> list[int]:
        """The current handle of every index."""
        return self.records[layout.PEER_HANDLE :: RECORD_WORDS].tolist()

    def sent_bytes(self, peer: int) -> int:
        """Bytes sent to every peer that has had this index, over TCP and in datagrams."""
        return _sum_of(peer, (self.sent, layout.SENT_BYTES), (self.datagrams_out, layout.DATAGRAM_SENT_BYTES))

    def received_bytes(self, peer: int) -> int:
        """Bytes received from every peer that has had this index, over TCP and in datagrams."""
        of_datagrams = self.datagrams_in, layout.DATAGRAM_RECEIVED_BYTES
        return _sum_of(peer, (self.links, layout.LINK_RECEIVED_BYTES), of_datagrams)

    def dropped(self, peer: int) -> int:
        """Runs and blocks dropped for every peer that has had this index."""
        return _sum_of(peer, (self.sent, layout.SENT_DROPPED), (self.datagrams_out, layout.DATAGRAM_DROPPED))

    def recovered(self, peer: int) -> int:
        """Blocks recovered with parity, from every peer that has had this index."""
        of_datagrams = self.datagrams_in, layout.DATAGRAM_RECOVERED
        return _sum_of(peer, (self.recoveries, layout.RECOVERED_BLOCKS), of_datagrams)

    def expired(self, peer: int) -> int:
        """Blocks given up, from every peer that has had this index."""
        of_datagrams = self.datagrams_in, layout.DATAGRAM_EXPIRED
        return _sum_of(peer, (self.recoveries, layout.EXPIRED_BLOCKS), of_datagrams)

    def datagram_counts(self, peer: int) -> list[int]:
        """Of datagrams with every peer that has had this index, in the order of DATAGRAM_COUNTS."""
        at = peer * RECORD_WORDS
        tables = {"datagram_in": self.datagrams_in, "datagram_out": self.datagrams_out}
        return [sum(words[at + word] for words in tables[kind]) for kind, word in DATAGRAM_COUNTS.values()]

    def unopened(self, peer: int, lane: int, serial: int) -> int:
        """How many blocks in a row a tun worker could not open, at most, that a connection of this tcp worker has
        brought."""
        at, source = peer * RECORD_WORDS + layout.TRANSIT_UNOPENED, lane << 40 | serial & (1 << 40) - 1
        found = (divmod(words[at], 1 << 16) for words in self.transit_numbers)
        return max((count for each, count in found if each == source), default=0)

    # -- the supervisor's

    def write_record(self, peer_handle: int, rate: int, bulk_rate: int | None = None, offloads: int = 0) -> None:
        """Make this the current handle of its index. `offloads`: that a partner accepts."""
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
        self.records[at + layout.PEER_BULK_RATE] = 0 if bulk_rate is None else bulk_rate + 1
        self.records[at + layout.PEER_RATE] = rate
        self.records[at + layout.PEER_OFFLOADS] = offloads
        self.records[at + layout.PEER_HANDLE] = peer_handle

    def write_total_rate(self, rate: int) -> None:
        self._words[_TOTAL_RATE] = rate

    def write_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routes. LocalError if there are more than ROUTES_MAX."""
        if len(routes) > ROUTES_MAX:
            raise LocalError(
                f"routes to peers: at most {ROUTES_MAX} are possible, there are {len(routes)}: "
                f"join prefixes in `allowed`, or lower max_clients"
            )
        self._words[_VERSION] += 1
        fence()
        for index, (address, length, peer_handle) in enumerate(routes):
            _ROUTE.pack_into(
                self.memory.view,
                layout.ROUTES_AT + index * _ROUTE.size,
                4 if len(address) == 4 else 6,
                length,
                peer_handle,
                address,
            )
        self._words[_COUNT] = len(routes)
        fence()
        self._words[_VERSION] += 1

    # -- a worker's

    def written_by(self, kind: str, lane: int, duties: Sequence[str]) -> list[memoryview]:
        """The records that a worker of this kind and lane, with these duties, writes."""
        return [self._tables[records][lane] for duty in duties for records in WRITTEN_BY[kind, duty]]

    # -- a tcp worker's

    def write_status_row(self, lane: int, index: int, row: ConnectionStatus | None) -> None:
        """Publish a connection, or clear its row. A reader may see a half-written row; it only shows it."""
        at = index * layout.STATUS_ROW_BYTES
        data = row.pack() if row else b""
        self._rows[lane][at : at + layout.STATUS_ROW_BYTES] = data.ljust(layout.STATUS_ROW_BYTES, b"\0")

    def connections(self, lane: int) -> list[ConnectionStatus]:
        """The connections that a tcp worker has published."""
        rows = (self._status_row(lane, number) for number in range(self.status_rows))
        return [row for row in rows if row is not None]

    def connection_columns(self, lane: int) -> ConnectionColumns:
        """The numbers of the established connections that a tcp worker has published."""
        return read_columns(self._rows[lane])

    def connections_by_peer(self, lanes: Sequence[int]) -> Callable[[int], list[ConnectionStatus]]:
        """A function that reads the established connections of a peer with these tcp workers, by the peer's index."""
        places = [(lane, rows_by_peer(self._rows[lane])) for lane in lanes]

        def connections_of(peer: int) -> list[ConnectionStatus]:
            rows = (self._status_row(lane, number) for lane, found in places for number in found.get(peer, ()))
            return [row for row in rows if row is not None and row.peer == peer]

        return connections_of

    def _status_row(self, lane: int, number: int) -> ConnectionStatus | None:
        at = number * layout.STATUS_ROW_BYTES
        return ConnectionStatus.unpack(bytes(self._rows[lane][at : at + layout.STATUS_ROW_BYTES]))

    def close(self) -> None:
        for view in (self.records, *chain.from_iterable(self._tables.values()), *self._rows):
            view.release()
        self.memory.close()


def _sum_of(peer: int, *words: tuple[list[memoryview], int]) -> int:
    """The sum of these words of a peer, each over all lanes."""
    at = peer * RECORD_WORDS
    return sum(records[at + word] for of_lanes, word in words for records in of_lanes)


class RouteReader:
    """The routes as a duty of a tun worker follows them."""

    def __init__(self, peers: PeerTable) -> None:
        self._view = peers.memory.view
        self._words = peers.memory.words
        self._seen = -1

    def has_changed(self) -> bool:
        """Whether the routes differ from those that read_into() gave. Cheap: asked for every burst."""
        return self._words[_VERSION] != self._seen

    def read_into(self, routes: RouteTable) -> None:
        """Replace the routes by the current ones. While the supervisor writes them, nothing is replaced."""
        version = self._words[_VERSION]
        fence()
        count = min(self._words[_COUNT], ROUTES_MAX)
        data = bytes(self._view[layout.ROUTES_AT : layout.ROUTES_AT + count * _ROUTE.size])
        fence()
        if version & 1 or version != self._words[_VERSION]:
            return
        self._seen = version
        routes.replace(
            (address[: 4 if family == 4 else 16], length, peer_handle)
            for family, length, peer_handle, address in _ROUTE.iter_unpack(data)
        )


def create(name: str, capacity: int, lanes: int, status_rows: int, datagrams: bool = False) -> PeerTable:
    """Create an empty peer table: no peer is connected, no packet has a route."""
    geometry = Geometry(capacity, lanes, status_rows, datagrams)
    memory = segment.create_with_header(name, geometry.size, layout.PEER_TABLE_MAGIC, geometry.fields)
    return PeerTable(memory, geometry)


def attach(
    name: str, capacity: int, lanes: int, status_rows: int, writer: Writer | None = None, datagrams: bool = False
) -> PeerTable:
    """Attach to an existing peer table. LocalError if it is another one.

    `writer`: a worker, which can write its own records and status rows alone; None: to all.
    """
    geometry = Geometry(capacity, lanes, status_rows, datagrams)
    return _attach(name, geometry, None if writer is None else _areas_of(*writer, geometry), None)


def observe(
    name: str, capacity: int, lanes: int, status_rows: int, owner: int | None = None, datagrams: bool = False
) -> PeerTable:
    """Attach to the peer table of this owner, to read alone. LocalError if it is another one."""
    return _attach(name, Geometry(capacity, lanes, status_rows, datagrams), (), owner)


def _attach(name: str, geometry: Geometry, areas: Sequence[segment.Area] | None, owner: int | None) -> PeerTable:
    memory = segment.attach_with_header(name, geometry.size, layout.PEER_TABLE_MAGIC, geometry.fields, areas, owner)
    return PeerTable(memory, geometry)


def _areas_of(kind: str, lane: int, duties: Sequence[str], geometry: Geometry) -> list[segment.Area]:
    """The areas that a worker of this kind and lane, with these duties, writes."""
    areas = [
        segment.Area(geometry.records_at(lane, records), layout.records_bytes(geometry.capacity))
        for duty in duties
        for records in WRITTEN_BY[kind, duty]
    ]
    if kind == "tcp":
        rows_at, _ = geometry.status_rows_of(lane)
        areas.append(segment.Area(rows_at, layout.status_rows_bytes(geometry.status_rows)))
    return areas
