"""The windows against blocks that come twice, in memory that outlives the worker that opens the blocks.

There is one for each peer, and lane and kind of the sender. It has the last two processes that sealed: of each the
highest number that was opened, and a bit for each of the WINDOW numbers up to it. As in RFC 6479 the bits are a ring: a
number has its place for good.

    may_open    before a block is opened: whether it is new, as far as the window tells
    mark        once it has been opened, and before a packet of it goes on

A kill at any instant makes nothing old count as new. For that the stores have an order: first the top moves, then the
bits that it has passed are cleared, then the bit of the number is set. At worst some blocks that were never opened
count as opened.
"""

from __future__ import annotations

import mmap

from pipeline.sealing.kinds import KINDS as KINDS_OF_LANE
from pipeline.sealing.kinds import LANES_MAX
from pipeline.shm.layout import PEER_INDEX_MASK

WINDOW = 8192
"""Blocks: of 64 KiB and at 5 Gbit/s, those of a second."""

KINDS = LANES_MAX * KINDS_OF_LANE  # the lower 8 bits of a stream
RECORD_BYTES = 4096  # a page of its own: only the windows that are used take memory
_HALF_BYTES = RECORD_BYTES // 2  # of the process that seals now, and of the one before it
_BITS_AT = 64  # in a half
_BITS_BYTES = WINDOW // 8
_PEER_HANDLE = 1  # word of the first half

_NONE = bytes(_BITS_BYTES)
_KNOWN = 1 << 63  # of the first word of a half: it has a window
_U32 = 0xFFFFFFFF
_HALF = 1 << 31  # a number is ahead of another by less than this
_PROCESS_MASK = 0xFFFFFF

assert _BITS_AT + _BITS_BYTES <= _HALF_BYTES


class ReplayWindows:
    """`view`: bytes_of() bytes, zeros at first, which one duty writes."""

    def __init__(self, view: memoryview) -> None:
        self._bytes = view
        self._words = view.cast("Q")
        self._next: dict[int, int] = {}  # by peer handle and stream: the number behind the highest that was opened

    @staticmethod
    def bytes_of(capacity: int) -> int:
        """For so many peers; most of it is never touched."""
        return capacity * KINDS * RECORD_BYTES

    def copy(self) -> ReplayWindows:
        """The same windows in private memory, of which only the used ones take any."""
        copied = ReplayWindows(memoryview(mmap.mmap(-1, len(self._bytes))))
        for at in range(0, len(self._bytes), RECORD_BYTES):
            if self._words[at >> 3]:
                copied._bytes[at : at + RECORD_BYTES] = self._bytes[at : at + RECORD_BYTES]
        copied._next = dict(self._next)
        return copied

    def may_open(self, peer_handle: int, stream: int, number: int) -> bool:
        if self._next.get(peer_handle << 32 | stream) == number:
            return True
        at = ((peer_handle & PEER_INDEX_MASK) * KINDS + (stream & 0xFF)) * RECORD_BYTES
        words = self._words
        first = words[at >> 3]
        if not first or words[(at >> 3) + _PEER_HANDLE] != peer_handle:
            return True
        process = stream >> 8
        if process != first >> 32 & _PROCESS_MASK:
            if process > first >> 32 & _PROCESS_MASK:
                return True
            at += _HALF_BYTES
            first = words[at >> 3]
            if not first or process != first >> 32 & _PROCESS_MASK:
                return False
        behind = (first & _U32) - number & _U32
        if behind > _HALF:
            return True
        place = number % WINDOW
        return behind < WINDOW and not self._bytes[at + _BITS_AT + (place >> 3)] >> (place & 7) & 1

    def mark(self, peer_handle: int, stream: int, number: int) -> None:
        """A block that may_open() admits has been opened."""
        at = ((peer_handle & PEER_INDEX_MASK) * KINDS + (stream & 0xFF)) * RECORD_BYTES
        key = peer_handle << 32 | stream
        if self._next.get(key) == number:
            self._words[at >> 3] = _KNOWN | stream >> 8 << 32 | number
            self._next[key] = number + 1 & _U32
        else:
            at = self._move(at, peer_handle, stream, number)
        place = number % WINDOW
        self._bytes[at + _BITS_AT + (place >> 3)] |= 1 << (place & 7)

    def _move(self, at: int, peer_handle: int, stream: int, number: int) -> int:
        """Make room for a number that is not the next one. Where the half of its process is."""
        words = self._words
        process = stream >> 8
        if words[(at >> 3) + _PEER_HANDLE] != peer_handle:
            words[at >> 3] = 0  # nothing of another session can be opened, so it needs no window
            words[(at >> 3) + _PEER_HANDLE] = peer_handle
        first = words[at >> 3]
        if not first or process > first >> 32 & _PROCESS_MASK:
            self._next.clear()  # of the process before this one, or of another session
            self._begin(at, first, _KNOWN | process << 32 | number)
            first = words[at >> 3]
        is_latest = process == first >> 32 & _PROCESS_MASK
        if not is_latest:
            at += _HALF_BYTES
            first = words[at >> 3]
        ahead = number - (first & _U32) & _U32
        if 0 < ahead < _HALF:
            first = words[at >> 3] = _KNOWN | process << 32 | number
            if ahead > 1:
                self._clear(at + _BITS_AT, number - ahead + 1, min(ahead - 1, WINDOW))
        if is_latest:
            self._next[peer_handle << 32 | stream] = (first & _U32) + 1 & _U32
        return at

    def _begin(self, at: int, before: int, first: int) -> None:
        """Begin the window of a process of which nothing has been opened; that of the one before is kept."""
        view, words = self._bytes, self._words
        bits, earlier = at + _BITS_AT, at + _HALF_BYTES
        words[earlier >> 3] = 0
        view[earlier + _BITS_AT : earlier + _BITS_AT + _BITS_BYTES] = view[bits : bits + _BITS_BYTES]
        words[earlier >> 3] = before
        words[at >> 3] = first
        view[bits : bits + _BITS_BYTES] = _NONE

    def _clear(self, bits: int, number: int, count: int) -> None:
        """Clear the places of `count` numbers, from `number` on."""
        view = self._bytes
        while count and (number & 7 or count < 8):  # up to a whole byte, or all of a few
            place = number % WINDOW
            view[bits + (place >> 3)] &= ~(1 << (place & 7)) & 0xFF
            number += 1
            count -= 1
        while count >= 8:  # whole bytes, up to the end of the ring
            first = number % WINDOW >> 3
            size = min(count >> 3, _BITS_BYTES - first)
            view[bits + first : bits + first + size] = _NONE[:size]
            number += size << 3
            count -= size << 3
        for passed in range(number, number + count):
            place = passed % WINDOW
            view[bits + (place >> 3)] &= ~(1 << (place & 7)) & 0xFF
