"""The addresses of one subnet that a server can hand out.

    subnet          addresses that no client gets
    IPv4            the network address and the broadcast address
    IPv6            the network address, which is every router's (RFC 4291, 2.6.1); there is no broadcast address
    /31, /127       none: both are ends of a link (RFC 3021, RFC 6164)
    /32, /128       all: the server has the only one

Beside these, no client gets the server's own address. No function here walks over a subnet: a search takes as many
steps as there are addresses or ranges in use.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

LINK_ADDRESSES = 2
"""Addresses of a subnet that is a link between two hosts."""


class AddressPool:
    """The subnet of `interface`, which holds the server's own address."""

    def __init__(self, interface: IPv4Interface | IPv6Interface) -> None:
        self.network = interface.network
        self.version = interface.version
        self._address = type(interface.ip)
        self._server = int(interface.ip)
        is_link = self.network.num_addresses <= LINK_ADDRESSES
        self._first = int(self.network.network_address) + (not is_link)
        self._last = int(self.network.broadcast_address) - (not is_link and self.version == 4)

    @property
    def is_empty(self) -> bool:
        """Whether the subnet has no address beside the server's own."""
        return self._first == self._last == self._server

    def contains(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a client may have this address."""
        return (
            address.version == self.version
            and self._first <= int(address) <= self._last
            and int(address) != self._server
        )

    def first_free(
        self, taken: Container[int], reserved: Iterable[tuple[int, int]] = ()
    ) -> IPv4Address | IPv6Address | None:
        """The lowest address that is neither in `taken` nor in a range (first, last) of `reserved`, which is sorted."""
        value = self._first
        for first, last in (*reserved, (self._last + 1, self._last)):
            for free in range(value, min(first, self._last + 1)):
                if free not in taken and free != self._server:
                    return self._address(free)
            value = max(value, last + 1)
        return None


def is_part_of(network: IPv4Network | IPv6Network, whole: IPv4Network | IPv6Network) -> bool:
    """Whether a network is another one or lies inside it. Networks of different IP versions share nothing."""
    if isinstance(network, IPv4Network):
        return isinstance(whole, IPv4Network) and network.subnet_of(whole)
    return isinstance(whole, IPv6Network) and network.subnet_of(whole)
