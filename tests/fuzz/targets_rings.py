"""Targets behind the handshake: a frame reader, and the workers behind its ring. Streams of a peer's frames.

frame_reader   a byte of options, then chunks: by their flags of one connection or the other, or the consumer's turn
inbound        a byte of options, then a stream of frames: through the inbound duties of the workers to the TUN queue
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from pipeline.errors import PeerError
from pipeline.packet import ip
from pipeline.packet.route_table import NO_PEER
from pipeline.packet.vnet import NO_VNET, VNET, VNET_HEADER_BYTES
from pipeline.runtime import topology
from pipeline.runtime.plan import Plan, WorkerFds
from pipeline.runtime.tun import USO
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_BITS
from pipeline.shm.slot import SLOT_BYTES_MIN, read_header, write_header
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.wire import block, framing
from tests.fuzz.byte_source import ByteSource, chunk
from tests.fuzz.fuzzer import Feed
from tests.fuzz.targets_wire import packet_of
from tests.harness import frame_reader
from tests.harness.reassembly import copies, runs
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.udp import udp
from tests.inline.harness.ends import arrived, enlarge
from tests.reference.blocks import block_frame
from tests.reference.packets import echo_request
from workers.fec.duties import duties as fec_duties
from workers.tun.duties import duties as tun_duties

# -- the frame reader

AHEAD, TLS = 0x80, 0x40  # of the options: the first chunk came with the handshake; both connections have TLS
CONSUME, OTHER = 2, 1  # of a chunk


def frame_reader_stream(data: bytes) -> None:
    """Each connection gives the frames that were sent on it, in order, up to the first that is too long."""
    bites = ByteSource(data)
    options = bites.number()
    with frame_reader.harness_of(connections=2, slots=4, tls=bool(options & TLS)) as bench:
        said, begun, ended = [b"", b""], [False, False], [False, False]
        for flags, piece in bites.chunks():
            if flags & CONSUME:
                bench.consume(len(piece))
                continue
            number = flags & OTHER
            connection = bench.sources[number].connection
            said[number] += piece
            if ended[number]:
                continue
            first, begun[number] = not begun[number], True
            try:
                if options & AHEAD and first and piece and bench.port.ready():
                    connection.receive.partial_frame = piece
                    bench.reader.publish_left(connection, bench.port.ready())
                else:
                    bench.send(number, piece)
                    bench.read_all(number)
            except PeerError:
                bench.reader.forget(connection)
                ended[number] = True
        for number in range(2):
            while not ended[number]:
                bench.consume()
                try:
                    bench.read_all(number)
                    ended[number] = bench.port.ready() == bench.ring.capacity  # that was all
                except PeerError:
                    bench.reader.forget(bench.sources[number].connection)
                    ended[number] = True
        bench.consume()
        for number, stream in enumerate(said):
            _came_through(stream, bench.frames(number))


def _came_through(stream: bytes, came: list[bytes]) -> None:
    bodies, at = [], 0
    while len(stream) - at >= 4:
        (length,) = struct.unpack_from(">I", stream, at)
        if length > frame_reader.LIMIT:
            assert (
                frame_reader.with_contents(bodies)[: len(came)] == came
            )  # frames in the chunk of the long one are lost with it
            return
        if at + 4 + length > len(stream):
            break
        bodies.append(stream[at + 4 : at + 4 + length])
        at += 4 + length
    assert frame_reader.with_contents(bodies) == came


def frame_reader_stream_seeds() -> list[bytes]:
    stream = frame_reader.framed([b"", b"\x21" + bytes(40), bytes(300), b"a", bytes(250)])
    most = chunk(frame_reader.framed([bytes(90)] * 2)) * 6  # more than the ring has slots
    halves = chunk(stream[:30]) + chunk(stream[:7], OTHER) + chunk(stream[30:]) + chunk(stream[7:], OTHER)
    return [
        bytes([options]) + each
        for options in (0, AHEAD, TLS)
        for each in (chunk(stream), halves, most + chunk(b"a", CONSUME) + most, chunk(b"\0\0\2\0a"))
    ]


# -- the inbound duties

COMPAT, ONE, SEVERAL, ISOLATED, DECODING = range(5)
LIGHT = 0x40  # of the options: the traffic class of the connection is light
FINISHED = 0x20  # of the options: the other peers accept finished packets alone
PEERS = 4
INSIDE = tuple(bytes([10, 0, 0, 2 + peer]) for peer in range(PEERS))
EVERYTHING = ((bytes(4), 0), (bytes(16), 0))


class Workers:
    """The tun worker of one lane, and the fec worker if there is parity; the test publishes the slots."""

    def __init__(self, kind: int, stack: ExitStack) -> None:
        self.kind = kind
        self.capacity = 1 if kind in (COMPAT, ONE, DECODING) else PEERS
        settings = WORKER_SETTINGS._replace(
            compat=kind == COMPAT,
            client_isolation=kind == ISOLATED,
            fec="on" if kind == DECODING else "off",
            offloads_accepted=USO,
        )
        plan = topology.build_plan(
            "fuzztest", secrets.token_hex(4), "server", 1, 4, SLOT_BYTES_MIN, settings, self.capacity
        )
        self.memory = SharedMemory(plan)
        stack.callback(self._close_memory)
        self._attached = [self._attach(plan, name, stack) for name in ("tcp-0", "tun-0")]
        tcp, tun = self._attached
        self.outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (self.outside, inside):
            stack.enter_context(sock)
            sock.setblocking(False)
            enlarge(sock)
        (self.port,) = tcp.ports("inbound", "inbound")
        self.transit = tcp.ports("outbound", "transit")
        self.duties = tun_duties(tun, WorkerFds(tun=inside.fileno()))[1:]
        if kind == DECODING:
            self.duties = fec_duties(self._attach(plan, "fec-0", stack), WorkerFds())[1:] + self.duties
        self._sessions = 0
        self.peer_handles: list[int] = []

    @staticmethod
    def _attach(plan: Plan, worker: str, stack: ExitStack) -> Attachment:
        attachment = Attachment(plan, worker)
        stack.callback(attachment.close)
        return attachment

    def _close_memory(self) -> None:
        self.memory.unlink()
        for each in self.memory.rings.values():
            each.close()
        self.memory.peer_table.close()
        self.memory.scoreboard.close()

    def start_sessions(self, offloads: int) -> None:
        """Start new sessions of all peers, so that no input sees the traces of another one."""
        self._sessions += 1
        self.peer_handles = [self._sessions << PEER_INDEX_BITS | peer for peer in range(self.capacity)]
        peers = self.memory.peer_table
        routes = (
            [(*each, self.peer_handles[0]) for each in EVERYTHING]
            if self.capacity == 1
            else [
                *((address, 32, peer_handle) for address, peer_handle in zip(INSIDE, self.peer_handles, strict=True)),
                (b"\xfd" * 16, 64, self.peer_handles[1]),
            ]
        )
        peers.write_routes(routes)
        for peer, peer_handle in enumerate(self.peer_handles):
            peers.write_record(peer_handle, 0)
            at = peer * layout.RECORD_WORDS
            peers.links[0][at + layout.LINK_ESTABLISHED] = 1
            peers.links[0][at + layout.LINK_OFFLOADS] = offloads

    def publish(self, stream: bytes, traffic_class: int) -> None:
        slot = self.port.slot()
        start = layout.SLOT_HEADER_BYTES
        slot[start : start + len(stream)] = stream
        write_header(slot, start, len(stream), 0, self.peer_handles[0], traffic_class)
        self.port.advance(1)

    def owner(self, address: bytes) -> int:
        if self.capacity == 1:
            return self.peer_handles[0]
        return dict(zip(INSIDE, self.peer_handles, strict=True)).get(
            address, self.peer_handles[1] if address[:8] == b"\xfd" * 8 else NO_PEER
        )


@contextmanager
def inbound() -> Iterator[Feed]:
    """Only sound packets of the sender reach the kernel; a peer gets only packets for it, which its device accepts."""
    with ExitStack() as stack:
        made: dict[int, Workers] = {}

        def take(data: bytes) -> None:
            bites = ByteSource(data)
            options = bites.number()
            kind = (options & 7) % 5
            workers = made.get(kind) or made.setdefault(kind, Workers(kind, stack))
            stream = memoryview(bites.rest())
            limit = framing.COMPAT_LENGTH_LIMIT if kind == COMPAT else framing.LENGTH_LIMIT
            whole = framing.scan(stream, 0, len(stream), limit)[0]
            workers.start_sessions(0 if options & FINISHED else 0xFF)
            workers.publish(bytes(stream[:whole]), int(bool(options & LIGHT)))
            for duty in workers.duties:
                duty.work()
            _check_queue(workers)
            _check_transit(workers, bool(options & FINISHED))

        yield take


def _check_queue(workers: Workers) -> None:
    for packet in map(memoryview, arrived(workers.outside)):
        assert ip.check(packet, 0, len(packet)) is None
        assert workers.owner(ip.source(packet, 0)) == workers.peer_handles[0]
        if workers.capacity > 1:
            assert workers.owner(ip.destination(packet, 0)) == NO_PEER
            assert not ip.is_multicast(ip.destination(packet, 0))
        if workers.kind == COMPAT:
            assert packet[:VNET_HEADER_BYTES] == NO_VNET


def _check_transit(workers: Workers, finished: bool) -> None:
    for port in workers.transit:
        ready = port.ready()
        assert not ready or workers.kind == SEVERAL
        for ahead in range(ready):
            slot = port.slot(ahead)
            start, length, _, peer_handle = read_header(slot)
            at, lengths = block.lengths(slot, start, start + length)
            for size in lengths:
                assert ip.check(slot, at, size) is None
                assert workers.owner(ip.source(slot, at)) == workers.peer_handles[0]
                assert workers.owner(ip.destination(slot, at)) == peer_handle != workers.peer_handles[0]
                assert not finished or bytes(slot[at : at + 2]) == bytes(2)  # flags and gso_type
                at += size
        port.advance(ready)


def inbound_seeds() -> list[bytes]:
    packets = [echo_request("10.0.0.2", to, 1) for to in ("10.0.0.3", "10.0.0.2", "10.9.9.9", "224.0.0.1")] + [
        echo_request("fd00::2", "fd09::9", 1),
        echo_request("10.0.0.3", "10.0.0.2", 1),
    ]
    unfinished = [
        packet_of(4, protocol, gso, destination="10.0.0.3")
        for protocol, gso in ((6, 1), (17, 5), (6, 0), (6, 0x81), (6, 5))
    ]
    raw = block_of(unfinished)
    # a checksum to be written over an address: that of another peer, or any other
    forged = block_of(
        [
            VNET.pack(1, 0, 0, 0, start, offset) + packets[0]
            for start, offset in ((0, 14), (8, 4), (0, 18), (0, 0), (19, 0), (20, 2))
        ]
    )
    sound = block_frame(*packets)
    datagrams = block_of(
        [
            udp(b"x" * 9, version, port, ends=ip_address(ends[0]).packed + ip_address(ends[1]).packed)
            for version, *ends in ((4, "10.0.0.2", "10.9.9.9"), (6, "fd00::2", "fd09::9"))
            for port in (1, 2)
            for _ in range(5)
        ]
    )
    mixed = (
        framing.KEEPALIVE_FRAME
        + bytes(4)
        + framing.frame(framing.DATA, packets[0])
        + sound
        + framing.frame(0x77, b"?")
        + framing.frame(framing.BLOCK, b"\0\1\0\0\0\5abcd")
        + framing.frame(framing.RUN, b"short")
    )
    shards = b"".join(copies(sound, 5) + runs(sound, 6, n=2, m=1, counts=(1, 2)))
    return [
        bytes([kind | more]) + each
        for kind in range(5)
        for more in (0, LIGHT | FINISHED)
        for each in (sound, raw, forged, datagrams, mixed, shards)
    ]


def block_of(packets: list[bytes]) -> bytes:
    """A block of packets that have their virtio-net headers."""
    table = struct.pack(f">H{len(packets)}I", len(packets), *map(len, packets))
    return framing.frame(framing.BLOCK, table + b"".join(packets))
