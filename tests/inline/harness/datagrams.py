"""What dgram workers of two ends in one process need, and what stands between them.

DatagramParts     what the supervisor makes for the dgram workers of an end: secrets, a socket and a memory of each
                  lane
share_secrets     a session of two ends gets secrets for datagrams
DatagramWay       a relay on the loopback that loses, keeps or repeats datagrams as the test says; stepped like an
                  end
BlockWay          carries whole blocks from ring to ring, without datagrams: what stands beside the dgram workers
                  is tested with it
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.fec import shard
from pipeline.policy.carrier_order import Kind
from pipeline.policy.lane_pairs import own_lane
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.port import Port
from pipeline.runtime.worker import DONE, NOTHING, Attachment, Duty
from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable, DatagramServer
from pipeline.shm.layout import (
    DATAGRAM_PATH,
    DATAGRAM_RECEIVED_BYTES,
    DATAGRAM_SENT_BYTES,
    PEER_INDEX_MASK,
    RECORD_WORDS,
    SLOT_HEADER_BYTES,
)
from pipeline.shm.slot import read_header_and_runs, read_marks, write_header
from pipeline.supervisor.kernel.fake_tcp_sockets import ClientFakeTcpSockets, ServerFakeTcpSockets
from pipeline.wire import framing

if TYPE_CHECKING:
    from tests.inline.harness.ends import End

SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32  # asm-generic/socket.h
UDP_GRO = 104  # linux/udp.h
IP_PKTINFO, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 8, 10, 3  # linux/in.h
BUFFER_BYTES = 8 << 20
DATAGRAM_BYTES = 1 << 16
LOOPBACK = "127.0.0.1"

DutiesMaker = Callable[[Attachment, WorkerFds], list[Duty]]


def listen(port: int, backlog: int) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on the loopback that share this port, or one that is free for both."""
    while True:
        listener = socket.create_server((LOOPBACK, port), backlog=backlog)
        try:
            return listener, udp_socket(listener.getsockname()[1])
        except OSError as error:
            listener.close()
            if port or error.errno != errno.EADDRINUSE:
                raise


def udp_socket(port: int = 0) -> socket.socket:
    """A UDP socket on the loopback as the supervisor makes it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_REUSEPORT, int(bool(port))),
        (socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES),
        (socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES),
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE),
        (socket.IPPROTO_IP, IP_PKTINFO, 1),
        (socket.IPPROTO_IP, socket.IP_RECVTOS, 1),
        (socket.IPPROTO_UDP, UDP_GRO, 1),
    ):
        sock.setsockopt(level, option, value)
    try:
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock


def free_tcp_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as found:
        return int(found.getsockname()[1])


class DatagramParts:
    """`first`: the socket of a server's lane 0; the others share its port. Those of a client have one each. `listener`:
    that of a server. `kinds`: of datagrams."""

    def __init__(
        self,
        lanes: int,
        capacity: int,
        first: socket.socket | None = None,
        listener: socket.socket | None = None,
        kinds: Sequence[Kind] = (Kind.UDP,),
    ) -> None:
        self._kinds = kinds
        self.fake_tcp: ServerFakeTcpSockets | ClientFakeTcpSockets | None = None
        if Kind.FAKE_TCP in kinds:
            self.fake_tcp = (
                ClientFakeTcpSockets(lanes)
                if listener is None
                else ServerFakeTcpSockets(listener, free_tcp_port(), lanes)
            )
        self.secrets, self._secrets_fd = DatagramSecretTable.create(capacity)
        port = first.getsockname()[1] if first else 0
        self.sockets = [first or udp_socket(), *(udp_socket(port) for _ in range(1, lanes))]
        self._memory_fds = [os.memfd_create("datagrams", os.MFD_CLOEXEC) for _ in range(lanes)]
        for fd in self._memory_fds:
            os.ftruncate(fd, DatagramMemory.bytes_of(capacity))

    def fds(self, lane: int) -> WorkerFds:
        """Those of a new worker of this lane. The socket is a descriptor of its own, which the worker closes."""
        fds = {} if self.fake_tcp is None else self.fake_tcp.fds(lane)
        if Kind.UDP in self._kinds:
            fds["datagrams"] = self.sockets[lane].fileno()
        return WorkerFds(
            datagram_secrets=self._secrets_fd,
            datagram_memory=self._memory_fds[lane],
            **{name: os.dup(fd) for name, fd in fds.items()},
        )

    def close(self) -> None:
        self.secrets.close()
        if self.fake_tcp is not None:
            self.fake_tcp.close()
        for sock in self.sockets:
            sock.close()
        for fd in (self._secrets_fd, *self._memory_fds):
            os.close(fd)


def share_secrets(server: End, client: End, peer: int = 0, port: int = 0) -> None:
    """Let blocks between the client and the server's peer of this index travel in datagrams, to this port or straight
    to the server's."""
    one_way, other_way = os.urandom(32), os.urandom(32)
    fake_tcp = server.datagrams.fake_tcp
    fake_tcp_port = fake_tcp.port if isinstance(fake_tcp, ServerFakeTcpSockets) else 0
    at = DatagramServer.at(LOOPBACK, port or server.port, 0, fake_tcp_port)
    if isinstance(client.datagrams.fake_tcp, ClientFakeTcpSockets):
        client.datagrams.fake_tcp.lead_to(at)
    for end, index, where, send, receive in (
        (server, peer, DatagramServer(), one_way, other_way),
        (client, 0, at, other_way, one_way),
    ):
        peer_handle = end.memory.peer_table.peer_handle(index)
        assert peer_handle
        end.datagrams.secrets.write(
            DatagramSecrets(
                peer_handle, AES_256_GCM, where.host, where.port, send, receive, where.scope, where.fake_tcp_port
            )
        )


