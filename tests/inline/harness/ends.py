"""Both ends of a tunnel in one process and one thread, stepped by hand: no supervisor, no TUN, no waiting.

    End               one instance: its shared memory, and for each worker an Attachment with its duties, built as
                      `workers` builds them
    Peer              a peer written by hand from docs/wire.md, on a plain socket: it sends what an End never would
    HandmadeServer    a listening socket whose connections are Peers
    until             step some ends until a condition holds, with a deadline

A TUN queue is one end of a UNIX datagram socket pair. One read is one packet with its virtio-net header, and the queue
can be full. The test holds the other end; packets that arrive there are collected in `received`, by lane.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, TypeVar

from pipeline.config import parse
from pipeline.peers.admission import Admission, Seals
from pipeline.peers.compat_admission import CompatAdmission
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.policy.carrier_order import Kind
from pipeline.runtime import topology
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.supervisor_channel import Answer, Verdict
from pipeline.runtime.worker import Attachment, Duty
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.slot import SLOT_BYTES_MIN
from pipeline.supervisor.kernel.congestion import CongestionControl
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.roles.client_sealing import ClientSealing
from pipeline.supervisor.roles.prover import Prover
from pipeline.supervisor.run.failures import Failures
from pipeline.supervisor.run.reach_memory import ReachMemory
from pipeline.supervisor.run.seal_memory import SealMemory
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.supervisor.run.worker_settings import BYTES_PER_KBIT
from pipeline.wire import messages
from tests.harness.settings import WORKER_SETTINGS
from tests.inline.harness.datagrams import DatagramParts, DutiesMaker, listen
from workers.dgram import duties as dgram
from workers.tcp import duties as tcp
from workers.tun import duties as tun
from workers.tun.bulk_packer import BulkPacker

SO_SNDBUFFORCE = 32  # asm-generic/socket.h
TUN_BUFFER_BYTES = 4 << 20
PAUSE_SECONDS = 0.0005
TURN_SECONDS_MAX = 0.5
"""So much of a turn counts: the rest of it, this process did not run."""

PACKET_READ_BYTES = 1 << 17

EVERYTHING = [(bytes(4), 0, FIRST_PEER_HANDLE), (bytes(16), 0, FIRST_PEER_HANDLE)]

T = TypeVar("T")
Make = Callable[..., "End"]
Dial = Callable[..., "Peer"]


class Worker:
    """One generation of a worker: its attachment to shared memory and its duties."""

    def __init__(self, attachment: Attachment, duties: list[Duty]) -> None:
        self.attachment = attachment
        self.duties = duties

    def duty(self, name: str) -> Duty:
        return next(duty for duty in self.duties if duty.name == name)

    def step(self) -> int:
        found = 0
        for duty in self.duties:
            duty.wait(0)
            found += bool(duty.work())
        return found

    def close_descriptors(self) -> None:
        """Close every descriptor of the worker, as the kernel does when the process dies."""
        for duty in self.duties:
            if isinstance(duty, tcp.Receiver):
                duty.connections.close_descriptors()
            elif hasattr(duty, "close_descriptors"):  # of a dgram worker
                duty.close_descriptors()


class End:
    """One instance. A server listens on a free port of the loopback; a client dials `port`.

    A server of several peers (`capacity`) has the addresses `inside`, and admits `connections_max` connections of each;
    `hub` is its supervisor's part. With compat it is a hub if it has `client_subnets`. `prover` is that of a client
    with a key. With `reach` its tun workers follow rules, which a test writes. While `supervisor_stands_still`,
    requests of workers wait in their channels.
    With a `carrier` other than "tcp" there are dgram workers, whose duties `dgram` makes (`harness.datagrams`);
    `kinds`: of their datagrams.
    """

    def __init__(
        self,
        mode: str,
        lanes: int = 1,
        slots: int = 4,
        port: int = 0,
        seed: int = 0,
        capacity: int = 1,
        inside: Sequence[str] = ("10.0.0.1/24", "fd00::1/64"),
        connections_max: int = 40,
        seals: bool = False,
        split: Sequence[str] = (),
        reach: bool = False,
        dgram: DutiesMaker = dgram.duties,
        kinds: Sequence[Kind] = (Kind.UDP,),
        **settings: Any,
    ) -> None:
        known = WORKER_SETTINGS._replace(remote_port=port)._replace(**settings)
        self.seal_memory = SealMemory(capacity, lanes) if seals else None
        self.reach_memory = ReachMemory(lanes) if reach else None
        self._sealing: ClientSealing | None = None
        self._processes = itertools.count(1)
        if self.seal_memory is not None:
            known = known._replace(seals=True)
            if mode == "client":
                self._sealing = ClientSealing(self.seal_memory.keys)
                known = known._replace(key_share=self._sealing.key_share.hex())
        self.plan = topology.build_plan(
            "inlinetest", secrets.token_hex(4), mode, lanes, slots, SLOT_BYTES_MIN, known, capacity, split=split
        )
        self.memory = SharedMemory(self.plan)
        self.hub: Admission | None = None
        self.prover: Prover | None = None
        self.supervisor_stands_still = False
        self.notes: list[tuple[int, bytes]] = []  # that have come for the supervisor, with the peer handle of each
        answer: Callable[[Any], Any] = self._prove
        config = {"mode": "server", "insecure": True, "max_clients": capacity, "tunnel_addr": list(inside)}
        if known.client_subnets:
            answer = CompatAdmission(
                parse(config | {"compat": True}),
                self.memory.peer_table,
                tell_workers=lambda doubted: self._channels.send_to_all(doubted),
            ).handle_request
        elif mode == "server" and not known.compat:
            config |= {"encryption": "none", "multi_client": capacity > 1, "mtu": known.mtu, "fec": known.fec}
            config["multicast_kbit"] = known.multicast_rate // BYTES_PER_KBIT
            self.hub = Admission(
                parse(config | {"max_connections_per_client": connections_max}),
                self.memory.peer_table,
                known.offloads_accepted,
                {},
                save=lambda addresses: None,
                tell_workers=lambda replaced: self._channels.send_to_all(replaced),
                seals=self._seals(),
            )
            answer = self._admit
        elif self._sealing is not None:
            self._sealing.start(self.memory.peer_table, time.monotonic_ns())
        else:
            self.memory.peer_table.write_routes(EVERYTHING)
            self.memory.peer_table.write_record(FIRST_PEER_HANDLE, 0)
        self._selector = selectors.DefaultSelector()
        congestion = CongestionControl(parse(config | {"encryption": "none", "congestion": known.congestion}))
        self._channels = WorkerChannels(answer, self._selector, Failures(), congestion.set_on)
        self._random = random.Random(seed)
        self._listener: socket.socket | None = None
        datagram_socket: socket.socket | None = None
        if mode == "server":
            if known.datagrams:
                self._listener, datagram_socket = listen(port, backlog=64)
            else:
                self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
            self._listener.setblocking(False)
        self._make_datagram_duties = dgram
        self.datagrams: DatagramParts | None = None
        if known.datagrams:
            self.datagrams = DatagramParts(lanes, capacity, datagram_socket, self._listener, kinds)
        self.outside: list[socket.socket] = []
        self._device_sides: list[socket.socket] = []
        for _ in range(lanes):
            outside, device_side = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for sock in (outside, device_side):
                sock.setblocking(False)
                enlarge(sock)
            self.outside.append(outside)
            self._device_sides.append(device_side)
        self.written = 0
        self.received: list[list[bytes]] = [[] for _ in range(lanes)]
        self.workers: dict[str, Worker] = {}
        for worker in self.plan.workers:
            self.start(worker.name)

    def _seals(self) -> Seals | None:
        if self.seal_memory is None:
            return None
        return Seals(SealedSessions(self.seal_memory.keys, self.memory.peer_table), AES_256_GCM)

    def _admit(self, request: Any) -> Answer | None:
        assert self.hub is not None
        if "heard" in request:
            self.notes.append((request["peer_handle"], bytes.fromhex(request["heard"])))
        if "ended" in request or "heard" in request:
            return None
        return self.hub.judge_knock(request) if "knock" in request else self.hub.handle_hello(request)

    def _prove(self, request: Any) -> Answer | None:
        if "heard" in request:
            self.notes.append((request["peer_handle"], bytes.fromhex(request["heard"])))
        if "trouble" in request or "heard" in request:
            return None
        now = time.monotonic_ns()
        if self._sealing is not None and "welcome" in request:
            welcome = messages.decode(bytes.fromhex(request["welcome"]))
            assert isinstance(welcome, messages.Welcome)
            seal, distrust = self._sealing.take(request, welcome.key_share, b"", self.plan.settings, now)
            verdict = Verdict(serial=request["serial"], distrust=distrust)
            return verdict if seal is None else verdict | {"seal": seal}
        if self.prover is None:
            return None
        return self.prover.judge(request, now) if "welcome" in request else self.prover.prove(request, now)

    def tick_epochs(self, now: int) -> None:
        """Let the supervisor of this end look at its epochs, at a time of the test's own."""
        if self._sealing is not None:
            self._sealing.tick(now)
        else:
            self.hub.tick(now)

    # -- workers

    def start(self, name: str) -> Worker:
        """Start a worker, or its successor."""
        attachment = Attachment(self.plan, name, next(self._processes))
        listen_fd = os.dup(self._listener.fileno()) if self._listener else None
        if attachment.worker.kind == "tun":
            lane = attachment.worker.lane
            sealed = self.seal_memory.fds(lane) if self.seal_memory is not None else {}
            rules = self.reach_memory.fds() if self.reach_memory is not None else {}
            fds = WorkerFds(tun=self._device_sides[lane].fileno(), **sealed, **rules)
            duties = tun.duties(attachment, fds)
            for duty in duties:
                if isinstance(duty, tun.TunReader):
                    duty._offloads_in_force = 0  # a socket takes none, and the other end accepts none
            if listen_fd is not None:
                os.close(listen_fd)
        elif attachment.worker.kind == "fec":
            from workers.fec import duties as fec

            duties = fec.duties(attachment, WorkerFds())
            if listen_fd is not None:
                os.close(listen_fd)
        elif attachment.worker.kind == "dgram":
            duties = self._make_datagram_duties(attachment, self.datagrams.fds(attachment.worker.lane))
            if listen_fd is not None:
                os.close(listen_fd)
        else:
            fds = WorkerFds(
                listener=-1 if listen_fd is None else listen_fd, supervisor=self._channels.open_channel(name)
            )
            duties = tcp.duties(attachment, fds)
        self.workers[name] = Worker(attachment, duties)
        return self.workers[name]

    def send_note(self, peer_handle: int, note: bytes) -> None:
        """As the supervisor does."""
        self._channels.send_to_all({"note": note.hex(), "peer_handle": peer_handle})

    def kill(self, name: str) -> None:
        """End a worker between two steps, as SIGKILL does."""
        self.workers.pop(name).close_descriptors()

    def step(self, *names: str) -> int:
        """One turn of these workers, or of all of them in a random order."""
        order = list(names) or self._random.sample(sorted(self.workers), len(self.workers))
        found = sum(self.workers[name].step() for name in order)
        for key, _ in [] if self.supervisor_stands_still else self._selector.select(0):
            key.data()
            found += 1
        for lane, sock in enumerate(self.outside):
            self.received[lane] += arrived(sock)
        return found

    # -- what can be seen

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def count(self, name: str) -> int:
        return self.memory.scoreboard.totals()[name]

    def counts(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: value for name, value in self.memory.scoreboard.totals().items() if value}

    def established(self) -> int:
        return sum(self.memory.peer_table.established_count(peer) for peer in range(self.memory.peer_table.capacity))

    def packets(self) -> list[bytes]:
        """The packets that have arrived, of all lanes."""
        return list(itertools.chain(*self.received))

    def write(self, packet: bytes, lane: int = 0) -> None:
        """Queue a packet for the TUN reader, as the kernel does; BlockingIOError when the queue is full."""
        self.outside[lane].send(packet)
        self.written += 1

    def free_slots(self, lane: int = 0) -> int:
        """Slots that the TUN reader of a lane may fill with bulk."""
        (name,) = [each.name for each in self.plan.named(f"tun-{lane}") if "outbound" in each.duties]
        reader = self.workers[name].duty("outbound")
        assert isinstance(reader, tun.TunReader)
        packer = reader._packer
        port = packer._next_ring.port if isinstance(packer, BulkPacker) else packer._next_port
        return port.ready()

    def has_room(self, lane: int = 0) -> bool:
        """Whether one more packet finds a slot, so that none is dropped for want of one."""
        return self.written - self.count("tun.packets_read") < self.free_slots(lane)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close_descriptors()
        self.workers.clear()
        for sock in [*self.outside, *self._device_sides, *([self._listener] if self._listener else [])]:
            sock.close()
        self._channels.close_all()
        self._selector.close()
        self.memory.unlink()
        if self.seal_memory is not None:
            self.seal_memory.close()
        if self.reach_memory is not None:
            self.reach_memory.close()
        if self.datagrams is not None:
            self.datagrams.close()


