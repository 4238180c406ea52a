"""The addresses of one subnet that a server can hand out.

    subnet          not for hosts
    IPv4            network and broadcast address
    IPv6            network address, which is every router's (RFC 4291, 2.6.1); there is no broadcast
    /31, /127       none: both ends of a link (RFC 3021, RFC 6164)
    /32, /128       the server's own is all there is, so nothing can be handed out

Nothing here walks over a subnet: a search passes what is taken, never more.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

LINK_ADDRESSES = 2  # of a subnet that is a link between two hosts


class AddressPool:
    """The subnet of `interface`, the server's own address in it."""

    def __init__(self, interface: IPv4Interface | IPv6Interface) -> None:
        self.network = interface.network
        self.version = interface.version
        self._address = type(interface.ip)
        self._own = int(interface.ip)
        spare = self.network.num_addresses > LINK_ADDRESSES
        self._first = int(self.network.network_address) + spare
        self._last = int(self.network.broadcast_address) - (spare and self.version == 4)

    @property
    def is_empty(self) -> bool:
        """Whether the subnet has no address beside the server's own."""
        return self._first == self._last == self._own

    def contains(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a client may have this address."""
        return (
            address.version == self.version and self._first <= int(address) <= self._last and int(address) != self._own
        )

    def first_free(
        self, taken: Container[int], reserved: Iterable[tuple[int, int]] = ()
    ) -> IPv4Address | IPv6Address | None:
        """The lowest address that is not in `taken` and in no range of `reserved` (first, last; in order)."""
        value = self._first
        for first, last in (*reserved, (self._last + 1, self._last)):
            for free in range(value, min(first, self._last + 1)):
                if free not in taken and free != self._own:
                    return self._address(free)
            value = max(value, last + 1)
        return None
