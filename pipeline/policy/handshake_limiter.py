"""Limits on clients that have not proved who they are. Each tcp worker of a server has its part of the limits.

    try_begin(address, now, make_room)  for every accepted connection: "" lets its handshake begin; else the name of the
                                        counter under which the connection is closed
    handshake_done(address, proved)     once for each handshake that has begun: the client has proved who it is, or the
                                        connection has ended before that
    set_limits(...)                     limits from now on; handshakes under way go on, and the token buckets are full

An address is an IPv4 one, or an IPv6 /64, which is what one subscriber has. Three limits, checked in this order:

    connects_per_address   connections a second, by a token bucket. Its burst is at least BURST and is not divided among
                           workers, because all connections of a client may come to one. A rejected connection takes no
                           token
    per_address            handshakes at a time. Not divided among workers either, but at most a SHARE of the worker's
                           part of in_all: no address can have all of it
    in_all                 handshakes at a time, of all unauthenticated clients. An address from which a client has
                           proved who it is to this worker is known. Known addresses may use a SHARE beyond in_all.
                           Where nothing is free, make_room may end a handshake that has had time enough

The effect of a flood on a client that is not connected yet (one that is connected does not pass here):

    from one address, the client behind another      none: the flood has per_address handshakes of in_all
    from one address, with the client behind it      the client hardly gets in: it needs a token or a handshake that is
                                                     free before the flood takes it, and nothing tells the two apart
    from in_all / per_address addresses and more     a client behind a known address gets in. So does another one, as
                                                     long as the flood begins fewer handshakes than make_room ends
    from more addresses than REMEMBERED              each begins again with a full bucket, and so does the client:
                                                     memory and handshakes stay bounded, connections a second do not
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import TypeVar

from pipeline.errors import LocalError

BURST = 16  # connections at once: two clients with eight connections each, behind one address
REMEMBERED = 4096  # addresses: about 1 MB
SHARE = 4  # a quarter
SECOND = 1_000_000_000

HANDSHAKES_FULL = "tcp.closed_handshakes_full"
HANDSHAKES_OF_ADDRESS = "tcp.closed_handshakes_of_address"
CONNECTS_OF_ADDRESS = "tcp.closed_connects_of_address"

Source = str | int
"""An IPv4 address, or the upper 64 bits of an IPv6 address."""

T = TypeVar("T")


class HandshakeLimiter:
    """One of `workers`. The limits are the server's, each at least 1; times are CLOCK_MONOTONIC ns."""

    def __init__(self, in_all: int, per_address: int, connects_per_address: int, workers: int) -> None:
        self._workers = workers
        self._handshakes: dict[Source, int] = {}  # under way, by source
        self._total = 0
        self._known: OrderedDict[Source, None] = OrderedDict()
        self.set_limits(in_all, per_address, connects_per_address)

    def set_limits(self, in_all: int, per_address: int, connects_per_address: int) -> None:
        workers = self._workers
        rate = max(1.0, connects_per_address / workers)
        self._in_all = max(1, in_all // workers)
        share = max(1, self._in_all // SHARE)
        self._in_all_with_known = self._in_all + share
        self._per_address = min(per_address, share)
        self._interval_ns = int(SECOND / rate)
        self._ahead_ns = int((max(rate, BURST) - 1) * self._interval_ns)
        # when the bucket of each source is full again; least recent connection first
        self._full_at: OrderedDict[Source, int] = OrderedDict()

    def try_begin(self, address: str, now: int, make_room: Callable[[], bool] = lambda: False) -> str:
        """Begin the handshake of an accepted connection: "", or the counter under which it is closed.

        `make_room`: called where all handshakes are in use; it may end one, and says whether it has done so.
        """
        source = source_of(address)
        full_at = max(now, self._full_at.get(source, 0))
        if full_at - now > self._ahead_ns:
            return CONNECTS_OF_ADDRESS
        _remember(self._full_at, source, full_at + self._interval_ns)
        if self._handshakes.get(source, 0) >= self._per_address:
            return HANDSHAKES_OF_ADDRESS
        limit = self._in_all_with_known if source in self._known else self._in_all
        if self._total >= limit and not make_room():
            return HANDSHAKES_FULL
        self._handshakes[source] = self._handshakes.get(source, 0) + 1
        self._total += 1
        return ""

    def handshake_done(self, address: str, proved: bool = False) -> None:
        """End a handshake that has begun. `proved`: the client has proved who it is."""
        source = source_of(address)
        of_source = self._handshakes.get(source, 0)
        if not of_source:
            raise LocalError(f"handshake limiter: a handshake from {address} ends, expected one that has begun")
        self._total -= 1
        if of_source > 1:
            self._handshakes[source] = of_source - 1
        else:
            del self._handshakes[source]
        if proved:
            _remember(self._known, source, None)


def source_of(address: str) -> Source:
    """The source of an address as a socket writes it; an IPv4 address mapped into IPv6 is an IPv4 one."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address)
    mapped = parsed.ipv4_mapped
    return int(parsed) >> 64 if mapped is None else str(mapped)


def _remember(table: OrderedDict[Source, T], source: Source, value: T) -> None:
    """Make a source the latest; beyond REMEMBERED the oldest is forgotten."""
    table[source] = value
    table.move_to_end(source)
    if len(table) > REMEMBERED:
        table.popitem(last=False)
