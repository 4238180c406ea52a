"""Whom a server lets in before it knows who it is. A Gate in each tcp worker has its part of the limits.

    opened(address, now)       for every accept: "" lets the connection in, else the counter under which it is closed
    settled(address, proved)   once for each that was let in: it has proved who it is, or it has ended before that
    limit(...)                 the limits from now on; who is in stays in, and what anybody did before is forgotten

An address is an IPv4 one or an IPv6 /64, which is what one subscriber has. Three limits, asked in this order:

    connects_per_address   a second, by a token bucket. Its burst is at least BURST and is not divided among workers,
                           because all connections of a client may come to one. A refused connect takes no token
    per_address            handshakes at a time. Not divided either, but at most a SHARE of what a worker's part of
                           in_all is, so that no address can have all of it
    in_all                 handshakes at a time, of strangers. An address from which somebody has proved himself to this
                           worker is known, and beyond in_all there is a SHARE of it that only those may use

What a flood does to a client that is not connected yet (one that is, passes no gate):

    from one address, the client behind another      nothing: the flood has per_address handshakes of in_all
    from one address, the client behind the same     it hardly gets in while that lasts, when a token or a handshake is
                                                     free before the flood takes it: nothing tells the two apart
    from in_all / per_address addresses and more     a client behind a known address gets in, a stranger hardly
    from more addresses than REMEMBERED              each begins again with a full bucket, and so does the client:
                                                     memory and handshakes stay bounded, connects a second do not
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address

from pipeline.errors import LocalError

BURST = 16  # connects at once: two clients with eight connections each, behind one address
REMEMBERED = 4096  # addresses: about 1 MB
SHARE = 4  # a quarter
SECOND = 1_000_000_000

HANDSHAKES_FULL = "tcp.closed_handshakes_full"
HANDSHAKES_OF_ADDRESS = "tcp.closed_handshakes_of_address"
CONNECTS_OF_ADDRESS = "tcp.closed_connects_of_address"


class HandshakeLimiter:
    """One of `workers`. The limits are the server's, each at least 1; times are CLOCK_MONOTONIC ns."""

    def __init__(self, in_all: int, per_address: int, connects_per_address: int, workers: int) -> None:
        self._workers = workers
        self._handshakes: dict[str | int, int] = {}
        self._total = 0
        self._known: OrderedDict[str | int, None] = OrderedDict()
        self.limit(in_all, per_address, connects_per_address)

    def limit(self, in_all: int, per_address: int, connects_per_address: int) -> None:
        """Change the limits."""
        workers = self._workers
        rate = max(1.0, connects_per_address / workers)
        self._in_all = max(1, in_all // workers)
        share = max(1, self._in_all // SHARE)
        self._with_known = self._in_all + share
        self._per_address = min(per_address, share)
        self._interval_ns = int(SECOND / rate)
        self._ahead_ns = int((max(rate, BURST) - 1) * self._interval_ns)
        # when the bucket of each address is full again; least recent connect first
        self._full_at: OrderedDict[str | int, int] = OrderedDict()

    def opened(self, address: str, now: int) -> str:
        """Judge a connection that has just been accepted; see above."""
        source = source_of(address)
        full_at = max(now, self._full_at.get(source, 0))
        if full_at - now > self._ahead_ns:
            return CONNECTS_OF_ADDRESS
        _remember(self._full_at, source, full_at + self._interval_ns)
        held = self._handshakes.get(source, 0)
        if held >= self._per_address:
            return HANDSHAKES_OF_ADDRESS
        if self._total >= (self._with_known if source in self._known else self._in_all):
            return HANDSHAKES_FULL
        self._handshakes[source] = held + 1
        self._total += 1
        return ""

    def settled(self, address: str, proved: bool = False) -> None:
        """A connection that was let in is no handshake any more. `proved`: because it has proved who it is."""
        source = source_of(address)
        held = self._handshakes.get(source, 0)
        if not held:
            raise LocalError(f"gate: a handshake from {address} ends, expected one that was let in, found none")
        self._total -= 1
        if held > 1:
            self._handshakes[source] = held - 1
        else:
            del self._handshakes[source]
        if proved:
            _remember(self._known, source, None)


def source_of(address: str) -> str | int:
    """By what an address, as a socket tells it, is known: an IPv4 one by itself, an IPv6 one by its upper 64 bits."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address)
    mapped = parsed.ipv4_mapped
    return int(parsed) >> 64 if mapped is None else str(mapped)


def _remember(table: OrderedDict, source: str | int, value: int | None) -> None:
    """As the latest; beyond REMEMBERED the oldest is forgotten."""
    table[source] = value
    table.move_to_end(source)
    if len(table) > REMEMBERED:
        table.popitem(last=False)
