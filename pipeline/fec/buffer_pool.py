"""A bounded number of bytes, lent out in buffers; what comes back is kept for the next borrower.

    lend(size)      a buffer of at least `size` bytes, or None if that would go beyond the limit
    take_back(it)   the borrower is done with it
    hold(size)      count memory that the caller has made itself; False if that would go beyond the limit
    release(size)   it is gone

A buffer's bytes are whatever its last borrower left in them. Sizes are rounded up to one of four steps between two
powers of two, so that blocks of about one size share their buffers. Buffers lent and kept together never exceed the
limit, and those that are kept not a quarter of it.
"""

from __future__ import annotations

SMALLEST_BYTES = 4096
"""The smallest buffer; more than the objects that stand for a block beside it."""

KEPT_SHARE = 4
"""Of the limit, one part in so many is kept for the next borrower at most."""


class BufferPool:
    """What one owner may use. `used`: bytes lent or held now; `kept`: bytes that wait for the next borrower."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.kept = 0
        self._kept: dict[int, list[memoryview]] = {}

    def lend(self, size: int) -> memoryview | None:
        room = rounded(size)
        used = self.used + room
        if used > self.limit:
            return None
        self.used = used
        kept = self._kept.get(room)
        if kept:
            self.kept -= room
            return kept.pop()
        if used + self.kept > self.limit:
            self.forget()
        return memoryview(bytearray(room))

    def take_back(self, buffer: memoryview) -> None:
        room = len(buffer)
        self.used -= room
        if self.kept + room <= self.limit // KEPT_SHARE:
            self.kept += room
            self._kept.setdefault(room, []).append(buffer)

    def hold(self, size: int) -> bool:
        if self.used + size > self.limit:
            return False
        self.used += size
        if self.used + self.kept > self.limit:
            self.forget()
        return True

    def release(self, size: int) -> None:
        self.used -= size

    def forget(self) -> None:
        """Give back to the system what is kept."""
        self._kept.clear()
        self.kept = 0


def rounded(size: int) -> int:
    """Bytes of the buffer that is lent for `size` bytes."""
    if size <= SMALLEST_BYTES:
        return SMALLEST_BYTES
    step = 1 << (size - 1).bit_length() - 3
    return -(-size // step) * step
