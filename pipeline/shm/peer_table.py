"""The peers segment: who is connected, over what, and whose packets are whose.

    supervisor           a line per peer: its seat, its rate; the routes
    tun workers          a line per peer each: the number of the next block of each of its streams
    everybody            reads

A peer has an index, 0 to capacity - 1; a client has one peer, the server. Lines are cut as one view for all peers: word
w of peer p is lines[p * LINE_WORDS + w]. Offsets: `layout`.

A seat is an index together with who sits there: another peer, or another session of the same, has another seat, its
lower PEER_BITS the same. Slots, routes and connections carry seats, so nothing that was meant for one ever reaches the
next.

Routes are written while their version is odd. Who reads them looks at the version before and after, and reads again
when it has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pipeline.errors import LocalError
from pipeline.packet.route_table import Routes
from pipeline.shm import layout, segment
from pipeline.shm.connection_row import ConnectionRow
from pipeline.shm.layout import LANE_LINES, LINE_WORDS, PEER_MASK, ROUTES_MAX

ROUTE = struct.Struct("<BB6xq16s")

Route = tuple[bytes, int, int]
"""Address of 4 or 16 bytes, prefix length, seat (routes.NOBODY for a hole)."""

assert ROUTE.size == layout.ROUTE_BYTES


class Peers:
    """An attached peers segment."""

    def __init__(self, memory: segment.Segment, capacity: int, lanes: int, rows: int) -> None:
        self.memory = memory
        self.capacity = capacity
        self.rows = rows
        self._words = memory.words
        for at, expected, what in (
            (layout.PEERS_MAGIC_AT, layout.PEERS_MAGIC, "magic"),
            (layout.PEERS_VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
            (layout.PEERS_CAPACITY_AT, capacity, "capacity"),
            (layout.PEERS_LANES_AT, lanes, "lanes"),
            (layout.PEERS_ROWS_AT, rows, "rows"),
        ):
            actual = memory.words[at // 8]
            if actual != expected:
                raise LocalError(f"peers {memory.name}: {what}: expected {expected}, found {actual}")
        self.lines = self._cut(layout.LINES_AT)
        self.carriers, self.sent, self.numbers, self.transit = (
            [self._cut(layout.lines_at(capacity, lane, kind)) for lane in range(lanes)] for kind in LANE_LINES
        )
        self._rows_at = [layout.rows_at(capacity, lanes, rows, lane) for lane in range(lanes)]

    def _cut(self, at: int) -> memoryview:
        return self._words[at // 8 : at // 8 + LINE_WORDS * self.capacity]

    def seat(self, peer: int) -> int:
        """The current seat of an index; connections of an earlier one end."""
        return self.lines[peer * LINE_WORDS + layout.PEER_SEAT]

    def rate(self, peer: int) -> int:
        """Bytes a second, each way; 0: no limit."""
        return self.lines[peer * LINE_WORDS + layout.PEER_RATE]

    def sent_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that the tcp workers of other lanes have sent to it."""
        at = peer * LINE_WORDS + layout.SENT_BYTES
        return sum(lines[at] for other, lines in enumerate(self.sent) if other != lane)

    def received_elsewhere(self, peer: int, lane: int) -> int:
        """Bytes that they have received from it."""
        at = peer * LINE_WORDS + layout.CARRIER_RECEIVED
        return sum(lines[at] for other, lines in enumerate(self.carriers) if other != lane)

    def count(self, peer: int) -> int:
        """Established connections of a peer."""
        return sum(lines[peer * LINE_WORDS + layout.CARRIER_ESTABLISHED] for lines in self.carriers)

    # -- the supervisor's

    def write_line(self, seat: int, rate: int) -> None:
        """This is the seat of its index now."""
        at = (seat & PEER_MASK) * LINE_WORDS
        self.lines[at + layout.PEER_RATE] = rate
        self.lines[at + layout.PEER_SEAT] = seat

    def write_routes(self, routes: Sequence[Route]) -> None:
        """Replace the routes. LocalError if there are more than ROUTES_MAX."""
        if len(routes) > ROUTES_MAX:
            raise LocalError(
                f"routes to peers: at most {ROUTES_MAX} are possible, there are {len(routes)}: "
                f"join prefixes in `allowed`, or lower max_clients"
            )
        version = layout.ROUTES_VERSION_AT // 8
        self._words[version] += 1
        for index, (address, length, seat) in enumerate(routes):
            ROUTE.pack_into(
                self.memory.view,
                layout.ROUTES_AT + index * ROUTE.size,
                4 if len(address) == 4 else 6,
                length,
                seat,
                address,
            )
        self._words[layout.ROUTES_COUNT_AT // 8] = len(routes)
        self._words[version] += 1

    # -- a tcp worker's

    def write_row(self, lane: int, index: int, row: ConnectionRow | None) -> None:
        """Publish a connection, or clear its row. Readers may see a half-written row; they only show it."""
        at = self._rows_at[lane] + index * layout.ROW_BYTES
        data = row.pack() if row else b""
        self.memory.view[at : at + layout.ROW_BYTES] = data.ljust(layout.ROW_BYTES, b"\0")

    def connections(self, lane: int) -> list[ConnectionRow]:
        """The connections that a tcp worker has published."""
        view, first = self.memory.view, self._rows_at[lane]
        rows = (
            ConnectionRow.unpack(bytes(view[at : at + layout.ROW_BYTES]))
            for at in range(first, first + self.rows * layout.ROW_BYTES, layout.ROW_BYTES)
        )
        return [row for row in rows if row is not None]

    def close(self) -> None:
        for view in (self.lines, *self.carriers, *self.sent, *self.numbers, *self.transit):
            view.release()
        self.memory.close()


class Reader:
    """The routes as a duty of a tun worker follows them."""

    def __init__(self, peers: Peers) -> None:
        self._view = peers.memory.view
        self._words = peers.memory.words
        self._seen = -1

    def changed(self) -> bool:
        """Whether there are other routes than read_into() gave, as cheap as can be asked for every burst."""
        return self._words[_VERSION] != self._seen

    def read_into(self, routes: Routes) -> None:
        """Replace the routes by those that are there now; while they are being written all stays, and stays changed."""
        version = self._words[_VERSION]
        count = min(self._words[layout.ROUTES_COUNT_AT // 8], ROUTES_MAX)
        data = bytes(self._view[layout.ROUTES_AT : layout.ROUTES_AT + count * ROUTE.size])
        if version & 1 or version != self._words[_VERSION]:
            return
        self._seen = version
        routes.replace(
            (address[: 4 if family == 4 else 16], length, seat)
            for family, length, seat, address in ROUTE.iter_unpack(data)
        )


_VERSION = layout.ROUTES_VERSION_AT // 8


def create(name: str, capacity: int, lanes: int, rows: int) -> Peers:
    """Make an empty peers segment: nobody is connected, no packet has a way."""
    memory = segment.create(name, layout.peers_bytes(capacity, lanes, rows))
    for at, value in (
        (layout.PEERS_VERSION_AT, layout.LAYOUT_VERSION),
        (layout.PEERS_CAPACITY_AT, capacity),
        (layout.PEERS_LANES_AT, lanes),
        (layout.PEERS_ROWS_AT, rows),
        (layout.PEERS_MAGIC_AT, layout.PEERS_MAGIC),
    ):
        memory.words[at // 8] = value
    return Peers(memory, capacity, lanes, rows)


def attach(name: str, capacity: int, lanes: int, rows: int) -> Peers:
    """Attach to an existing segment (LocalError if it is another one)."""
    return Peers(segment.attach(name, layout.peers_bytes(capacity, lanes, rows)), capacity, lanes, rows)