def enlarge(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, TUN_BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TUN_BUFFER_BYTES)


def arrived(sock: socket.socket) -> list[bytes]:
    packets = []
    try:
        while True:
            packets.append(sock.recv(PACKET_READ_BYTES))
    except BlockingIOError:
        return packets


def until(condition: Callable[[], T | None], *ends: End, seconds: float = 10.0, what: str = "") -> T:
    """Step the ends until the condition gives something true, and return it. AssertionError after `seconds`."""
    left, began = seconds, time.monotonic()
    pause = threading.Event()
    while True:
        found = sum(end.step() for end in ends)
        value = condition()
        if value:
            return value
        before, began = began, time.monotonic()
        left -= min(began - before, TURN_SECONDS_MAX)
        if left < 0:
            shown = "; ".join(str(end.counts()) for end in ends)
            raise AssertionError(f"not within {seconds:g} s: {what or condition}; counters: {shown}")
        if not found:
            pause.wait(PAUSE_SECONDS)


def step_for(seconds: float, *ends: End) -> None:
    """Step the ends for so many seconds."""
    over = time.monotonic() + seconds
    until(lambda: time.monotonic() > over, *ends, seconds=seconds + 10)


# -- packets


def ipv4(number: int, size: int = 60, vnet: bytes = bytes(10)) -> bytes:
    """A sound IPv4 packet of `size` bytes that carries a number, behind a virtio-net header; all are of one flow."""
    head = struct.pack(">BBHQ8s", 0x45, 0, size, number, b"\x0a\0\0\1\x0a\0\0\2")
    return (vnet + head + random.Random(number).randbytes(max(0, size - len(head))))[: len(vnet) + size]


