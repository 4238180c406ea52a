"""The target of the decoder: runs of shards, from a hostile peer, become blocks.

An input is a stream of frames: runs as they are, and a few types that stand for steps which no fuzzer finds by itself.
"""

from __future__ import annotations

import functools
import struct

from pipeline.fec import shard
from pipeline.fec.reassembly import KEEP_NS
from pipeline.wire import framing
from tests.harness import reassembly as harness
from tests.harness.reassembly import coded, copies, framed, runs

POP, PASS, MADE = 0x30, 0x31, 0x32
"""Types of the fuzzer's own: the duty pops blocks; a tenth of the time that a block is kept passes; a run of a block
with shards that fit each other."""
STEPS_MAX = 200
SIZE_MAX = 66_000
BYTES_LIMIT = 1  # so a reassembly has its smallest limit: a dozen large blocks
CODED_KEPT = 64
_MADE = struct.Struct(">BhBBBBBHB")  # stream, block, n, m, first, count, size (u24), which bytes
_coded = functools.lru_cache(CODED_KEPT)(coded)


def reassembly(data: bytes) -> None:
    """Only whole block frames that were sent are delivered; bytes stay below the limit, and none is used for ever."""
    bench = harness.ReassemblyHarness(BYTES_LIMIT)
    buffers = bench.reassembly._buffers
    view = memoryview(data)
    end = framing.scan(view, 0, len(view), framing.LENGTH_LIMIT)[0]
    at = 0
    forged = False
    sent: set[bytes] = set()

    def pop() -> None:
        for found in bench.pop():
            assert framing.FRAME.unpack_from(found) == (len(found) - 4, framing.BLOCK)
            assert forged or found in sent

    for _ in range(STEPS_MAX):
        if at >= end:
            break
        length = int.from_bytes(view[at : at + 4], "big")
        frame = bytes(view[at : at + 4 + length])
        at += 4 + length
        match frame[4:5]:
            case b"\x21":
                forged = True
                bench.add_runs(frame)
            case b"\x30":
                pop()
            case b"\x31":
                bench.now += KEEP_NS // 10
            case b"\x32":
                content, run = made_run(frame[5:])
                sent.add(content)
                bench.add_runs(run)
        assert buffers.used + buffers.kept <= buffers.limit
    pop()
    for _ in range(3):
        bench.now += KEEP_NS
        pop()
    assert buffers.used == 0
    assert bench.reassembly.is_idle(bench.now)
    assert not bench.reassembly.due()


def made_run(body: bytes) -> tuple[bytes, bytes]:
    stream, number, n, m, first, count, high, low, which = _MADE.unpack(body.ljust(_MADE.size, b"\0")[: _MADE.size])
    size = 5 + (high << 16 | low) % SIZE_MAX
    content = harness.block(which, size)
    if not shard.shard_bytes(size, n, m):
        return content, framed(b"", n, m, first, count, size, 0, number, stream)
    shards, checksum = _coded(content, n, m)
    return content, framed(b"".join(shards[first : first + count]), n, m, first, count, size, checksum, number, stream)


def made(
    number: int, n: int, m: int, first: int, count: int, stream: int = 0, size: int = 3000, which: int | None = None
) -> bytes:
    """The frame that stands for a run."""
    return framing.frame(
        MADE,
        _MADE.pack(
            stream, number, n, m, first, count, size >> 16, size & 0xFFFF, number & 0xFF if which is None else which
        ),
    )


def reassembly_seeds() -> list[bytes]:
    pop, later = framing.frame(POP), framing.frame(PASS)
    whole = [made(number, 3, 2, 0, 3) for number in range(4)]
    lossy = [made(number, 3, 2, 1, 3) for number in range(4)]
    streams = b"".join(made(0, 3, 1, 0, 2, stream) for stream in range(40))
    raw = b"".join(runs(harness.block(1, 300), 0, (1, 2), 2, 1)) + b"".join(copies(b"\0\0\0\1\x20", 1, 2))
    large = [made(number, 2, 6, 0, 1, size=60_000) for number in range(14)]
    waiting = [made(number, 2, 6, 0, 2, size=60_000, which=1) for number in range(1, 15)]
    busy = b"".join(
        made(0, 3, 1, 0, 2, stream) + made(2, 3, 1, 0, 3, stream) + made(3, 1, 0, 0, 1, stream) for stream in range(36)
    )
    singles = [made(number, 1, 0, 0, 1, size=65_000, which=1) for number in range(1, 40)]
    late = made(0, 3, 2, 0, 1) + made(1, 3, 2, 1, 3) + made(1, 3, 2, 0, 1) + made(1, 3, 2, 4, 1)
    single = [made(number, 1, 2, 0, 1, stream=1, size=200) for number in range(3)]
    return [
        b"".join(each)
        for each in (
            large,
            waiting,
            [*large, *waiting, pop],
            [busy],
            [*singles, pop],
            [late, later * 2, pop],
            [
                made(0, 3, 2, 0, 1),
                made(1, 3, 2, 0, 3),
                made(1500, 3, 2, 0, 3),
                made(20, 3, 2, 0, 2),
                pop,
                made(1, 3, 2, 0, 3),
            ],
            whole + [pop],
            lossy + [pop],
            [*lossy[1:], pop, later, later, lossy[0], pop],
            [streams, pop, streams],
            [raw, pop, later],
            [*single, single[0], pop, single[2], pop],
            [whole[0], made(2000, 3, 2, 0, 3), pop, whole[1]],
            [made(0, 3, 2, 0, 1), later * 12, pop, made(0, 3, 2, 1, 2)],
            [whole[0], made(0, 3, 2, 3, 2), pop, whole[0], pop],
            [made(0, 2, 1, 0, 1), made(0, 2, 1, 1, 1, which=9), pop],
            [made(5, 3, 2, 0, 3), made(-3000, 3, 2, 0, 3), pop],
        )
    ]
