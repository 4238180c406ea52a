"""The outbound duty of a dgram worker on the memory of a run, and the other end of its paths, in the hand of the test.

FarEnd       one lane of a peer: takes what comes to its UDP socket, loses what the test says, and reports when it is
             told to
SenderRun    dgram-0 of a run with one lane. Slots are those of tun-0
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np

from pipeline.counters import COUNTERS, ID
from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.arriving_block import Single
from pipeline.datagram.assembly import Assembly
from pipeline.datagram.segment import FIELD_BYTES, HEADER_BYTES, ROWS, TOKEN_BYTES
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.runtime.worker import MORE
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.shm import layout
from pipeline.shm.datagram_secrets import DatagramSecrets
from pipeline.shm.layout import FIRST_PEER_HANDLE, RECORD_WORDS
from pipeline.shm.slot import read_header, read_marks, write_header
from pipeline.wire import framing
from pipeline.wire.control_datagram import Arrivals, Incomplete, Report
from tests.harness.run import Run
from workers.dgram.path import Path, Paths
from workers.dgram.segment_socket import SegmentSocket
from workers.dgram.sender import Sender
from workers.dgram.sessions import Session

SEGMENT_MOST = 1472
SLOT_BYTES = layout.SLOT_SEALED_AT + (1 << 17) + layout.PAGE
CODEC = Codec()
START = layout.SLOT_SEALED_AT - shard.RUN_BYTES

Block = tuple[int, int, bytes]  # stream, number, content


def udp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
        made.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
    made.bind(("127.0.0.1", 0))
    return made


class FarEnd:
    """`fate(n)`: whether segment n arrives, counted from 0. `blocks`: what has arrived, in the order of delivery."""

    def __init__(self, session: Session, fate: Callable[[int], bool] = lambda number: True) -> None:
        self.socket = udp_socket()
        self.address = self.socket.getsockname()
        self.fate = fate
        self.blocks: list[Block] = []
        self.sizes: list[int] = []  # of the segments that came
        self.fields: list[tuple] = []  # of those
        self.counters = memoryview(bytearray(8 * 320)).cast("Q")
        self._mask = session.send_mask(1)
        self._token = session.send_token
        self._assembly = Assembly(CODEC, self.counters, 64 << 20, 100_000_000)
        self._counts: ArrivalCounts | None = None
        self._seen = 0

    def step(self, now: int) -> int:
        """Take what has come. Segments that arrived."""
        came = 0
        for segment in self._datagrams():
            self._seen += 1
            if self.fate(self._seen - 1):
                self._take(segment, now)
                came += 1
        while (block := self._assembly.pop(now)) is not None:
            if isinstance(block, Single):
                content, key = block.content, block.key
                slot = memoryview(bytearray(shard.RUN_BYTES + len(content)))
            else:
                key = block.key
                slot = memoryview(bytearray(shard.RUN_BYTES + block.size))
            end = self._assembly.write(block, slot, 0)
            self.blocks.append((key >> 32, key & 0xFFFFFFFF, bytes(slot[shard.RUN_BYTES : end])))
        return came

    @property
    def blocks_once(self) -> list[Block]:
        """Without the copies of light blocks that came later."""
        return list(dict.fromkeys(self.blocks))

    def _datagrams(self) -> Iterator[bytes]:
        with suppress(BlockingIOError):
            while True:
                yield self.socket.recv(1 << 16)

    def _take(self, segment: bytes, now: int) -> None:
        assert int.from_bytes(segment[:TOKEN_BYTES], "big") == self._token
        row = memoryview(segment)[HEADER_BYTES:]
        masked = int.from_bytes(segment[TOKEN_BYTES:HEADER_BYTES], "big") ^ self._mask.of_row(row)
        fields = np.frombuffer(masked.to_bytes(FIELD_BYTES, "big"), ROWS)[0].item()
        self.sizes.append(len(segment))
        self.fields.append(fields)
        if self._counts is None:
            self._counts = ArrivalCounts(fields[1])
        self._counts.add_one(fields[0], now)
        self._assembly.add_row(fields, row, now)

    def report(self, now: int) -> Report:
        """All that has come, with every codeword that lacks rows."""
        assert self._counts is not None
        self._counts.judge(now)
        streams, incomplete = [], []
        for position, (number, stream) in enumerate(self._assembly._streams.items()):
            turn = stream.next
            lacking = [each for each in self._assembly._open.values() if each.stream is stream]
            turn = min([each.number for each in lacking if each.number < turn], default=turn)
            complete = sum(1 << each - turn - 1 for each in stream.waiting)
            bits = complete.to_bytes(64, "little").rstrip(b"\0")
            streams.append(Arrivals(number, turn & 0xFFFFFFFF, bits))
            for block in lacking:
                for part in range(block.places.parts):
                    if lacking_rows := block.lacking(part):
                        incomplete.append(Incomplete(position, block.number & 0xFFFFFFFF, part, lacking_rows))
        return Report(self._counts.counts(now), tuple(streams), tuple(incomplete[:16]))

    def close(self) -> None:
        self.socket.close()


def session_of(peer_handle: int) -> Session:
    zeros = bytes(16)
    return Session(DatagramSecrets(peer_handle, AES_256_GCM, zeros, 0, os.urandom(32), os.urandom(32)))


class SenderRun:
    def __init__(self, capacity: int = 4, slots: int = 16, carrier: str = "auto", **settings: object) -> None:
        self.run = Run(1, capacity, SLOT_BYTES, slots, carrier=carrier, seals=True, fec="off", **settings)
        attachment = self.run.attach("dgram-0")
        self.counters = attachment.page.counters
        self.paths = Paths()
        self._near = udp_socket()
        self.segments = SegmentSocket(self._near, self.counters)
        self.sender = Sender(attachment, self.paths)
        tun = self.run.attach("tun-0")
        self.fillers = {
            kind: port
            for duty in ("outbound", "inbound")
            for kind in ("light", "plain", "transit")
            for port in tun.ports(duty, kind)
            if port.ready()
        }
        tcp = self.run.attach("tcp-0")
        (self.returned,) = tcp.ports("outbound", "returned")
        self._passers = [port for kind in self.fillers for port in tcp.ports("outbound", kind)]
        self.far: dict[Path, FarEnd] = {}
        self._numbers: dict[int, int] = {}
        for peer in range(capacity):
            self.run.memory.peer_table.write_record(FIRST_PEER_HANDLE | peer, 0)

    def connect(self, peer: int = 0, remote_lane: int = 0, fate: Callable[[int], bool] = lambda number: True) -> Path:
        """One more open path, which leads to a FarEnd."""
        session = session_of(FIRST_PEER_HANDLE | peer)
        path = Path(session, remote_lane, self.segments)
        self.far[path] = FarEnd(session, fate)
        path.address, path.segment_most = self.far[path].address, SEGMENT_MOST
        self.paths.open(path)
        self.run.write_link(0, peer, 1)
        return path

    def fill(self, size: int, kind: str = "plain", peer: int = 0, stream: int = 0x700, consumer: int = 1) -> Block:
        """A slot with a sealed run of random bytes."""
        port, content = self.fillers[kind], os.urandom(size)
        assert self.free(kind)
        number = self._numbers[stream] = self._numbers.get(stream, -1) + 1
        slot, length = port.slot(), shard.RUN_BYTES + size
        shard.SEALED_RUN.pack_into(
            slot, START, length - framing.LENGTH.size, framing.RUN, stream, number, 1, 0, 0, 1, size, 3, 1
        )
        slot[layout.SLOT_SEALED_AT : layout.SLOT_SEALED_AT + size] = content
        write_header(slot, START, length, consumer, FIRST_PEER_HANDLE | peer, stream & 1)
        port.advance(1)
        return stream, number, content

    def take_returned(self) -> list[tuple[Block, int]]:
        """The blocks that were given back to TCP, with the marks of its slots."""
        found = []
        for ahead in range(self.returned.ready()):
            slot = self.returned.slot(ahead)
            start, length, consumer, _ = read_header(slot)
            _, _, stream, number, n, m, _, count, size, epoch, _ = shard.SEALED_RUN.unpack_from(slot, start)
            assert (consumer, n, m, count, size, epoch) == (0, 1, 0, 1, length - shard.RUN_BYTES, 3)
            content = bytes(slot[start + shard.RUN_BYTES : start + length])
            found.append(((stream, number, content), read_marks(slot)[0]))
        self.returned.advance(len(found))
        return found

    def take_all_returned(self, count: int) -> list[tuple[Block, int]]:
        """So many, as they come."""
        found: list[tuple[Block, int]] = []

        def have_come() -> bool:
            found.extend(self.take_returned())
            return len(found) >= count

        self.until(have_come)
        return found

    def burst(self) -> int:
        """One burst, and what it brings to the other ends is reported."""
        result = self.sender.work()
        now = time.monotonic_ns()
        for path, far in self.far.items():
            if far.step(now) and path.is_open:
                path.reports.append((now, far.report(now)))
        return result

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [each.name for each in COUNTERS if self.counters[each.id]]
            if self.burst() is not MORE:
                self.sender.wait(0.001)

    def count(self, name: str) -> int:
        return self.counters[ID[f"dgram.{name}"]]

    def word(self, peer: int, word: int) -> int:
        return self.run.memory.peer_table.datagrams_out[0][peer * RECORD_WORDS + word]

    def free(self, kind: str = "plain") -> int:
        """Slots of a ring that can be filled. The tcp worker passes over all."""
        for port in self._passers:
            port.advance(port.ready())
        return self.fillers[kind].ready()

    def close(self) -> None:
        self._near.close()
        for each in self.far.values():
            each.close()
        self.run.close()
