"""A pool of buffers whose bytes together stay below a limit; a buffer that comes back is kept for the next use.

    acquire(size)      a buffer of at least `size` bytes, or None if it would exceed the limit
    release(buffer)    give a buffer back; its holder does not use it any more
    reserve(size)      count memory that the caller has allocated itself; False if it would exceed the limit
    unreserve(size)    that memory is free again
    trim()             return the kept buffers to the system

A buffer's bytes are what its last holder left in them. Sizes are rounded up to one of four steps between two powers of
two, so that blocks of about one size share their buffers. Used and kept bytes together never exceed the limit, and the
kept ones never a quarter of it.
"""

from __future__ import annotations

SMALLEST_BYTES = 4096
"""The smallest buffer. It is larger than the objects that stand for a block beside its buffer."""

KEPT_SHARE = 4
"""At most this fraction of the limit (one part in KEPT_SHARE) is kept for later use."""


class BufferPool:
    """The memory of one owner. `used`: bytes acquired or reserved now; `kept`: bytes of buffers that came back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.kept = 0
        self._kept: dict[int, list[memoryview]] = {}

    def acquire(self, size: int) -> memoryview | None:
        room = rounded_up(size)
        used = self.used + room
        if used > self.limit:
            return None
        self.used = used
        kept = self._kept.get(room)
        if kept:
            self.kept -= room
            return kept.pop()
        if used + self.kept > self.limit:
            self.trim()
        return memoryview(bytearray(room))

    def release(self, buffer: memoryview) -> None:
        room = len(buffer)
        self.used -= room
        if self.kept + room <= self.limit // KEPT_SHARE:
            self.kept += room
            self._kept.setdefault(room, []).append(buffer)

    def reserve(self, size: int) -> bool:
        if self.used + size > self.limit:
            return False
        self.used += size
        if self.used + self.kept > self.limit:
            self.trim()
        return True

    def unreserve(self, size: int) -> None:
        self.used -= size

    def trim(self) -> None:
        self._kept.clear()
        self.kept = 0


def rounded_up(size: int) -> int:
    """Bytes of the buffer that acquire() gives for `size` bytes."""
    if size <= SMALLEST_BYTES:
        return SMALLEST_BYTES
    step = 1 << (size - 1).bit_length() - 3
    return -(-size // step) * step
