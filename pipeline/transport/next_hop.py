"""Where a packet socket has to send: the interface, the link header and the MTU that the kernel would use for a packet.

The routes are asked as for a connection with these addresses, so rules for sources and users count. The link address
of the next hop is in the kernel's table of neighbours: a handshake has just passed there. A packet socket does not
refresh that entry, but the TCP connections of the session do. Without an entry the link address from which packets come
will do.

None of it needs a right. An answer takes a quarter of a millisecond, and is that of one moment.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import NamedTuple

from pipeline.faketcp.flow import Ends
from pipeline.policy.server_addresses import ServerAddress
from pipeline.transport.kernel_route import KernelRoutes

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD  # linux/if_ether.h

# linux/sockios.h, linux/if_arp.h
SIOCGIFMTU, SIOCGIFHWADDR = 0x8921, 0x8927
ARPHRD_ETHER, ARPHRD_PPP, ARPHRD_RAWIP, ARPHRD_NONE = 1, 512, 519, 0xFFFE
ARPHRD_TUNNEL, ARPHRD_TUNNEL6, ARPHRD_LOOPBACK, ARPHRD_SIT = 768, 769, 772, 776
MAC_BYTES = 6
_FAMILY_BYTES = 2

LINK_BYTES = {
    ARPHRD_ETHER: 14,
    ARPHRD_LOOPBACK: 14,
    ARPHRD_PPP: 0,
    ARPHRD_RAWIP: 0,
    ARPHRD_NONE: 0,
    ARPHRD_TUNNEL: 0,
    ARPHRD_TUNNEL6: 0,
    ARPHRD_SIT: 0,
}
"""Of the link header, by type of device. Other types carry no fake flow."""

HeardFrom = tuple[str, bytes]
"""The interface by which a packet came, and the link address that it came from."""

_OF_INTERFACE = struct.Struct("=16sH22s")  # struct ifreq with a struct sockaddr
_MTU_OF_INTERFACE = struct.Struct("=16si20x")


class NextHop(NamedTuple):
    interface: str
    link: bytes
    mtu: int


class NextHops:
    """OSError if the system has no netlink."""

    def __init__(self) -> None:
        self._routes = KernelRoutes()
        self._interfaces = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        self._routes.close()
        self._interfaces.close()

    def find(self, ends: Ends, scope: int, heard_from: HeardFrom | None) -> NextHop | None:
        """None if there is no way now."""
        is_v4 = len(ends.remote) == 4
        family = socket.AF_INET if is_v4 else socket.AF_INET6
        host = socket.inet_ntop(family, ends.remote)
        there = (host, ends.remote_port) if is_v4 else (host, ends.remote_port, 0, scope)
        way, interface, _ = self._routes.find(ServerAddress(family, there), source=ends.local)
        if way is None:
            return None
        try:
            return self._by(interface, way.device, _address_in(way.gateway) or ends.remote, heard_from, is_v4)
        except OSError:
            return None  # the interface has just gone

    def _by(
        self, interface: str, device: int, gateway: bytes, heard_from: HeardFrom | None, is_v4: bool
    ) -> NextHop | None:
        request = _OF_INTERFACE.pack(interface.encode(), 0, b"")
        _, kind, own = _OF_INTERFACE.unpack(fcntl.ioctl(self._interfaces, SIOCGIFHWADDR, request))
        mtu = _MTU_OF_INTERFACE.unpack(fcntl.ioctl(self._interfaces, SIOCGIFMTU, request))[1]
        if kind not in LINK_BYTES:
            return None
        if not LINK_BYTES[kind]:
            return NextHop(interface, b"", mtu)
        there = bytes(MAC_BYTES)
        if kind == ARPHRD_ETHER:
            there = self._routes.neighbour(device, gateway)
            if len(there) != MAC_BYTES and heard_from is not None and heard_from[0] == interface:
                there = heard_from[1]
            if len(there) != MAC_BYTES:
                return None
        protocol = ETH_P_IP if is_v4 else ETH_P_IPV6
        return NextHop(interface, there + own[:MAC_BYTES] + protocol.to_bytes(2, "big"), mtu)


def _address_in(gateway: bytes) -> bytes:
    """A gateway of the other version of IP stands behind its family (struct rtvia)."""
    return gateway[_FAMILY_BYTES:] if len(gateway) in (_FAMILY_BYTES + 4, _FAMILY_BYTES + 16) else gateway
