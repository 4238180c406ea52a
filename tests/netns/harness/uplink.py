"""A machine that has the Internet by its uplink, traffic of its programs, and an observer on the uplink.

machine -- link0 -- gateway -- outside -- host      the tunnel's server is the gateway, at an address of its own

with Uplink(...) as uplink           every packet that leaves the machine by link0 is recorded
with Programs(...)                   they send without a pause: IPv4, IPv6, DNS; bound to link0 and not
uplink.strange()                     what was sent there, and is neither of the tunnel nor for the LAN
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import NamedTuple, Self

from tests.netns.harness.hub import Hub
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node, add_veth_pair
from tools.load.generators import SO_TIMESTAMPNS, receive

OUTSIDE, OUTSIDE6 = "198.51.100.9", "2001:db8:9::9"
SERVER, SERVER6 = "198.18.0.1", "2001:db8:18::1"
LAN, LAN6 = ip_network("10.77.0.0/24"), ip_network("fd77::/64")
GATEWAY, GATEWAY6 = "10.77.0.1", "fd77::1"
HUB_OUTSIDE, HUB_OUTSIDE6 = "198.51.100.1", "2001:db8:9::1"
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 3, 0x0800, 0x86DD  # linux/if_ether.h
SO_BINDTODEVICE = 25  # asm-generic/socket.h
DNS_PORT = 53
PAUSE_SECONDS = 0.002


class Seen(NamedTuple):
    time: float  # monotonic, when it left
    protocol: int
    destination: str
    port: int  # 0: none


class World:
    """The machine, its gateway, and the host outside. `hub`: one that runs all the time, if there is one."""

    hub: Hub | None = None

    def __init__(self, stack: ExitStack) -> None:
        self.lab = stack.enter_context(Lab())
        self.gateway, self.machine = self.lab.nodes
        self.host = Namespace("host")
        stack.callback(self.host.close)
        add_veth_pair(self.gateway, "outside", self.host)
        self.gateway.ip(
            f"address add {SERVER}/32 dev lo",
            f"address add {SERVER6}/128 dev lo",
            "link set outside up",
            f"address add {HUB_OUTSIDE}/24 dev outside",
            f"address add {HUB_OUTSIDE6}/64 dev outside nodad",
        )
        self.host.run(
            ["ip", "-batch", "-"],
            input=f"link set lo up\nlink set link0 up\naddress add {OUTSIDE}/24 dev link0\n"
            f"address add {OUTSIDE6}/64 dev link0 nodad\n"
            f"route add {LAN} via {HUB_OUTSIDE}\nroute add {LAN6} via {HUB_OUTSIDE6}\n",
        )
        self.gateway.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.machine.ip(f"route add default via {GATEWAY}", f"route add default via {GATEWAY6}")


class Uplink:
    """Records the packets that leave a machine by a device."""

    def __init__(self, node: Node, device: str = "link0") -> None:
        self._socket = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self.seen: list[Seen] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()

    def strange(self, port: int, since: float = 0.0, until: float = float("inf")) -> set[tuple[int, str, int]]:
        """`port`: of the tunnel's server."""
        return {
            (each.protocol, each.destination, each.port)
            for each in list(self.seen)
            if since <= each.time <= until and not _is_allowed(each, port)
        }

    def _record(self) -> None:
        while not self._end.is_set():
            try:
                packet, left_ns, (_, kind, direction, *_) = receive(self._socket)
            except OSError:
                continue  # nothing for a while; or the device went down, which is told once
            if direction == socket.PACKET_OUTGOING and kind in (ETH_P_IP, ETH_P_IPV6):
                self.seen.append(_parsed(packet, kind, left_ns / 1e9))


def _parsed(packet: bytes, kind: int, left: float) -> Seen:
    if kind == ETH_P_IP:
        protocol, header, destination = packet[9], (packet[0] & 15) * 4, packet[16:20]
    else:
        protocol, header, destination = packet[6], 40, packet[24:40]
    has_ports = protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    port = struct.unpack_from(">H", packet, header + 2)[0] if has_ports else 0
    return Seen(left, protocol, str(ip_address(destination)), port)


def _is_allowed(seen: Seen, port: int) -> bool:
    address = ip_address(seen.destination)
    if seen.destination in (SERVER, SERVER6):
        return seen.protocol == socket.IPPROTO_TCP and seen.port == port
    is_near = address in LAN or address in LAN6 or address.is_link_local or address.is_multicast
    return is_near and seen.port != DNS_PORT


class Programs:
    """Programs of the machine that send without a pause, whatever the kernel says to it."""

    def __init__(self, node: Node) -> None:
        self._end = threading.Event()
        self.refused = 0
        self._targets = [
            (node.socket(socket.AF_INET, socket.SOCK_DGRAM), (OUTSIDE, 4444)),
            (node.socket(socket.AF_INET6, socket.SOCK_DGRAM), (OUTSIDE6, 4444)),
            (node.socket(socket.AF_INET, socket.SOCK_DGRAM), (GATEWAY, DNS_PORT)),
            (node.socket(socket.AF_INET, socket.SOCK_DGRAM), (OUTSIDE, DNS_PORT)),
            (node.socket(socket.AF_INET, socket.SOCK_DGRAM), (SERVER, 80)),
            (self._bound(node, socket.AF_INET), (OUTSIDE, 5555)),
            (self._bound(node, socket.AF_INET6), (OUTSIDE6, 5555)),
        ]
        self._thread = threading.Thread(target=self._send, daemon=True)

    def _bound(self, node: Node, family: int) -> socket.socket:
        made = node.socket(family, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"link0")
        return made

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        for sock, _ in self._targets:
            sock.close()

    def _send(self) -> None:
        while not self._end.wait(PAUSE_SECONDS):
            for sock, address in self._targets:
                try:
                    sock.sendto(b"secret", address)
                except OSError:
                    self.refused += 1
