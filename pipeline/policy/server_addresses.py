"""The addresses of a server, in the order in which a client tries them (RFC 8305, "Happy Eyeballs").

    first       the address at which a connection was established last; before there was any, one that has connected
    then        the resolver's order (RFC 6724), with the two families in turn

All connections of a client share this knowledge. So a dead address costs a delay once, not once for each connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NEXT_ADDRESS_NS = 250_000_000  # RFC 8305, 5: the "Connection Attempt Delay" that it recommends
NEXT_ADDRESS_MAX_NS = 2_000_000_000  # its maximum there
SLOW_PATH = 2  # times the last time of connecting: a slow path is no dead one


class ServerAddress(NamedTuple):
    """One address of the server, as the socket module gives it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def host(self) -> str:
        return self.sockaddr[0]

    @property
    def zone(self) -> int:
        """Index of the interface to which a link-local address belongs; 0: it is none."""
        return self.sockaddr[3] if len(self.sockaddr) == 4 else 0


class ServerAddresses:
    """`known`: the answer of the resolver, in the order of RFC 8305; empty before the first one."""

    def __init__(self) -> None:
        self.known: list[ServerAddress] = []
        self._worked: ServerAddress | None = None
        self._proved = False  # a connection was established there
        self._connect_ns = 0  # that it took to connect to it

    def take(self, answer: Iterable[ServerAddress]) -> None:
        """Use another answer of the resolver from now on."""
        self.known = _in_turn(list(dict.fromkeys(answer)))
        if self._worked not in self.known:
            self._worked = None

    def connected(self, address: ServerAddress, connect_ns: int) -> None:
        """TCP is connected to this address, which took so long; its handshake begins."""
        if self._worked is None:
            self._worked, self._proved, self._connect_ns = address, False, connect_ns

    def rejected(self, address: ServerAddress) -> None:
        """A handshake has failed there."""
        if address == self._worked and not self._proved:
            self._worked = None

    def worked(self, address: ServerAddress, connect_ns: int) -> None:
        """A connection to this address has been established; to connect took so long."""
        self._worked, self._proved, self._connect_ns = address, True, connect_ns

    def in_order(self) -> list[ServerAddress]:
        """All addresses, the best one first."""
        if self._worked is None:
            return self.known
        return [self._worked, *(each for each in self.known if each != self._worked)]

    def delay_after(self, address: ServerAddress) -> int:
        """How long the next address waits for this one to answer, in ns."""
        if address != self._worked:
            return NEXT_ADDRESS_NS
        return min(max(NEXT_ADDRESS_NS, SLOW_PATH * self._connect_ns), NEXT_ADDRESS_MAX_NS)


def _in_turn(addresses: list[ServerAddress]) -> list[ServerAddress]:
    """The families in turn, beginning with that of the first address (RFC 8305, 4)."""
    first = [each for each in addresses if each.family == addresses[0].family]
    others = [each for each in addresses if each.family != addresses[0].family]
    paired = [each for pair in zip(first, others, strict=False) for each in pair]
    return [*paired, *first[len(others) :], *others[len(first) :]]
