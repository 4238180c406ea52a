"""A path of datagrams in virtual time: an OutboundPath, an emulated link, and the other end with its reports.

    way = VirtualWay(LinkSpec(delay_ms=20, rate_mbit=50, loss_percent=2))
    way.run(5, size=30_000)                blocks of bulk go as fast as the path takes them
    way.run(5, size=1000, rate=1_000_000)  or so many bytes of them a second

Nothing waits, and no other process changes what happens: a run depends on the seed of the link alone. `delays` are
those of blocks, in ns, from their way into the path to their delivery.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from pipeline.counters import ID
from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.arriving_block import Single
from pipeline.datagram.assembly import Assembly
from pipeline.datagram.segment import FIELD_BYTES, HEADER_BYTES, ROWS, TOKEN_BYTES
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.buffer_pool import BufferPool
from pipeline.fec.reorder import WAIT_OF_PATHS_NS
from pipeline.wire.control_datagram import Report
from tests.harness.datagram_sender import CODEC, SEGMENT_MOST, session_of
from tools.lab.link_model import LinkModel, LinkSpec
from workers.dgram.outbound_path import OutboundPath
from workers.dgram.path import Path, Pieces
from workers.dgram.reports import AGAIN_NS, REPORT_NS
from workers.dgram.segment_socket import SEGMENTS_MOST

MS = 1_000_000
SECOND = 1000 * MS
STEP_NS = MS // 4
WIRE_BYTES = 42  # Ethernet, IPv4 and UDP in front of a segment
BULK, LIGHT = 0x700, 0x701
_REPORT_WIRE_BYTES = 250


class VirtualWay:
    def __init__(self, spec: LinkSpec, back: LinkSpec | None = None) -> None:
        self.now = self.began = 1000 * SECOND
        session = session_of(1 << 12)
        self._token, self._mask = session.send_token, session.send_mask(1)
        self._forth, self._back = LinkModel(spec, "forth"), LinkModel(back or spec, "back")
        self.path = Path(session, 0, self)
        self.path.address, self.path.segment_most, self.path.is_open = ("", 0), SEGMENT_MOST, True
        self.counters = memoryview(bytearray(8 * 320)).cast("Q")
        memory = BufferPool(64 << 20)
        self.out = OutboundPath(self.path, Segmenter(CODEC, 7, 1024), memory, self.counters, self.now)
        self._assembly = Assembly(CODEC, self.counters, 64 << 20, WAIT_OF_PATHS_NS)
        self._counts: ArrivalCounts | None = None
        self._reported_at = self._heard_at = 0
        self._again = len(AGAIN_NS)
        self._under_way: list[tuple[int, int, bytes | Report]] = []  # a heap: due, number in their order
        self._numbers = {BULK: 0, LIGHT: 0}
        self._added: dict[tuple[int, int], int] = {}  # when, by stream and number
        self._order = 0
        self.delivered = 0  # bytes
        self.delays: dict[int, list[int]] = {BULK: [], LIGHT: []}

    # -- in place of the socket

    def most(self, segment_bytes: int) -> int:
        return min(SEGMENTS_MOST, 65_000 // segment_bytes)

    def send(self, pieces: Pieces, segment_bytes: int, count: int, path: Path) -> int:
        data = b"".join(pieces)
        size = segment_bytes + WIRE_BYTES
        for due, first, length in self._forth.offer(self.now, count, size, size):
            for at in range(first, first + length):
                self._post(due, data[at * segment_bytes : (at + 1) * segment_bytes])
        return count

    def _post(self, due: int, what: bytes | Report) -> None:
        self._order += 1
        heappush(self._under_way, (due, self._order, what))

    # -- time

    def run(self, seconds: float, size: int = 30_000, rate: float = 0.0, pings: float = 0.0) -> None:
        """`rate`: of bulk, bytes a second; 0: as much as there is room for. `pings`: light blocks a second."""
        until = self.now + int(seconds * SECOND)
        bulk_at = ping_at = self.now
        while self.now < until:
            self.step()
            while self.out.has_room() and (not rate or bulk_at <= self.now):
                self.add(size, BULK)
                bulk_at += int(size * SECOND / rate) if rate else 0
            while pings and ping_at <= self.now:
                self.add(100, LIGHT)
                ping_at += int(SECOND / pings)

    def add(self, size: int, stream: int) -> None:
        number = self._numbers[stream]
        self._numbers[stream] += 1
        assert self.out.add(stream, number, 3, memoryview(bytes(size)), self.now)
        self._added[stream, number] = self.now

    def step(self) -> None:
        self.now += STEP_NS
        while self._under_way and self._under_way[0][0] <= self.now:
            due, _, what = heappop(self._under_way)
            if isinstance(what, Report):
                self.path.reports.append((due, what))
            else:
                self._take(what)
        self.out.follow(self.now)
        while self.out.send(self.now):
            pass
        while (block := self._assembly.pop(self.now)) is not None:
            size = len(block.content) if isinstance(block, Single) else block.size
            self._assembly.write(block, memoryview(bytearray(shard.RUN_BYTES + size)), 0)
            added = self._added.pop((block.key >> 32, block.key & 0xFFFFFFFF), None)
            if added is not None:
                self.delivered += size
                self.delays[block.key >> 32].append(self.now - added)
        self._report()

    # -- the other end

    def _take(self, segment: bytes) -> None:
        assert int.from_bytes(segment[:TOKEN_BYTES], "big") == self._token
        row = memoryview(segment)[HEADER_BYTES:]
        masked = int.from_bytes(segment[TOKEN_BYTES:HEADER_BYTES], "big") ^ self._mask.of_row(row)
        fields = np.frombuffer(masked.to_bytes(FIELD_BYTES, "big"), ROWS)[0].item()
        if self._counts is None:
            self._counts = ArrivalCounts(fields[1])
        self._counts.add_one(fields[0], self.now)
        self._heard_at, self._again = self.now, 0
        self._assembly.add_row(fields, row, self.now)

    def _report(self) -> None:
        """As workers.dgram.reports does."""
        counts = self._counts
        if counts is None:
            return
        if counts.is_new:
            due = self._reported_at + REPORT_NS
        elif self._again < len(AGAIN_NS):
            due = self._heard_at + AGAIN_NS[self._again]
        else:
            return
        if self.now < due:
            return
        self._again += not counts.is_new
        counts.judge(self.now)
        before, self._reported_at = self._reported_at, self.now
        streams, incomplete = self._assembly.progress(min(before, self._heard_at), before)
        report = Report(counts.counts(self.now), tuple(streams), tuple(incomplete))
        for due, _, _ in self._back.offer(self.now, 1, _REPORT_WIRE_BYTES, _REPORT_WIRE_BYTES):
            self._post(due, report)

    # -- results

    def mbit(self) -> float:
        return self.delivered * 8000 / (self.now - self.began)

    def delay_ms(self, share: float, stream: int = BULK) -> float:
        delays = sorted(self.delays[stream])
        return delays[min(len(delays) - 1, int(len(delays) * share))] / MS

    def count(self, name: str) -> int:
        return self.counters[ID[f"dgram.{name}"]]