class DatagramWay:
    """Leads datagrams that come to `port` to the server, each source from a socket of its own, and back.

    `fate(number, to_server, datagram)` says what becomes of a datagram: how often it is delivered. Datagrams are
    numbered from 0 on, in each direction. `keeps`: while it is true, datagrams wait here.
    """

    def __init__(self, server_port: int, fate: Callable[[int, bool, bytes], int] = lambda *about: 1) -> None:
        self._server = (LOOPBACK, server_port)
        self._socket = _plain_socket()
        self._socket.bind((LOOPBACK, 0))
        self.port = self._socket.getsockname()[1]
        self.fate = fate
        self.keeps = False
        self._far: dict[tuple, socket.socket] = {}  # by the address of a client's socket
        self._kept: deque[tuple[bool, tuple, bytes]] = deque()
        self._seen = {True: 0, False: 0}
        self._lost = 0

    def step(self) -> int:
        found = 0
        for data, near in _received(self._socket):
            found += 1
            self._kept.append((True, near, data))
        for near, far in self._far.items():
            for data, _ in _received(far):
                found += 1
                self._kept.append((False, near, data))
        while self._kept and not self.keeps:
            self._deliver(*self._kept.popleft())
        return found

    def _deliver(self, to_server: bool, near: tuple, data: bytes) -> None:
        times = self.fate(self._seen[to_server], to_server, data)
        self._seen[to_server] += 1
        self._lost += not times
        for _ in range(times):
            if to_server:
                self._far_of(near).send(data)
            else:
                self._socket.sendto(data, near)

    def _far_of(self, near: tuple) -> socket.socket:
        if near not in self._far:
            sock = self._far[near] = _plain_socket()
            sock.connect(self._server)
        return self._far[near]

    def move(self) -> None:
        """All clients have other addresses from now on, as behind a NAT that has forgotten them."""
        for sock in self._far.values():
            sock.close()
        self._far.clear()

    def counts(self) -> dict[str, int]:
        return {"to the server": self._seen[True], "to clients": self._seen[False], "lost": self._lost}

    def close(self) -> None:
        self._socket.close()
        self.move()


def _plain_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return sock


def _received(sock: socket.socket) -> list[tuple[bytes, tuple]]:
    found = []
    try:
        while True:
            found.append(sock.recvfrom(DATAGRAM_BYTES))
    except (BlockingIOError, ConnectionRefusedError):
        return found


