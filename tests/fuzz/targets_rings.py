"""Targets behind the greeting: an intake, and the workers behind its ring. Streams of a peer's frames.

intake        a byte of shape, then chunks: by their flags of one connection or the other, or the consumer's turn
inbound       a byte of shape, then a stream of frames: through the inbound duties of the workers to the TUN queue
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline.errors import PeerError
from pipeline.packet import ip, vnet
from pipeline.packet.route_table import NOBODY
from pipeline.packet.vnet import NO_VNET, VNET, VNET_HEADER_BYTES
from pipeline.runtime import topology
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout, slot
from pipeline.shm.layout import PEER_INDEX_BITS
from pipeline.shm.slot import MARKS, SLOT, SLOT_BYTES_MIN
from pipeline.supervisor.shared_memory import SharedMemory
from pipeline.wire import block, framing
from tests.fuzz.byte_source import Bites, chunk
from tests.fuzz.fuzzer import Feed
from tests.fuzz.targets_wire import packet_of
from tests.harness import frame_reader
from tests.harness.reassembly import copies, runs
from tests.inline.harness.ends import arrived, enlarge
from tests.reference.blocks import block_frame
from tests.reference.packets import echo_request
from workers.fec import duties
from workers.tun import writer

# -- intake

AHEAD, TLS = 0x80, 0x40  # of the shape: the first chunk came with the greeting; both connections have TLS
CONSUME, OTHER = 2, 1  # of a chunk


def intake(data: bytes) -> None:
    """What comes out of each connection is what went in, frame by frame, up to the first that is too long."""
    bites = Bites(data)
    shape = bites.number()
    with frame_reader.bench_of(connections=2, slots=4, tls=bool(shape & TLS)) as bench:
        said, begun, ended = [b"", b""], [False, False], [False, False]
        for flags, piece in bites.chunks():
            if flags & CONSUME:
                bench.take(len(piece))
                continue
            number = flags & OTHER
            connection = bench.sources[number].connection
            said[number] += piece
            if ended[number]:
                continue
            first, begun[number] = not begun[number], True
            try:
                if shape & AHEAD and first and piece and bench.port.ready():
                    connection.stash = piece
                    bench.intake.prefill(connection)
                else:
                    bench.send(number, piece)
                    bench.read_all(number)
            except PeerError:
                bench.intake.forget(connection)
                ended[number] = True
        for number in range(2):
            while not ended[number]:
                bench.take()
                try:
                    bench.read_all(number)
                    ended[number] = bench.port.ready() == bench.ring.capacity  # that was all
                except PeerError:
                    bench.intake.forget(bench.sources[number].connection)
                    ended[number] = True
        bench.take()
        for number, stream in enumerate(said):
            _came_through(stream, bench.frames(number))


def _came_through(stream: bytes, came: list[bytes]) -> None:
    bodies, at = [], 0
    while len(stream) - at >= 4:
        (length,) = struct.unpack_from(">I", stream, at)
        if length > frame_reader.LIMIT:
            assert bodies[: len(came)] == came  # those that the chunk of the long one brought are lost with it
            return
        if at + 4 + length > len(stream):
            break
        bodies.append(stream[at + 4 : at + 4 + length])
        at += 4 + length
    assert bodies == came


def intake_seeds() -> list[bytes]:
    stream = frame_reader.framed([b"", b"\x21" + bytes(40), bytes(300), b"a", bytes(250)])
    most = chunk(frame_reader.framed([bytes(90)] * 2)) * 6  # more than the ring has slots
    halves = chunk(stream[:30]) + chunk(stream[:7], OTHER) + chunk(stream[30:]) + chunk(stream[7:], OTHER)
    return [
        bytes([shape]) + each
        for shape in (0, AHEAD, TLS)
        for each in (chunk(stream), halves, most + chunk(b"a", CONSUME) + most, chunk(b"\0\0\2\0a"))
    ]


# -- the inbound duties

COMPAT, ONE, SEVERAL, ISOLATED, DECODING = range(5)
LIGHT, FINISHED = 0x40, 0x20  # the connection's purpose; whether the other peers take finished packets alone
PEERS = 4
INSIDE = tuple(bytes([10, 0, 0, 2 + peer]) for peer in range(PEERS))
SETTINGS = {"fec": "off", "idle": "block", "offloads": 0}
EVERYTHING = ((bytes(4), 0), (bytes(16), 0))


class Workers:
    """The tun worker of one lane, with the fec worker where shards are taken; slots come from the test's hand."""

    def __init__(self, kind: int, stack: ExitStack) -> None:
        self.kind = kind
        self.capacity = 1 if kind in (COMPAT, ONE, DECODING) else PEERS
        settings = SETTINGS | {"compat": kind == COMPAT, "client_isolation": kind == ISOLATED}
        plan = topology.build(
            "fuzztest",
            secrets.token_hex(4),
            "server",
            1,
            (10, 3) if kind == DECODING else None,
            4,
            SLOT_BYTES_MIN,
            settings,
            self.capacity,
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
        self.duties = [writer.TunWriter(tun, inside.fileno())]
        if kind == DECODING:
            self.duties.insert(0, duties.Decoder(self._attach(plan, "fec-0", stack)))
        self._occupations = 0
        self.peer_handles: list[int] = []

    @staticmethod
    def _attach(plan: object, worker: str, stack: ExitStack) -> Attachment:
        attachment = Attachment(plan, worker)
        stack.callback(attachment.close)
        return attachment

    def _close_memory(self) -> None:
        self.memory.unlink()
        for each in self.memory.rings.values():
            each.close()
        self.memory.peers.close()
        self.memory.scoreboard.close()

    def sit(self, offloads: int) -> None:
        """Everybody anew, so that no input sees what another one left."""
        self._occupations += 1
        self.peer_handles = [self._occupations << PEER_INDEX_BITS | peer for peer in range(self.capacity)]
        peers = self.memory.peers
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

    def put(self, stream: bytes, traffic_class: int) -> None:
        slot = self.port.slot()
        start = layout.SLOT_HEADER_BYTES
        slot[start : start + len(stream)] = stream
        SLOT.pack_into(slot, 0, start, len(stream), 0, self.peer_handles[0])
        MARKS.pack_into(slot, layout.SLOT_TRAFFIC_CLASS_AT, traffic_class, 0)
        self.port.advance(1)

    def owner(self, address: bytes) -> int:
        if self.capacity == 1:
            return self.peer_handles[0]
        return dict(zip(INSIDE, self.peer_handles, strict=True)).get(
            address, self.peer_handles[1] if address[:8] == b"\xfd" * 8 else NOBODY
        )


@contextmanager
def inbound() -> Iterator[Feed]:
    """Only sound packets of the sender's reach the kernel, and another peer what is for him and his device takes."""
    with ExitStack() as stack:
        made: dict[int, Workers] = {}

        def take(data: bytes) -> None:
            bites = Bites(data)
            shape = bites.number()
            kind = (shape & 7) % 5
            workers = made.get(kind) or made.setdefault(kind, Workers(kind, stack))
            stream = memoryview(bites.rest())
            limit = framing.COMPAT_LENGTH_LIMIT if kind == COMPAT else framing.LENGTH_LIMIT
            whole = framing.scan(stream, 0, len(stream), limit)[0]
            workers.sit(0 if shape & FINISHED else 0xFF)
            workers.put(bytes(stream[:whole]), int(bool(shape & LIGHT)))
            for duty in workers.duties:
                duty.work()
            _look_at_queue(workers)
            _look_at_transit(workers, bool(shape & FINISHED))

        yield take


def _look_at_queue(workers: Workers) -> None:
    for packet in map(memoryview, arrived(workers.outside)):
        assert ip.check(packet, 0, len(packet)) == ""
        assert workers.owner(ip.source(packet, 0)) == workers.peer_handles[0]
        if workers.capacity > 1:
            assert workers.owner(ip.destination(packet, 0)) == NOBODY
            assert not ip.is_multicast(ip.destination(packet, 0))
        if workers.kind == COMPAT:
            assert packet[:VNET_HEADER_BYTES] == NO_VNET


def _look_at_transit(workers: Workers, finished: bool) -> None:
    for port in workers.transit:
        ready = port.ready()
        assert not ready or workers.kind == SEVERAL
        for ahead in range(ready):
            slot = port.slot(ahead)
            start, length, _, peer_handle = SLOT.unpack_from(slot)
            at, lengths = block.lengths(slot, start, start + length)
            for size in lengths:
                assert ip.check(slot, at, size) == ""
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
    # a checksum to be put where an address is: that of another peer, or whatever the sender likes
    forged = block_of(
        [
            VNET.pack(1, 0, 0, 0, start, offset) + packets[0]
            for start, offset in ((0, 14), (8, 4), (0, 18), (0, 0), (19, 0), (20, 2))
        ]
    )
    sound = block_frame(*packets)
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
        for each in (sound, raw, forged, mixed, shards)
    ]


def block_of(packets: list[bytes]) -> bytes:
    """Of packets that have their virtio-net headers."""
    table = struct.pack(f">H{len(packets)}I", len(packets), *map(len, packets))
    return framing.frame(framing.BLOCK, table + b"".join(packets))
