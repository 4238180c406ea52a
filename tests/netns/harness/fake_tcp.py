"""Fake TCP in namespaces: a client and a server, with a router between them that translates and follows connections.

Routed      the three namespaces; `link0` at the ends, `near` and `far` at the router
End         one end with a duty that receives: a thread inside its namespace
Watch       the TCP packets that pass a device of the router
"""

from __future__ import annotations

import ctypes
import fcntl
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from pipeline.counters import COUNTERS, ID
from pipeline.faketcp import filters
from pipeline.faketcp.packet import Arrived, read
from pipeline.packet.vnet import NO_VNET
from pipeline.runtime.privileges import _set_capabilities
from pipeline.supervisor.kernel.fake_tcp_sockets import open_listeners, open_tap
from pipeline.transport.fake_tcp import PAYLOAD_BYTES_MAX, FakeTcp
from pipeline.transport.fake_tcp_client import ClientFakeTcp
from pipeline.transport.fake_tcp_server import ServerFakeTcp
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6
from tests.netns.harness.connection_tracking import forget_connections
from tests.support import eventually
from tools.lab.namespace import TERM_SECONDS, Namespace
from tools.lab.network import Node

FIREWALL = """
table inet lab {
    chain nat {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "far" masquerade fully-random
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        meta l4proto icmpv6 accept
        ct state invalid counter drop
        ct state established accept
        iifname "near" tcp flags & (syn | ack) == syn ct state new accept
    }
}
"""
"""It translates, lets nothing pass that is outside a connection's window, and lets only SYNs from inside begin one."""

SIOCETHTOOL = 0x8946
ETHTOOL_SRXCSUM, ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO = 0x15, 0x17, 0x1F, 0x24, 0x2C
OFFLOADS = (ETHTOOL_SRXCSUM, ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO)
NOTHING = memoryview(b"")
LOOP_SECONDS = 0.005
ETH_P_ALL = 3