def ipv6(number: int, size: int = 60, vnet: bytes = bytes(10)) -> bytes:
    head = struct.pack(">IHBB32sQ", 6 << 28, size - 40, 59, 64, b"\xfd".ljust(32, b"\1"), number)  # 59: no next header
    return (vnet + head + random.Random(number).randbytes(max(0, size - len(head))))[: len(vnet) + size]


def number_of(packet: bytes) -> int:
    """The number that a packet carries."""
    at = 10 + (4 if packet[10] >> 4 == 4 else 40)
    return struct.unpack_from(">Q", packet, at)[0]


# -- a peer written by hand

DATA, KEEPALIVE, HELLO, WELCOME, REFUSED, BLOCK = 0x01, 0x02, 0x10, 0x11, 0x12, 0x20


def frame(kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">IB", 1 + len(body), kind) + body


def hello(
    client: int = 1,
    session: int = 1,
    index: int = 0,
    version: int = 2,
    offloads: int = 0,
    connections: int = 1,
    traffic_class: int = 0,
    features: int = 0,
    requested: Sequence[str] = (),
) -> bytes:
    addresses = [ip_address(each) for each in requested]
    return frame(
        HELLO,
        b"tnl\x01"
        + struct.pack(
            ">BBHHHQQBB", version, offloads, index, connections, 1400, client, session, traffic_class, features
        )
        + bytes(1 + 8 + 32)
        + bytes([len(addresses)])
        + b"".join(bytes([each.version]) + each.packed for each in addresses),
    )


