"""Fake TCP of a lane, as the inbound duty has it: in the place of workers.dgram.datagram_socket, with its interface.

A server has its taps from the beginning. A client gets its tap when the supervisor knows the server, and another one
when the server is another. Flows of before are finished then, and their sockets closed a little later: the outbound
duty may be sending on them just now.

Descriptors of taps come and go, so they are behind one of epoll(7), which stays.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Any

from pipeline.faketcp.packet import STAMPED_BYTES
from pipeline.packet.ip import V4_HEADER_BYTES, V6_HEADER_BYTES
from pipeline.policy.return_address import Address
from pipeline.runtime import tap_channel
from pipeline.runtime.tap_channel import TapServer
from pipeline.transport.fake_tcp import FINISHING_NS, PAYLOAD_BYTES_MAX, FakeTcp
from pipeline.transport.fake_tcp_client import ClientFakeTcp
from pipeline.transport.fake_tcp_server import ServerFakeTcp
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6
from workers.dgram.path import Ancillary

FAKE_TCP_OVERHEAD = {4: V4_HEADER_BYTES + STAMPED_BYTES, 6: V6_HEADER_BYTES + STAMPED_BYTES}
"""Bytes of the IP and TCP headers, by the version of IP."""

PROTOCOLS = {4: ETH_P_IP, 6: ETH_P_IPV6}
_MAPPED = b"\0" * 10 + b"\xff\xff"


class FakeTcpSocket:
    """`flows`: None while a client has no tap. The others: see DatagramSocket."""

    is_marked = False

    interface = 0

    def __init__(self) -> None:
        self.flows: FakeTcp | None = None
        self.memory = memoryview(bytearray(PAYLOAD_BYTES_MAX))
        self.size = self.segment_bytes = 0
        self.source: tuple[Any, ...] = ()
        self.waited_ns = 0
        self._epoll = select.epoll()
        self._opened_before = 0

    @property
    def opened(self) -> int:
        return self._opened_before + (self.flows.opened if self.flows is not None else 0)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def _watch(self, flows: FakeTcp) -> None:
        for fd in flows.fds:
            self._epoll.register(fd, select.EPOLLIN)

    def receive(self) -> bool:
        """False if nothing is there."""
        found = self.flows.receive(self.memory, time.monotonic_ns()) if self.flows is not None else None
        if found is None:
            self.size = 0
            return False
        self.size, self.segment_bytes, self.source, self.waited_ns = found
        return True

    def source_address(self) -> Address:
        return Address(*self.source)

    def answer_ancillary(self) -> Ancillary:
        return []

    def address_of(self, host: bytes, port: int, scope: int) -> tuple[Any, ...] | None:
        if host.startswith(_MAPPED):
            return socket.inet_ntop(socket.AF_INET, host[-4:]), port
        return socket.inet_ntop(socket.AF_INET6, host), port

    def send(self, datagram: memoryview, address: tuple[Any, ...], ancillary: Ancillary) -> int:
        """0, or the error."""
        if self.flows is None:
            return errno.ENOTCONN
        size = len(datagram)
        try:
            self.flows.send([datagram], size, size, (address[0], address[1]), time.monotonic_ns())
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def reaches(self, address: tuple[Any, ...]) -> bool:
        return self.flows is not None and self.flows.has_flow((address[0], address[1]))

    def begin(self) -> None: ...

    def rest(self, now: int) -> None: ...

    def doubt(self) -> None: ...

    def tick(self, now: int) -> None:
        if self.flows is not None:
            self.flows.tick(now)

    def close(self) -> None:
        if self.flows is not None:
            self.flows.close()
        self._epoll.close()


class ServerFakeTcpSocket(FakeTcpSocket):
    """`taps`: descriptors by version of IP; -1: there is none. `listener`: a descriptor, too."""

    def __init__(self, taps: dict[int, int], listener: int, counters: memoryview) -> None:
        super().__init__()
        made = {PROTOCOLS[version]: socket.socket(fileno=fd) for version, fd in taps.items() if fd >= 0}
        listening = socket.socket(fileno=listener)
        for sock in (*made.values(), listening):
            sock.setblocking(False)
        self.flows = ServerFakeTcp(made, listening, counters)
        self._watch(self.flows)


class ClientFakeTcpSocket(FakeTcpSocket):
    """`channel`: the descriptor by which taps come."""

    def __init__(self, channel: int, lane: int, lanes: int, counters: memoryview) -> None:
        super().__init__()
        self._channel = socket.socket(fileno=channel)
        self._channel.setblocking(False)
        self._lane, self._lanes = lane, lanes
        self._counters = counters
        self._flow_of_client: ClientFakeTcp | None = None
        self._is_used = False
        self._ending: list[tuple[int, FakeTcp]] = []  # until when
        self._follow_channel(time.monotonic_ns())

    def begin(self) -> None:
        self._is_used = True
        if self._flow_of_client is not None:
            self._flow_of_client.is_wanted = True

    def rest(self, now: int) -> None:
        self._is_used = False
        if self._flow_of_client is not None:
            self._flow_of_client.rest(now)

    def doubt(self) -> None:
        if self._flow_of_client is not None:
            self._flow_of_client.doubt()

    def tick(self, now: int) -> None:
        self._follow_channel(now)
        super().tick(now)
        while self._ending and now >= self._ending[0][0]:
            self._ending.pop(0)[1].close()

    def _follow_channel(self, now: int) -> None:
        found = tap_channel.receive(self._channel)
        if found is None:
            return
        before, self.flows = self._flow_of_client, None
        if before is not None:
            self._opened_before += before.opened
            for fd in before.fds:
                self._epoll.unregister(fd)
            before.finish(now)
            self._ending.append((now + FINISHING_NS, before))
        server, tap = found
        self._flow_of_client = self.flows = None if tap is None else self._made(server, tap)
        if self.flows is not None:
            self._watch(self.flows)

    def _made(self, server: TapServer, tap: socket.socket) -> ClientFakeTcp:
        host, port, scope = server
        tap.setblocking(False)
        address = self.address_of(host, port, scope)
        assert address is not None
        protocol = ETH_P_IPV6 if ":" in address[0] else ETH_P_IP
        made = ClientFakeTcp({protocol: tap}, (address[0], port), scope, self._lane, self._lanes, self._counters)
        made.is_wanted = self._is_used
        return made

    def close(self) -> None:
        for _, flows in self._ending:
            flows.close()
        self._channel.close()
        super().close()