class Routed:
    """`addresses`: of the server, by version."""

    def __init__(self) -> None:
        self.addresses = {4: "10.2.0.2", 6: "fd02::2"}
        with ExitStack() as opened:
            self.client, self.router, self.server = (
                self._node(opened, name) for name in ("client", "router", "server")
            )
            for end, device in ((self.client, "near"), (self.server, "far")):
                ip(self.router, f"link add {device} type veth peer name link0 netns {end.pid}")
            self.client.address, self.client.address6 = "10.1.0.2", "fd01::2"
            self.server.address, self.server.address6 = "10.2.0.2", "fd02::2"
            self.nodes = [self.server, self.router, self.client]  # the first one is a hub's
            self._set_up(self.client, "link0", "10.1.0.2/24", "fd01::2/64")
            self._set_up(self.server, "link0", "10.2.0.2/24", "fd02::2/64")
            self._set_up(self.router, "near", "10.1.0.1/24", "fd01::1/64")
            self._set_up(self.router, "far", "10.2.0.1/24", "fd02::1/64")
            self.router.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            self.router.run(["nft", "-f", "-"], input=FIREWALL)
            for version, near, far in ((4, "10.1.0.1", "10.2.0.1"), (6, "fd01::1", "fd02::1")):
                ip(self.client, f"-{version} route add default via {near}")
                ip(self.server, f"-{version} route add default via {far}")
            self._closing = opened.pop_all()

    @staticmethod
    def _node(opened: ExitStack, name: str) -> Node:
        node = Node(name, 1, TERM_SECONDS)
        opened.callback(node.close)
        ip(node, "link set lo up")
        return node

    @staticmethod
    def _set_up(node: Namespace, device: str, *addresses: str) -> None:
        ip(node, f"link set {device} addrgenmode none")
        ip(node, f"link set {device} up")
        for address in addresses:
            ip(node, f"address add {address} dev {device} {'nodad' if ':' in address else ''}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def invalid(self) -> int:
        """Packets that the firewall took for none of their connection."""
        rules = self.router.run(["nft", "list", "chain", "inet", "lab", "forward"]).stdout
        line = next(line for line in rules.splitlines() if "invalid" in line)
        return int(line.split("packets ")[1].split()[0])

    @contextmanager
    def rule(self, *words: str) -> Iterator[None]:
        """The firewall begins with one more rule in the block; behind it, it is as before."""
        self.router.run(["nft", "insert", "rule", "inet", "lab", "forward", *words])
        try:
            yield
        finally:
            self.router.run(["nft", "-f", "-"], input=f"delete table inet lab\n{FIREWALL}")

    def forget(self) -> None:
        forget_connections(self.router)


def ip(node: Namespace, command: str) -> None:
    node.run(["ip", *command.split()])


def set_offloads(node: Namespace, device: str, on: bool, switches: tuple[int, ...] = OFFLOADS) -> None:
    """Let a device compute checksums, cut super-packets and merge segments, or none of it."""

    def change() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for command in switches:
                value = ctypes.create_string_buffer(struct.pack("=II", command, int(on)), 8)
                request = struct.pack("@16sP", device.encode(), ctypes.addressof(value))
                try:
                    fcntl.ioctl(sock, SIOCETHTOOL, request.ljust(40, b"\0"))
                except OSError:
                    continue  # this device has no such switch

    node.inside(change)


class Payload(NamedTuple):
    content: bytes
    segment_bytes: int
    address: tuple[str, int]


class End:
    """`made`: called inside the namespace, in the thread that receives from then on."""

    def __init__(self, node: Namespace, made: Callable[[memoryview], FakeTcp]) -> None:
        self.node = node
        self.received: list[Payload] = []
        self.keep = True
        self.bytes_received = 0
        self.counters = memoryview(bytearray(8 * (max(each.id for each in COUNTERS) + 1))).cast("Q")
        self.fake = node.inside(lambda: made(self.counters))
        self._end = threading.Event()
        self._finish = False
        self._thread = threading.Thread(target=lambda: node.inside(self._work))
        self._thread.start()

    def _work(self) -> None:
        _set_capabilities(0, 0, inheritable=0)  # of this thread alone
        into = memoryview(bytearray(PAYLOAD_BYTES_MAX))
        poll = select.poll()
        for fd in self.fake.fds:
            poll.register(fd, select.POLLIN)
        while not self._end.is_set():
            poll.poll(LOOP_SECONDS * 1000)
            while (found := self.fake.receive(into, time.monotonic_ns())) is not None:
                self.bytes_received += found.size
                if self.keep:
                    self.received.append(Payload(bytes(into[: found.size]), found.segment_bytes, found.address))
            self.fake.tick(time.monotonic_ns())
            if self._finish:
                self._finish = False
                self.fake.finish(time.monotonic_ns())

    def send(self, content: bytes, segment_bytes: int, address: tuple[str, int]) -> None:
        self.fake.send([content], len(content), segment_bytes, address, time.monotonic_ns())

    def may_send(self, content: bytes, segment_bytes: int, address: tuple[str, int]) -> bool:
        try:
            self.send(content, segment_bytes, address)
        except OSError:
            return False
        return True

    def finish(self) -> None:
        self._finish = True

    def count(self, name: str) -> int:
        return self.counters[ID[name]]

    def die(self) -> None:
        """As a worker that is killed: nothing is said, and the kernel closes its sockets."""
        self._end.set()
        self._thread.join()
        for open_flow in list(self.fake._flows.values()):
            open_flow.sock.close()
        self.fake._flows.clear()
        self.fake.close()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.fake.close()


def add_server(node: Namespace, host: str = "::", lanes: int = 1, port: int = 0) -> tuple[list[End], int]:
    """The ends of a server, by lane, and its port."""
    listeners = node.inside(lambda: open_listeners(host, port, lanes))
    port = listeners[0].getsockname()[1]

    def made(lane: int, counters: memoryview) -> ServerFakeTcp:
        taps = {
            protocol: open_tap(protocol, filters.tap_of_server(version, port, lane, lanes))
            for version, protocol in ((4, ETH_P_IP), (6, ETH_P_IPV6))
        }
        return ServerFakeTcp(taps, listeners[lane], counters)

    return [End(node, partial(made, lane)) for lane in range(lanes)], port


def add_client(node: Namespace, server: tuple[str, int], lane: int = 0, lanes: int = 1) -> End:
    """It is connected when this returns."""
    version, protocol, family = (6, ETH_P_IPV6, socket.AF_INET6) if ":" in server[0] else (4, ETH_P_IP, socket.AF_INET)
    program = filters.tap_of_client(version, socket.inet_pton(family, server[0]), server[1], lane, lanes)

    def made(counters: memoryview) -> ClientFakeTcp:
        fake = ClientFakeTcp({protocol: open_tap(protocol, program)}, server, 0, lane, lanes, counters)
        fake.is_wanted = True
        return fake

    end = End(node, made)
    try:
        eventually(lambda: end.count("dgram.flows_fake_opened") == 1, 10, "a fake flow")
    except AssertionError:
        end.close()
        raise
    return end


class Watch:
    """All TCP packets at a device, in both directions, from the beginning of the block to its end."""

    def __init__(self, node: Namespace, device: str) -> None:
        self.packets: list[Arrived] = []
        self._socket = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(0.05)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._record)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()

    def _record(self) -> None:
        while True:
            try:
                packet = NO_VNET + self._socket.recv(65536)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            ip = len(NO_VNET)
            if packet[ip + (9 if packet[ip] >> 4 == 4 else 6)] == socket.IPPROTO_TCP:
                found = read(memoryview(packet), NOTHING, 0)
                if found is not None:
                    self.packets.append(found)
