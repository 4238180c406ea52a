"""The peers segment: who is connected, over what, and whose packets are whose.

    supervisor           a line per peer: its seat, its rate; the routes
    tun workers          a line per peer each: the number of the next block of each of its streams
    everybody            reads

A peer has an index, 0 to capacity - 1; a client has one peer, the server. Lines are cut as one view for all peers: word
w of peer p is lines[p * RECORD_WORDS + w]. Offsets: `layout`.

A seat is an index together with who sits there: another peer, or another session of the same, has another seat, its
lower PEER_INDEX_BITS the same. Slots, routes and connections carry seats, so nothing that was meant for one ever
reaches the next.

Routes are written while their version is odd. Who reads them looks at the version before and after, and reads again
when it has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pipeline.errors import LocalError
from pipeline.packet.route_table import RouteTable
from pipeline.shm import layout, segment
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import LANE_RECORDS, PEER_INDEX_MASK, RECORD_WORDS, ROUTES_MAX

ROUTE = struct.Struct("<BB6xq16s")

Route = tuple[bytes, int, int]
"""Address of 4 or 16 bytes, prefix length, seat (routes.NOBODY for a hole)."""

assert ROUTE.size == layout.ROUTE_BYTES


class PeerTable:
    """An attached peers segment."""

    def __init__(self, memory: segment.Segment, capacity: int, lanes: int, rows: int) -> None:
        self.memory = memory
        self.capacity = capacity
        self.rows = rows
        self._words = memory.words
        for at, expected, what in (
            (layout.PEER_TABLE_MAGIC_AT, layout.PEER_TABLE_MAGIC, "magic"),
            (layout.PEER_TABLE_VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
            (layout.PEER_TABLE_CAPACITY_AT, capacity, "capacity"),
            (layout.PEER_TABLE_LANES_AT, lanes, "lanes"),
            (layout.PEER_TABLE_ROWS_AT, rows, "rows"),
        ):
            actual = memory.words[at // 8]
            if actual != expected:
                raise LocalError(f"peers {memory.name}: {what}: expected {expected}, found {actual}")
        self.records = self._cut(layout.RECORDS_AT)
        self.links, self.sent, self.numbers, self.transit = (
            [self._cut(layout.records_at(capacity, lane, kind)) for lane in range(lanes)] for kind in LANE_RECORDS
        )
        self._rows_at = [layout.rows_at(capacity, lanes, rows, lane) for lane in range(lanes)]

    def _cut(self, at: int) -> memoryview:
        return self._words[at // 8 : at // 8 + RECORD_WORDS * self.capacity]

    def peer_handle(self, peer: int) -> int:
        """The current seat of an index; connections of an earlier one end."""
        return self.records[peer * RECORD_WORDS + layout.PEER_HANDLE]

    def rate(self, peer: int) -> int:
        """Bytes a second, each way; 0: no limit."""
        return self.records[peer * RECORD_WORDS + layout.PEER_RATE]

    def sent_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that the tcp workers of other lanes have sent to it."""
        at = peer * RECORD_WORDS + layout.SENT_BYTES
        return sum(lines[at] for other, lines in enumerate(self.sent) if other != lane)

    def received_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that they have received from it."""
        at = peer * RECORD_WORDS + layout.LINK_RECEIVED_BYTES
        return sum(lines[at] for other, lines in enumerate(self.links) if other != lane)

    def count(self, peer: int) -> int:
        """Established connections of a peer."""
        return sum(lines[peer * RECORD_WORDS + layout.LINK_ESTABLISHED] for lines in self.links)

    # -- the supervisor's

    def write_record(self, peer_handle: int, rate: int) -> None:
        """This is the seat of its index now."""
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
        self.records[at + layout.PEER_RATE] = rate
        self.records[at + layout.PEER_HANDLE] = peer_handle

    def write_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routes. LocalError if there are more than ROUTES_MAX."""
        if len(routes) > ROUTES_MAX:
            raise LocalError(
                f"routes to peers: at most {ROUTES_MAX} are possible, there are {len(routes)}: "
                f"join prefixes in `allowed`, or lower max_clients"
            )
        version = layout.ROUTES_VERSION_AT // 8
        self._words[version] += 1
        for index, (address, length, peer_handle) in enumerate(routes):
            ROUTE.pack_into(
                self.memory.view,
                layout.ROUTES_AT + index * ROUTE.size,
                4 if len(address) == 4 else 6,
                length,
                peer_handle,
                address,
            )
        self._words[layout.ROUTES_COUNT_AT // 8] = len(routes)
        self._words[version] += 1

    # -- a tcp worker's

    def write_row(self, lane: int, index: int, row: ConnectionStatus | None) -> None:
        """Publish a connection, or clear its row. Readers may see a half-written row; they only show it."""
        at = self._rows_at[lane] + index * layout.ROW_BYTES
        data = row.pack() if row else b""
        self.memory.view[at : at + layout.ROW_BYTES] = data.ljust(layout.ROW_BYTES, b"\0")

    def connections(self, lane: int) -> list[ConnectionStatus]:
        """The connections that a tcp worker has published."""
        view, first = self.memory.view, self._rows_at[lane]
        rows = (
            ConnectionStatus.unpack(bytes(view[at : at + layout.ROW_BYTES]))
            for at in range(first, first + self.rows * layout.ROW_BYTES, layout.ROW_BYTES)
        )
        return [row for row in rows if row is not None]

    def close(self) -> None:
        for view in (self.records, *self.links, *self.sent, *self.numbers, *self.transit):
            view.release()
        self.memory.close()


class RouteReader:
    """The routes as a duty of a tun worker follows them."""

    def __init__(self, peers: PeerTable) -> None:
        self._view = peers.memory.view
        self._words = peers.memory.words
        self._seen = -1

    def changed(self) -> bool:
        """Whether there are other routes than read_into() gave, as cheap as can be asked for every burst."""
        return self._words[_VERSION] != self._seen

    def read_into(self, routes: RouteTable) -> None:
        """Replace the routes by those that are there now; while they are being written all stays, and stays changed."""
        version = self._words[_VERSION]
        count = min(self._words[layout.ROUTES_COUNT_AT // 8], ROUTES_MAX)
        data = bytes(self._view[layout.ROUTES_AT : layout.ROUTES_AT + count * ROUTE.size])
        if version & 1 or version != self._words[_VERSION]:
            return
        self._seen = version
        routes.replace(
            (address[: 4 if family == 4 else 16], length, peer_handle)
            for family, length, peer_handle, address in ROUTE.iter_unpack(data)
        )


_VERSION = layout.ROUTES_VERSION_AT // 8


def create(name: str, capacity: int, lanes: int, rows: int) -> PeerTable:
    """Make an empty peers segment: nobody is connected, no packet has a way."""
    memory = segment.create(name, layout.peer_table_bytes(capacity, lanes, rows))
    for at, value in (
        (layout.PEER_TABLE_VERSION_AT, layout.LAYOUT_VERSION),
        (layout.PEER_TABLE_CAPACITY_AT, capacity),
        (layout.PEER_TABLE_LANES_AT, lanes),
        (layout.PEER_TABLE_ROWS_AT, rows),
        (layout.PEER_TABLE_MAGIC_AT, layout.PEER_TABLE_MAGIC),
    ):
        memory.words[at // 8] = value
    return PeerTable(memory, capacity, lanes, rows)


def attach(name: str, capacity: int, lanes: int, rows: int) -> PeerTable:
    """Attach to an existing segment (LocalError if it is another one)."""
    return PeerTable(segment.attach(name, layout.peer_table_bytes(capacity, lanes, rows)), capacity, lanes, rows)
