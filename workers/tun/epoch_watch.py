"""The news of epochs for an outbound duty that is a process of its own.

A peer waits to hear that a block of its new epoch was opened here. The inbound duty opens it, and writes the epoch into
the peer table (`TRANSIT_EPOCH_OPENED`). Where both duties are one process, it also tells the outbound duty
(`workers.tun.sealing`). Here the outbound duty looks at the table by itself, ten times a second: the sender of an epoch
waits for seconds.
"""

from __future__ import annotations

import time
from collections import deque

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import RECORD_WORDS, TRANSIT_EPOCH_OPENED
from workers.tun.packer import Packer
from workers.tun.reader import TunReader
from workers.tun.sealing import EPOCH_BITS

LOOK_NS = 100_000_000
_EPOCH_MASK = (1 << EPOCH_BITS) - 1


class EpochWatch:
    """`owed`: the handles of peers that wait to hear of an epoch; the packer takes them out."""

    def __init__(self, attachment: Attachment) -> None:
        self.owed: deque[int] = deque()
        self._words = attachment.peer_table.transit_numbers[attachment.worker.lane]
        self._seen = self._opened()
        self._look_ns = 0

    def _opened(self) -> list[int]:
        """Of each peer: its handle, and the latest epoch of which a block has been opened."""
        return self._words[TRANSIT_EPOCH_OPENED::RECORD_WORDS].tolist()

    def look(self, now: int) -> None:
        """Note whose epoch has changed. Nobody waits for the first one."""
        if now < self._look_ns:
            return
        self._look_ns = now + LOOK_NS
        opened = self._opened()
        if opened == self._seen:
            return
        for word, before in zip(opened, self._seen, strict=True):
            peer_handle = word >> EPOCH_BITS
            if word != before and word & _EPOCH_MASK and peer_handle not in self.owed:
                self.owed.append(peer_handle)
        self._seen = opened


class WatchingReader(TunReader):
    """A TunReader that looks by itself."""

    def __init__(self, attachment: Attachment, fd: int, packer: Packer, watch: EpochWatch) -> None:
        super().__init__(attachment, fd, packer)
        self._watch = watch

    def work(self) -> int:
        self._watch.look(time.monotonic_ns())
        return super().work()
