"""The targets of datagrams: segments from anybody who has seen a token, and control datagrams of a hostile peer.

An input for segments is a stream of frames: segments with fields as they are, and a few types that stand for steps
which no fuzzer finds by itself. Fields come without their mask, since the key hides them from a fuzzer as well.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import cast

import numpy as np

from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.assembly import KEEP_NS
from pipeline.datagram.cut import cut
from pipeline.datagram.segment import FIELD_BYTES, FIELDS, HEADER_BYTES, TOKEN, Mask
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.policy.return_address import Address
from pipeline.sealing.datagram_seal import OVERHEAD
from pipeline.shm.datagram_secrets import DatagramSecrets
from pipeline.shm.layout import RECORD_WORDS
from pipeline.wire import control_datagram, framing
from pipeline.wire.control_datagram import PROBE_LEAST, Answer, Arrivals, Counts, Incomplete, Probe, Report
from tests.fuzz.byte_source import ByteSource, chunk
from workers.dgram.control import Sender
from workers.dgram.kept_blocks import KeptBlock, KeptBlocks
from workers.dgram.path import Path, SegmentSender
from workers.dgram.path_control import PathControl, Way
from workers.dgram.path_feedback import PathFeedback
from workers.dgram.reception import SEGMENTS_MOST, Reception
from workers.dgram.sessions import Session

POP, PASS, MADE, ONE, BATCH = 0x30, 0x31, 0x32, 0x33, 0x34
"""Types of the fuzzer's own: blocks are popped; a tenth of the time that a block is kept passes; segments of a block
that fit each other; one segment; several in one receive."""
STEPS_MAX = 200
SIZE_MAX = 70_000
ROWS = (80, 600, 1172, 65_000)
ROWS_FEW, ROW_USUAL = 8, 1440
"""Blocks of more rows have usual ones, so that some cut holds them."""

PATTERN = bytes(each * 7 & 0xFF for each in range(SIZE_MAX + 256))
SENDER = 7
MS = 1_000_000
STEP_NS = 100 * MS
SESSION = Session(DatagramSecrets(256, 1, bytes(16), 0, bytes(32), bytes(32)))
MASK = SESSION.receive_mask(SEGMENTS_MOST)
SEGMENTS = cast("SegmentSender", None)
CODEC = Codec()
SEGMENTER = Segmenter(CODEC, SENDER, 512)
_MADE = struct.Struct(">BhHHBBBBB")  # stream, block, size, first, count, m, rows, step, which bytes

U32 = 0xFFFFFFFF
SERVER, CLIENT = Address("192.0.2.1", 443), Address("198.51.100.7", 5555)


# -- segments


class Receiver:
    """A reception with the least memory that there is, and what it has delivered."""

    def __init__(self) -> None:
        self.now = KEEP_NS
        counters, words = (
            memoryview(bytearray(8 * each)).cast("Q") for each in (320, (SESSION.peer + 1) * RECORD_WORDS)
        )
        control = PathControl(Path(SESSION, 0, SEGMENTS), "auto", lambda path, body, way: 0, self.now)
        self.sender = Sender(control, ArrivalCounts(SENDER), SESSION)
        self.reception = Reception(SESSION, {SENDER: self.sender}, CODEC, counters, words, True)
        self._slot = memoryview(bytearray(shard.RUN_BYTES + shard.BLOCK_BYTES_MAX))

    def add(self, datagrams: list[bytes]) -> None:
        """Datagrams of one receive: all of one size, or one by one."""
        sizes = {len(each) for each in datagrams}
        self.now += MS
        if len(datagrams) > 1 and len(sizes) == 1:
            whole = np.frombuffer(b"".join(datagrams), np.uint8).reshape(len(datagrams), sizes.pop()).copy()
            self.reception.add_batch(whole, False, self.now)
        else:
            for each in datagrams:
                self.reception.add_one(memoryview(each), False, self.now)

    def pop(self) -> Iterator[bytes]:
        assembly = self.reception.assembly
        while (block := assembly.pop(self.now)) is not None:
            end = assembly.write(block, self._slot, 0)
            _, kind, _, _, n, _, _, count, size, _, _ = shard.SEALED_RUN.unpack_from(self._slot)
            assert (kind, n, count, size) == (framing.RUN, 1, 1, end - shard.RUN_BYTES)
            yield bytes(self._slot[shard.RUN_BYTES : end])

    def report(self) -> None:
        """A report about all this can be sent, and is read at the other end."""
        self.sender.counts.judge(self.now)
        streams, incomplete = self.reception.assembly.progress(0, self.now)
        made = Report(self.sender.counts.counts(self.now), tuple(streams), tuple(incomplete))
        body = control_datagram.pack_report(made)
        assert len(body) <= control_datagram.REPORT_MOST
        assert isinstance(control_datagram.parse(memoryview(body)), Report)


def segments(data: bytes) -> None:
    """Only blocks that were sent are delivered; bytes stay below the limit, and none is used for ever."""
    there = Receiver()
    buffers = there.reception.assembly._buffers
    view = memoryview(data)
    end = framing.scan(view, 0, len(view), framing.LENGTH_LIMIT)[0]
    at = 0
    forged = False
    sent: dict[tuple[int, int], bytes] = {}

    def pop() -> None:
        for found in there.pop():
            assert forged or found in sent.values()

    for _ in range(STEPS_MAX):
        if at >= end:
            break
        length = int.from_bytes(view[at : at + 4], "big")
        kind, body = bytes(view[at + 4 : at + 5]), bytes(view[at + 5 : at + 4 + length])
        at += 4 + length
        match kind:
            case b"\x30":
                pop()
            case b"\x31":
                there.now += KEEP_NS // 10
            case b"\x32":
                which, content, datagrams = made_segments(body)
                forged |= sent.setdefault(which, content) != content
                there.add(datagrams)
            case b"\x33":
                forged = True
                there.add([masked(body)])
            case b"\x34":
                forged = True
                source = ByteSource(body)
                size = source.number(2)
                there.add([masked(source.piece(size)) for _ in range(source.number() % SEGMENTS_MOST + 1)])
        there.report()
        assert buffers.used + buffers.kept <= buffers.limit
    pop()
    for _ in range(3):
        there.now += KEEP_NS
        pop()
        there.reception.publish()
    assert buffers.used == 0
    assert there.reception.assembly.is_idle(there.now) and not there.reception.assembly.due()


def masked(plain: bytes) -> bytes:
    """A datagram from its fields and its row; a short one has neither."""
    fields, row = plain[:FIELD_BYTES], plain[FIELD_BYTES:]
    if len(fields) < FIELD_BYTES:
        return TOKEN.pack(SESSION.receive_token) + fields
    hidden = int.from_bytes(fields, "big") ^ MASK.of_row(row)
    return TOKEN.pack(SESSION.receive_token) + hidden.to_bytes(FIELD_BYTES, "big") + row


@functools.lru_cache(64)
def _made(stream: int, number: int, size: int, m: int, row_most: int, which: int) -> tuple[bytes, tuple[bytes, ...]]:
    content = PATTERN[which : which + size]
    how = cut(size, row_most, m)
    token, mask = SESSION.receive_token, Mask(SESSION._receive.mask_key(), 512)
    if how.n == 1:
        head = SEGMENTER.head_of_row(memoryview(content), token, mask, number & U32, stream, number & U32, 0, m)
        return content, (head + content,)
    memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
    train = SEGMENTER.cut_block(
        memory, memoryview(content), how, token, mask, (number * 64) & U32, stream, number & U32, 0
    )
    return content, tuple(bytes(each) for each in train.rows)


def made_segments(body: bytes) -> tuple[tuple[int, int], bytes, list[bytes]]:
    """Stream and number of a block, the block, and some of its segments."""
    stream, number, size, first, count, m, rows, step, which = _MADE.unpack(body.ljust(_MADE.size, b"\0")[: _MADE.size])
    size = size % SIZE_MAX + 1
    row_most = ROWS[rows % len(ROWS)]
    if size > ROWS_FEW * row_most:
        row_most = ROW_USUAL
    content, every = _made(stream, number, size, m % 7, row_most, which)
    return (stream, number), content, list(every[first % len(every) :: step % 4 + 1][: count % SEGMENTS_MOST + 1])


def made(
    number: int,
    size: int = 5000,
    m: int = 0,
    first: int = 0,
    count: int = 63,
    stream: int = 0,
    step: int = 1,
    rows: int = 2,
    which: int | None = None,
) -> bytes:
    """The frame that stands for some segments of a block; as a rule each block has other bytes."""
    found = number & 0xFF if which is None else which
    return framing.frame(MADE, _MADE.pack(stream, number, size - 1, first, count, m, rows, step - 1, found))


def plain(row: bytes, **changes: int) -> bytes:
    """The fields of a segment, and its row."""
    fields = {
        "sequence": 0, "sender": SENDER, "stream": 0x700, "number": 0, "epoch": 0, "size": len(row), "part": 0, "n": 1,
        "m": 0, "index": 0,
    }  # fmt: skip
    return FIELDS.pack(*(fields | changes).values()) + row


def segments_seeds() -> list[bytes]:
    pop, later = framing.frame(POP), framing.frame(PASS)
    whole = [made(number) for number in range(4)]
    lossy = [made(number, m=2, first=2) for number in range(4)]
    large = [made(number, 65_000, 6, count=3) for number in range(40)]
    waiting = [made(number, 30_000, which=1) for number in range(1, 30)]
    streams = [made(0, m=1, count=1, stream=stream) for stream in range(40)]
    parts = [made(number, 65_000, 3, first=first, step=2, count=40) for number in range(2) for first in (0, 1, 40)]
    light = [made(number, 200, m=2, stream=1) for number in range(4)]
    row = bytes(range(80))
    forged = [
        plain(row),
        plain(row, n=2, size=160),
        plain(row, n=2, size=160, index=1),
        plain(row, n=2, size=160, index=3),
        plain(row, n=2, m=1, size=160, number=9, index=2),
        plain(row, n=37, m=6, size=133_140, part=3, number=5),
        plain(row, n=2, size=U32),
        plain(row, sequence=U32, sender=9),
        plain(b""),
        b"",
    ]
    ones = [framing.frame(ONE, each) for each in forged]
    singles = [made(number, 64_000, rows=3, which=1) for number in range(1, 80)]
    lights = [made(number, 64_000, stream=1, rows=3, which=1) for number in range(80)]
    behind = [plain(row, n=2, size=300, part=part, index=1) for part in (0, 1, 1, 5)]
    alike = [plain(row, n=4, m=2, size=300, index=index, sequence=index) for index in range(6)]
    groups = alike, alike[::-1], behind[:3], behind, [alike[0], *forged[:4]], [alike[0]] * 3, [forged[5], *alike]
    batches = [
        framing.frame(BATCH, len(group[0]).to_bytes(2, "big") + bytes([len(group) - 1]) + b"".join(group))
        for group in groups
    ]
    return [
        b"".join(each)
        for each in (
            [*whole, pop],
            [*lossy, pop],
            [*lossy[1:], pop, later, later, lossy[0], pop],
            [*large, pop],
            [*large, *singles, pop],
            [*singles, made(0, 64_000, rows=3), pop],
            [*lights, pop],
            [*waiting, pop, later, pop],
            [*large[:20], *waiting, pop],
            [*streams, pop, *streams],
            [*parts, pop],
            [*light, light[0], pop, light[2], pop],
            [whole[0], made(2000), pop, whole[1], made(-3000), pop],
            [made(0, m=2, count=0), later * 12, pop, made(0, m=2, first=1)],
            [whole[0], later * 12, made(3), pop, made(1), pop],
            [whole[0], whole[0], pop, whole[0], pop],
            [made(0, 80, which=1), made(0, 81, which=2), pop],
            [*ones, pop],
            [*batches, pop],
            [made(0, 300, 2, rows=0, count=1), *batches, pop],
        )
    ]


# -- control datagrams


class Ends:
    """What a control datagram of the other end changes here: kept blocks, feedback, and the control of the path."""

    def __init__(self) -> None:
        self.now = 1000 * MS
        self.challenges: list[int] = []  # of the probes that went out
        self.done: list[KeptBlock] = []
        self.kept = KeptBlocks(self.done.append)
        self.blocks = [_kept(number) for number in range(6)]
        self.feedback = PathFeedback(self.now)
        for place, each in enumerate(self.blocks):
            self.kept.add(each)
            each.note_sent(10 * place + 9, self.now)
            self.feedback.on_sent(10, 12_000, False, self.now + place * MS)
        server = SERVER, Way(("server",), [])
        self.controls = [
            PathControl(Path(SESSION, 0, SEGMENTS), "auto", self._send, self.now, each) for each in (server, None)
        ]

    def _send(self, path: Path, body: bytes, way: Way) -> int:
        probe = control_datagram.parse(memoryview(body))
        if isinstance(probe, Probe):
            self.challenges.append(probe.challenge)
        return 0

    def take(self, body: bytes, count: int) -> None:
        """A small challenge in an answer stands for that of a probe which went out."""
        self.now += STEP_NS
        found = control_datagram.parse(memoryview(body))
        if found is None:
            return
        if isinstance(found, Answer) and found.challenge < len(self.challenges):
            found = found._replace(challenge=self.challenges[found.challenge])
        size = len(body) + OVERHEAD
        for control in self.controls:
            source = SERVER if control is self.controls[0] else CLIENT
            control.heard(source, Way(tuple(source), []), count, size, self.now)
            if isinstance(found, Probe):
                control.on_probe(found, source, size, self.now)
            elif isinstance(found, Answer):
                control.on_answer(found, self.now, self.now)
            else:
                control.on_report(True, self.now)
            control.tick(self.now, True)
        if isinstance(found, Report):
            self._take_report(found)

    def _take_report(self, report: Report) -> None:
        if self.feedback.take(report.counts, self.now):
            lost = self.kept.take_report(report, self.feedback.highest, self.feedback.lost_until)
            for kept, rows in lost:
                assert kept.is_done or (rows and set(rows) <= set(range(_segments(kept))))
        self.feedback.tick(1200, self.now)
        assert self.feedback.rate.pacing_rate > 0
        made = self.feedback.plan.cut(60_000, 1172).cut
        assert made.parts * made.n * made.row_bytes >= 60_000
        assert self.kept.size == sum(each.size for each in self.blocks if not each.is_done)


@functools.lru_cache
def _trains() -> tuple[memoryview, ...]:
    how = cut(30_000, 1172, 2)
    return tuple(memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes))) for _ in range(6))


def _kept(number: int) -> KeptBlock:
    if number == 5:
        return KeptBlock(0x700, number, 0, 500, row=bytes(500))
    how = cut(30_000, 1172, 2)
    memory = _trains()[number]
    train = SEGMENTER.lay_block(memory, memoryview(bytes(30_000)), how, 1, MASK_OF_TRAINS, 0x700, number, 0)
    return KeptBlock(0x700, number, 0, 30_000, train, memory=memory)


MASK_OF_TRAINS = Mask(bytes(32), 64)


def _segments(kept: KeptBlock) -> int:
    return 1 if kept.train is None else kept.train.count


def control_datagrams(data: bytes) -> None:
    """Bodies that the tag has proved: each is taken or refused, and what is taken is written as it was."""
    there = Ends()
    for number, (_, body) in enumerate(ByteSource(data).chunks()):
        found = control_datagram.parse(memoryview(body))
        if isinstance(found, Report):
            assert control_datagram.pack_report(found) == body
        elif isinstance(found, Answer):
            assert control_datagram.pack_answer(found) == body
        elif isinstance(found, Probe):
            assert control_datagram.pack_probe(found, len(body)) == body
        there.take(body, number)


def control_datagrams_seeds() -> list[bytes]:
    def report(highest: int, *streams: Arrivals, lacking: tuple[Incomplete, ...] = (), lost: int = 0) -> bytes:
        counts = Counts(SENDER, highest & U32, 100, highest - lost & U32, 1, 0, lost, lost // 2, 0)
        return control_datagram.pack_report(Report(counts, streams, lacking))

    probe, short = (control_datagram.pack_probe(Probe(5, 6, 0), size) for size in (200, PROBE_LEAST))
    late = control_datagram.pack_probe(Probe(5, 6, 30), PROBE_LEAST)
    answers = [control_datagram.pack_answer(Answer(which, 6, 1200)) for which in (99, 0, 1, 2, 3, 4, 5)]
    news = [report(highest, Arrivals(0x700, highest // 10)) for highest in (5, 19, 39, 59)]
    gaps = [
        report(39, Arrivals(0x700, 0, b"\x0a"), lacking=(Incomplete(0, 0, 0, 0b111), Incomplete(0, 2, 1, 1)), lost=9),
        report(59, Arrivals(0x700, 0, b"\x10"), Arrivals(0x708, 9), lost=30),
        report(59, Arrivals(0x700, 0), lacking=(Incomplete(0, 5, 0, 1), Incomplete(0, 1, 200, U32)), lost=50),
        report(59, Arrivals(0x700, 0), lacking=(Incomplete(0, 0, 0, (1 << 64) - 1),) * 16),
    ]
    odd = [report(U32), report(1 << 31), report(59, Arrivals(0x700, U32, b"\xff" * 20)), b"\x04", b"", b"\1" * 14]
    return [b"".join(map(chunk, each)) for each in ([probe, short, late, *answers, probe], news, [*gaps, *news], odd)]
