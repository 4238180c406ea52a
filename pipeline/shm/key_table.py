"""The key table: the block keys of each peer's session, which the supervisor writes and tun workers alone read.

It is a memfd, not a name in /dev/shm: no other process can map it, and it ends with the processes that have it. The
supervisor maps it and then forbids all later writers (F_SEAL_FUTURE_WRITE, linux/fcntl.h). Each peer index has a record
with a version, which is odd while the record is written. A reader that finds it odd, or changed, has read nothing
(docs/memory-order.md, "Versions").
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import NamedTuple

from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.memory_order import fence

KEY_BYTES = 32  # of the AEADs that there are

F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; not in Python's module
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL

_RECORD = struct.Struct(f"<QIII4x{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s")
_VERSION_BYTES = 8
RECORD_BYTES = 256  # whole cache lines

assert _VERSION_BYTES + _RECORD.size <= RECORD_BYTES


class BlockKeys(NamedTuple):
    """The keys of a session. `open_before` is zeros once the epoch before is over, and in epoch 0."""

    peer_handle: int
    suite: int
    send_epoch: int
    open_epoch: int  # of open_now
    send: bytes
    open_before: bytes
    open_now: bytes
    open_after: bytes


class KeyTable:
    """`capacity`: peer indices; `words`: the table in words of 64 bits. Only the process that made it can write."""

    def __init__(self, fd: int, capacity: int, writable: bool) -> None:
        size = capacity * RECORD_BYTES
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        self._view = memoryview(self._map)
        self.words = self._view.cast("Q")

    @staticmethod
    def version_word(peer_handle: int) -> int:
        """Which of the `words` is the version of the record of this index."""
        return (peer_handle & PEER_INDEX_MASK) * RECORD_BYTES // 8

    def version(self, peer_handle: int) -> int:
        """Of the record of this index: a reader that has seen it need not read the record again."""
        version: int = self.words[self.version_word(peer_handle)]
        return version

    def read(self, peer_handle: int) -> BlockKeys | None:
        """The keys of this session; None if it has none, or while they are written."""
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_BYTES
        version = self.words[at // 8]
        fence()
        data = bytes(self._view[at + _VERSION_BYTES : at + _VERSION_BYTES + _RECORD.size])
        fence()
        if version & 1 or version != self.words[at // 8]:
            return None
        keys = BlockKeys(*_RECORD.unpack(data))
        return keys if keys.peer_handle == peer_handle else None

    def write(self, keys: BlockKeys) -> None:
        self._replace(keys.peer_handle & PEER_INDEX_MASK, _RECORD.pack(*keys))

    def erase(self, peer_handle: int) -> None:
        """The session has ended: nothing is sealed or opened with its keys any more."""
        self._replace(peer_handle & PEER_INDEX_MASK, bytes(_RECORD.size))

    def _replace(self, peer: int, data: bytes) -> None:
        at = peer * RECORD_BYTES
        self.words[at // 8] += 1
        fence()
        self._view[at + _VERSION_BYTES : at + _VERSION_BYTES + _RECORD.size] = data
        fence()
        self.words[at // 8] += 1

    def erase_all(self) -> None:
        """No session has keys."""
        for peer in range(len(self._map) // RECORD_BYTES):
            self._replace(peer, bytes(_RECORD.size))

    def close(self) -> None:
        self.words.release()
        self._view.release()
        self._map.close()


def create(capacity: int) -> tuple[KeyTable, int]:
    """The table, without keys, and its descriptor, from which others can map it to read."""
    fd = os.memfd_create("keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, capacity * RECORD_BYTES)
        table = KeyTable(fd, capacity, writable=True)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return table, fd


def attach(fd: int, capacity: int) -> KeyTable:
    """Map the table of a descriptor, to read."""
    return KeyTable(fd, capacity, writable=False)