class BlockWay:
    """Both ends get `duties` as the maker of the duties of their dgram workers; then `connect` joins a client with a
    peer of the server. While it `is_open`, the workers publish that there is a path. Blocks that come while it is not
    open are given back.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.carried = 0
        self._leads: dict[tuple[int, int], tuple[int, int]] = {}  # peer table, peer handle: those of the other end
        self.waiting: dict[tuple[int, int], deque[tuple[int, bytes]]] = {}  # peer table, lane: peer handle and block
        self._tables: dict[str, int] = {}  # name of the peer table: a number of its own

    def duties(self, attachment: Attachment, fds: WorkerFds) -> list[Duty]:
        os.close(fds.datagrams)
        return [_BlockSender(attachment, self), _BlockReceiver(attachment, self)]

    def connect(self, server: End, client: End, peer: int = 0) -> None:
        sides = [
            (self.number_of(end.memory.peer_table.memory.name), end.memory.peer_table.peer_handle(index))
            for end, index in ((server, peer), (client, 0))
        ]
        self._leads |= {sides[0]: sides[1], sides[1]: sides[0]}

    def number_of(self, table: str) -> int:
        return self._tables.setdefault(table, len(self._tables))

    def handles_of(self, table: int) -> list[int]:
        return [handle for number, handle in self._leads if number == table]

    def send(self, table: int, lane: int, peer_handle: int, block: bytes) -> bool:
        """Give a block to the worker of this lane at the other end, or of lane 0 if it has fewer."""
        to = self._leads.get((table, peer_handle))
        if not self.is_open or to is None:
            return False
        number, handle = to
        queue = self.waiting.get((number, lane))
        (self.waiting[number, 0] if queue is None else queue).append((handle, block))
        self.carried += 1
        return True


class _BlockSender:
    """Acts on the slots that name this worker, and passes over all others."""

    name = "outbound"

    def __init__(self, attachment: Attachment, way: BlockWay) -> None:
        self._ports = [
            (kind, port) for kind in ("light", "plain", "transit") for port in attachment.ports(self.name, kind)
        ]
        (self._returned,) = attachment.ports(self.name, "returned")
        self._tcp = LinkView(attachment, datagrams=False)
        self._bell = attachment.doorbells[self.name]
        self._lane = attachment.worker.lane
        self._sent = attachment.peer_table.datagrams_out[self._lane]
        self._way = way
        self._table = way.number_of(attachment.peer_table.memory.name)

    def work(self) -> int:
        found = NOTHING
        for kind, port in self._ports:
            for _ in range(port.ready()):
                if not self._pass(kind, port):
                    break
                found = DONE
        return found

    def _pass(self, kind: str, port: Port) -> bool:
        """Act on the next slot. False if it has to wait."""
        slot = port.slot()
        start, length, consumer, peer_handle, runs = read_header_and_runs(slot)
        if consumer == port.position and not runs:
            block = bytes(slot[start : start + length])
            if self._way.send(self._table, self._lane, peer_handle, block):
                self._sent[(peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + DATAGRAM_SENT_BYTES] += length
            elif not self._give_back(kind == "light" or bool(read_marks(slot)[0] & framing.LIGHT), peer_handle, block):
                return False
        port.advance(1)
        return True

    def _give_back(self, is_light: bool, peer_handle: int, block: bytes) -> bool:
        if not self._returned.ready():
            return False
        link = self._tcp.state(peer_handle & PEER_INDEX_MASK)
        slot, end = self._returned.slot(), SLOT_HEADER_BYTES + len(block)
        slot[SLOT_HEADER_BYTES:end] = block
        consumer = link.light_consumer if is_light else link.bulk_consumer
        write_header(slot, SLOT_HEADER_BYTES, len(block), consumer, peer_handle, int(is_light))
        self._returned.advance(1)
        return True

    def wait(self, seconds: float) -> None:
        self._bell.wait(lambda: any(port.ready() for _, port in self._ports), seconds)

    def drained(self) -> bool:
        return True


class _BlockReceiver:
    """Puts each block that has come into a slot of the arrived ring, and publishes whether there is a path."""

    name = "inbound"

    def __init__(self, attachment: Attachment, way: BlockWay) -> None:
        (self._port,) = attachment.ports(self.name, "arrived")
        self._bell = attachment.doorbells[self.name]
        self._lanes = attachment.plan.lanes
        self._words = attachment.peer_table.datagrams_in[attachment.worker.lane]
        self._way = way
        self._table = way.number_of(attachment.peer_table.memory.name)
        self._waiting = way.waiting[self._table, attachment.worker.lane] = deque()

    def work(self) -> int:
        for handle in self._way.handles_of(self._table):
            at = (handle & PEER_INDEX_MASK) * RECORD_WORDS
            self._words[at + DATAGRAM_PATH] = handle if self._way.is_open else 0
        found = NOTHING
        while self._waiting and self._port.ready():
            self._put(*self._waiting.popleft())
            found = DONE
        return found

    def _put(self, peer_handle: int, block: bytes) -> None:
        slot, end = self._port.slot(), SLOT_HEADER_BYTES + len(block)
        slot[SLOT_HEADER_BYTES:end] = block
        peer = peer_handle & PEER_INDEX_MASK
        told = shard.lane_of(slot, SLOT_HEADER_BYTES, len(block) - framing.LENGTH.size, sealed=True)
        is_light = shard.SEALED_RUN.unpack_from(block)[2] & framing.LIGHT
        write_header(slot, SLOT_HEADER_BYTES, len(block), own_lane(told, peer, self._lanes), peer_handle, int(is_light))
        self._port.advance(1)
        self._words[peer * RECORD_WORDS + DATAGRAM_RECEIVED_BYTES] += len(block)

    def wait(self, seconds: float) -> None:
        self._bell.wait(lambda: bool(self._waiting), seconds)

    def drained(self) -> bool:
        return True
