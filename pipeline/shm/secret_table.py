"""A table of secrets of each peer's session, which the supervisor writes and workers of one kind alone read.

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
from typing import Any, ClassVar, Generic, Self, TypeVar

from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.memory_order import fence

F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; not in Python's module
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL

VERSION_BYTES = 8

Record = TypeVar("Record", bound=tuple[Any, ...])


class SecretTable(Generic[Record]):
    """`capacity`: peer indices; `words`: the table in words of 64 bits. Only the process that made it can write.

    A kind of table says what its records are: `LAYOUT`, the peer handle first, and the `RECORD` made of it.
    """

    NAME: ClassVar[str]
    LAYOUT: ClassVar[struct.Struct]
    RECORD_BYTES: ClassVar[int]  # whole cache lines, for the version and the layout
    RECORD: ClassVar[type[tuple[Any, ...]]]

    def __init__(self, fd: int, capacity: int, writable: bool) -> None:
        size = capacity * self.RECORD_BYTES
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        self._view = memoryview(self._map)
        self.words = self._view.cast("Q")

    @classmethod
    def create(cls, capacity: int) -> tuple[Self, int]:
        """The table, without secrets, and its descriptor, from which others can map it to read."""
        fd = os.memfd_create(cls.NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, capacity * cls.RECORD_BYTES)
            table = cls(fd, capacity, writable=True)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return table, fd

    @classmethod
    def attach(cls, fd: int, capacity: int) -> Self:
        """Map the table of a descriptor, to read."""
        return cls(fd, capacity, writable=False)

    @classmethod
    def version_word(cls, peer_handle: int) -> int:
        """Which of the `words` is the version of the record of this index."""
        return (peer_handle & PEER_INDEX_MASK) * cls.RECORD_BYTES // 8

    def version(self, peer_handle: int) -> int:
        """Of the record of this index: a reader that has seen it need not read the record again."""
        version: int = self.words[self.version_word(peer_handle)]
        return version

    def read(self, peer_handle: int) -> Record | None:
        """The secrets of this session; None if it has none, or while they are written."""
        record = self.read_index(peer_handle & PEER_INDEX_MASK)
        return record if record is not None and record[0] == peer_handle else None

    def read_index(self, peer: int) -> Record | None:
        """The secrets of the session that has this index; None if there is none, or while they are written."""
        at = peer * self.RECORD_BYTES
        version = self.words[at // 8]
        fence()
        data = bytes(self._view[at + VERSION_BYTES : at + VERSION_BYTES + self.LAYOUT.size])
        fence()
        if version & 1 or version != self.words[at // 8]:
            return None
        fields = self.LAYOUT.unpack(data)
        return self.RECORD(*fields) if fields[0] else None  # type: ignore[return-value]

    def write(self, record: Record) -> None:
        self._replace(record[0] & PEER_INDEX_MASK, self.LAYOUT.pack(*record))

    def erase(self, peer_handle: int) -> None:
        """The session has ended: its secrets are used no more."""
        self._replace(peer_handle & PEER_INDEX_MASK, bytes(self.LAYOUT.size))

    def _replace(self, peer: int, data: bytes) -> None:
        at = peer * self.RECORD_BYTES
        self.words[at // 8] += 1
        fence()
        self._view[at + VERSION_BYTES : at + VERSION_BYTES + self.LAYOUT.size] = data
        fence()
        self.words[at // 8] += 1

    def erase_all(self) -> None:
        """No session has secrets."""
        for peer in range(len(self._map) // self.RECORD_BYTES):
            self._replace(peer, bytes(self.LAYOUT.size))

    def close(self) -> None:
        self.words.release()
        self._view.release()
        self._map.close()