def welcome(offloads: int = 0, features: int = 0) -> bytes:
    return frame(WELCOME, struct.pack(">BBHB", 2, offloads, 1400, features) + bytes(32 + 1 + 2))


def block_of(*packets: bytes) -> bytes:
    return frame(BLOCK, struct.pack(f">H{len(packets)}I", len(packets), *map(len, packets)) + b"".join(packets))


def packets_in(body: bytes) -> list[bytes]:
    """The packets of a block's body."""
    (count,) = struct.unpack_from(">H", body)
    at = 2 + 4 * count
    packets = []
    for length in struct.unpack_from(f">{count}I", body, 2):
        packets.append(body[at : at + length])
        at += length
    assert at == len(body)
    return packets


class Peer:
    """One connection in the test's own hand. `frames`: (type, body) of the whole frames that have arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._buffer = b""
        self.frames: list[tuple[int, bytes]] = []
        self.ended = False
        self.was_reset = False

    @classmethod
    def dial(cls, port: int, receive_buffer: int = 0) -> Peer:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", port))
        return cls(sock)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_frames(self) -> Peer:
        """Read all that has arrived, and append its whole frames to `frames`."""
        try:
            while not self.ended:
                data = self.socket.recv(1 << 16)
                self._buffer += data
                self.ended = not data
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.ended = self.was_reset = True
        while len(self._buffer) >= 4:
            (length,) = struct.unpack_from(">I", self._buffer)
            if len(self._buffer) < 4 + length:
                break
            if length:
                self.frames.append((self._buffer[4], self._buffer[5 : 4 + length]))
            self._buffer = self._buffer[4 + length :]
        return self

    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.read_frames().frames]

    def packets(self) -> list[bytes]:
        return [packet for kind, body in self.read_frames().frames if kind == BLOCK for packet in packets_in(body)]

    def reset(self) -> None:
        """Close with a reset: all bytes on the way are lost."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class HandmadeServer:
    """A server written by hand; its connections are Peers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.peers: list[Peer] = []

    def accept(self) -> Peer | None:
        try:
            self.peers.append(Peer(self._listener.accept()[0]))
        except BlockingIOError:
            return None
        return self.peers[-1]

    def admit(self, client: End) -> Peer:
        """Accept the client's next connection and welcome it."""
        peer = until(self.accept, client)
        until(lambda: HELLO in peer.kinds(), client)
        before = client.count("tcp.connections_established")
        peer.send(welcome())
        until(lambda: client.count("tcp.connections_established") > before, client)
        peer.frames.clear()
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self._listener.close()


def ended(peer: Peer, end: End) -> None:
    """Step until the other side has closed this connection."""
    until(lambda: peer.read_frames().ended, end)


# -- what tests do


def pair(make: Make, lanes: tuple[int, int] = (1, 1), connections: int = 1, **settings: object) -> tuple[End, End]:
    """Server and client with so many lanes each, connected."""
    server = make("server", lanes=lanes[0], **settings)
    client = make(
        "client", lanes=lanes[1], port=server.port, connections=connections, client_id=1, session=1, **settings
    )
    every = connections + settings.get("light_connections", 0)
    until(lambda: server.established() == client.established() == every, server, client)
    return server, client


def push(end: End, packets: list[bytes]) -> bool:
    """Write as many of the packets as there is room for, and remove them from the list; True when none is left."""
    while packets and end.has_room():
        end.write(packets[0])
        del packets[0]
    return not packets


def carry(sender: End, receiver: End, packets: list[bytes]) -> None:
    """Write packets to an end as fast as it takes them, until that many have come out at the other."""
    waiting = list(packets)
    expected = len(receiver.packets()) + len(packets)
    until(lambda: push(sender, waiting) and len(receiver.packets()) >= expected, sender, receiver)
