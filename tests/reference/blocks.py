"""Frames, blocks and runs, written from docs/wire.md alone. The program's code is not used.

block_frame(packet, ...)    packets_of(body)     a block from packets, and packets from a block
run_frame(...)              Runs().add_run(body) shards of a block, and the block from its shards
                            Shards().add(...)    for blocks of any form
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.reference import erasure_code

DATA, KEEPALIVE, GOAWAY, QUESTION, BLOCK, RUN = 0x01, 0x02, 0x03, 0x04, 0x20, 0x21
FRAME = struct.Struct(">IB")
RUN_FIELDS = struct.Struct(">IIBBBBII")
PACKETS_MAX = 512
BARE = bytes(10)
"""The virtio-net header of a finished packet."""


class Violation(Exception):
    """The other end does something that the document forbids."""


def frame(kind: int, body: bytes = b"") -> bytes:
    return FRAME.pack(1 + len(body), kind) + body


def block_frame(*packets: bytes) -> bytes:
    table = b"".join((len(BARE) + len(packet)).to_bytes(4, "big") for packet in packets)
    return frame(BLOCK, len(packets).to_bytes(2, "big") + table + b"".join(BARE + packet for packet in packets))


def packets_of(body: bytes) -> list[bytes]:
    """The packets of a block."""
    (count,) = struct.unpack_from(">H", body)
    lengths = struct.unpack_from(f">{count}I", body, 2)
    at = 2 + 4 * count
    if count > PACKETS_MAX or at + sum(lengths) != len(body):
        raise Violation(f"block of {count} packets, {sum(lengths)} bytes of them in {len(body) - at}")
    packets = []
    for length in lengths:
        packets.append(finished_packet(body[at : at + length]))
        at += length
    return packets


def finished_packet(packet: bytes) -> bytes:
    """The packet behind its virtio-net header. Violation if it is unfinished: the client has no offloads."""
    flags, gso = packet[:2]
    if flags & 1 or gso:
        raise Violation(f"packet with flags {flags} and gso_type {gso} for an end without offloads")
    return packet[len(BARE) :]


def run_frame(stream: int, number: int, n: int, packets: Sequence[bytes], first: int = 0, count: int = 0) -> bytes:
    """A block of these packets cut into n data shards, without parity: `count` of the shards, or all."""
    block = block_frame(*packets)
    size = erasure_code.shard_size(len(block), n, 0)
    shards = block.ljust(n * size, b"\0")
    count = count or n
    head = RUN_FIELDS.pack(
        stream, number, n, 0, first, count, len(block), 0 if n == 1 else erasure_code.checksum(shards, n, 0)
    )
    return frame(RUN, head + shards[first * size : (first + count) * size])


class Shards:
    """Blocks put together from any n of their shards. The runs of a block agree about its head, which begins n, m."""

    def __init__(self) -> None:
        self.blocks = {1: 0, 2: 0}  # blocks put together: those with one data shard, and those with more
        self._shards: dict[tuple[int, int], dict[int, bytes]] = {}
        self._heads: dict[tuple[int, int], tuple] = {}

    @property
    def incomplete(self) -> int:
        """Blocks that are not whole yet."""
        return len(self._shards)

    def add(self, which: tuple[int, int], head: tuple, first: int, shards: Sequence[bytes]) -> bytes | None:
        """All data shards of the block that these complete, if they complete one. `which`: stream and number."""
        n, m = head[:2]
        if which not in self._heads:
            self._heads[which], self._shards[which] = head, {}
        if self._heads[which] != head:
            raise Violation(f"runs of one block do not agree: {head} and {self._heads[which]}")
        if which not in self._shards:
            return None  # the block was complete before
        there = self._shards[which]
        there.update(enumerate(shards, first))
        if len(there) < n:
            return None
        del self._shards[which]
        self.blocks[min(n, 2)] += 1
        return shards[0] if n == 1 else erasure_code.recover(there, n, m)


class Runs(Shards):
    """Block frames from runs without encryption."""

    def add_run(self, body: bytes) -> list[bytes]:
        """The block frame that this run completes, if it completes one."""
        stream, number, n, m, first, count, size, checksum = RUN_FIELDS.unpack_from(body)
        each = erasure_code.shard_size(size, n, m)
        content = body[RUN_FIELDS.size :]
        if len(content) != count * each or not 0 < count <= n + m - first:
            raise Violation(f"run of {count} shards from {first} on, n {n}, m {m}, in {len(content)} bytes")
        shards = [content[at : at + each] for at in range(0, len(content), each)]
        block = self.add((stream, number), (n, m, size, checksum), first, shards)
        if block is None:
            return []
        if n > 1 and (block[size:].strip(b"\0") or checksum != erasure_code.checksum(block, n, m)):
            raise Violation("bytes behind the end of the block that are not zero, or a wrong checksum")
        return [block[:size]]
