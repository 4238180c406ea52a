"""The parts of a lane that blocks are sealed and opened with, without shared memory: keys, windows, a peer table.

Lane          the memory of a tun worker's lane, which outlives its processes
Lane.sealing, Lane.opening    those of a new process
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

from pipeline.counters import COUNTERS, ID
from pipeline.fec import shard
from pipeline.runtime.worker import Attachment
from pipeline.sealing import aead, kinds
from pipeline.sealing.replay_window import ReplayWindows
from pipeline.shm.key_table import BlockKeys, KeyTable
from pipeline.shm.layout import COUNTERS_MAX, PEER_INDEX_BITS, RECORD_WORDS
from pipeline.wire import framing
from workers.tun.sealing import BlockOpening, BlockSealing

CAPACITY = 2
LANES = 2
SUITE = 1
NO_KEY = bytes(32)


def words(count: int) -> memoryview:
    return memoryview(bytearray(8 * count)).cast("Q")


def handle(number: int, peer: int = 0) -> int:
    return number << PEER_INDEX_BITS | peer


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def block_keys(peer_handle: int, send: bytes, epoch: int = 0, **others: Any) -> BlockKeys:
    """Keys with which a sender seals what it opens itself."""
    known = {"open_before": NO_KEY, "open_now": send, "open_after": NO_KEY, "open_epoch": epoch} | others
    return BlockKeys(peer_handle, SUITE, epoch, send=send, **known)


class Lane:
    """One lane of an end. `keys`: the table as its supervisor writes it. `datagrams`: it has dgram workers."""

    def __init__(
        self, number: int = 0, keys: KeyTable | None = None, mode: str = "server", datagrams: bool = False
    ) -> None:
        self._fd = -1
        if keys is None:
            keys, self._fd = KeyTable.create(CAPACITY)
        self.keys = keys
        self.number = number
        self.counters = words(COUNTERS_MAX)
        self.transit = [words(RECORD_WORDS * CAPACITY) for _ in range(number + 1)]
        self.windows = memoryview(bytearray(ReplayWindows.bytes_of(CAPACITY)))
        self.attachment = cast(
            "Attachment",
            SimpleNamespace(
                plan=SimpleNamespace(lanes=LANES, mode=mode),
                worker=SimpleNamespace(lane=number),
                page=SimpleNamespace(counters=self.counters),
                peer_table=SimpleNamespace(
                    transit_numbers=self.transit, capacity=CAPACITY, datagrams_in=[words(1)] if datagrams else []
                ),
            ),
        )

    def sealing(self, process: int, own: Iterable[int] = kinds.FROM_TUN) -> BlockSealing:
        return BlockSealing(self.attachment, self.keys, process, own, ID["tun.dropped_no_key"])

    def opening(self) -> BlockOpening:
        return BlockOpening(self.attachment, self.keys, ReplayWindows(self.windows))

    def counts(self) -> dict[str, int]:
        return {each.name: self.counters[each.id] for each in COUNTERS if self.counters[each.id]}

    def word(self, peer: int, word: int) -> int:
        return self.transit[self.number][peer * RECORD_WORDS + word]

    def close(self) -> None:
        self.keys.close()
        if self._fd >= 0:
            os.close(self._fd)


def sealed(
    sealing: BlockSealing, peer_handle: int, kind: int, plaintext: bytes, packets: int = 1, copies: int = 1
) -> list[bytes]:
    """The run frames of a block, one for each copy; none if there was no key."""
    room = copies * (shard.RUN_BYTES + len(plaintext) + aead.TAG_BYTES)
    slot = memoryview(bytearray(room))
    _, length = sealing.seal(slot, 0, peer_handle, kind, memoryview(plaintext), packets, copies)
    return [bytes(slot[at : at + length]) for at in range(0, room, length)] if length else []


def opened(opening: BlockOpening, run: bytes, peer_handle: int) -> bytes | None:
    """The plaintext of a run frame; None if it was not opened."""
    size = opening.open(memoryview(run), 0, len(run), peer_handle)
    return None if size < 0 else bytes(opening.plaintext[:size])


def changed(run: bytes, **fields: int) -> bytes:
    """A run frame with other fields in its header."""
    names = ("length", "kind", "stream", "number", "n", "m", "first", "count", "size", "epoch", "packets")
    found = dict(zip(names, shard.SEALED_RUN.unpack_from(run), strict=True)) | fields
    assert found["kind"] == framing.RUN
    return shard.SEALED_RUN.pack(*found.values()) + run[shard.RUN_BYTES :]
