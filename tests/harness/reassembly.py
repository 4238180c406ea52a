"""Blocks, their runs of shards, and a reassembly whose clock the test moves."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.counters import COUNTERS
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.fec.reassembly import BYTES_LIMIT, Reassembly
from pipeline.fec.reorder import REORDER_WINDOW
from pipeline.shm import layout
from pipeline.wire import framing

BULK = shard.stream(0xABCDEF, 3, framing.BULK)
LIGHT = shard.stream(0xABCDEF, 3, framing.LIGHT)
MS = 1_000_000
CODEC = Codec()

FIVE = (3, 3, 3, 2, 2)
"""Shards of each run of a 10 + 3 block over five connections."""


def block(number: int, size: int = 13_000) -> bytes:
    """A whole block frame that differs from every other."""
    return framing.FRAME.pack(size - 4, framing.BLOCK) + random.Random(number).randbytes(size - framing.FRAME.size)


def run(data: bytes, n: int, m: int, first: int, count: int, number: int = 0, stream: int = BULK) -> bytes:
    """The frame with `count` shards of a block."""
    shards, checksum = coded(data, n, m)
    return framed(b"".join(shards[first : first + count]), n, m, first, count, len(data), checksum, number, stream)


def runs(
    data: bytes, number: int, counts: Sequence[int] = FIVE, n: int = 10, m: int = 3, stream: int = BULK
) -> list[bytes]:
    """The frames with all shards of a block, `counts` of them in each."""
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    return [run(data, n, m, first, count, number, stream) for first, count in zip(firsts, counts, strict=True)]


def copies(data: bytes, number: int, count: int = 1, stream: int = BULK) -> list[bytes]:
    """The frames of a block of one shard."""
    return runs(data, number, [1] * count, 1, count - 1, stream)


def framed(
    shards: bytes, n: int, m: int, first: int, count: int, size: int, checksum: int, number: int = 0, stream: int = BULK
) -> bytes:
    length = shard.RUN_BYTES - framing.LENGTH.size + len(shards)
    return shard.RUN.pack(length, framing.RUN, stream, number & 0xFFFFFFFF, n, m, first, count, size, checksum) + shards


def coded(data: bytes, n: int, m: int) -> tuple[list[bytes], int]:
    """A block's shards and its checksum."""
    if n == 1:
        return [data] * (1 + m), 0
    each = shard.shard_bytes(len(data), n, m)
    area = memoryview(bytearray((n + m) * each))
    area[: len(data)] = data
    checksum = 0
    if m:
        CODEC.encode(area, n, m, each)
        checksum = CODEC.checksum(area, n, m, each)
    return [bytes(area[i * each : (i + 1) * each]) for i in range(n + m)], checksum


class ReassemblyHarness:
    """A reassembly. `now` passes only when a test says so. `torn_ms`: how long blocks may be torn, from now on."""

    def __init__(self, bytes_limit: int = BYTES_LIMIT, torn_ms: int = 0) -> None:
        self.counters = memoryview(bytearray(8 * layout.COUNTERS_MAX)).cast("Q")
        self.now = 5_000_000_000
        torn_until_ns = self.now + torn_ms * MS if torn_ms else 0
        self.reassembly = Reassembly(CODEC, self.counters, bytes_limit, torn_until_ns)

    def add_runs(self, *frames: bytes) -> None:
        for frame in frames:
            (length,) = framing.LENGTH.unpack_from(frame)
            slot = bytearray(b"\xdb" * 7 + frame + b"\xdb" * 5)
            self.reassembly.add_run(memoryview(slot), 7, length, self.now)
            slot[:] = bytes(len(slot))  # a view of the slot that is kept would show

    def receive_long(self, until: int, stream: int = BULK) -> None:
        """Receive a stream up to the block before `until`, so long that blocks before its first one do not matter."""
        for number in range(until - REORDER_WINDOW, until):
            self.add_runs(*copies(block(number, 20), number, stream=stream))
        self.pop()
        self.counters[:] = memoryview(bytes(self.counters.nbytes)).cast("Q")

    def pop(self) -> list[bytes]:
        """All blocks that may be delivered now."""
        found = []
        while (block := self.pop_one()) is not None:
            found.append(block)
        return found

    def pop_one(self) -> bytes | None:
        """The next block that may be delivered now."""
        view = self.reassembly.pop(self.now)
        return None if view is None else bytes(view)

    def due_ms(self) -> float | None:
        """Milliseconds until a waiting block is due; None if no block waits."""
        due = self.reassembly.due()
        return (due - self.now) / MS if due else None

    def counts(self) -> dict[str, int]:
        """The counters that are not zero, without the runs received."""
        return {
            counter.name.removeprefix("fec."): self.counters[counter.id]
            for counter in COUNTERS
            if self.counters[counter.id] and counter.name != "fec.runs_received"
        }
