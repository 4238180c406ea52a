"""The erasure code: m parity shards for n data shards; any m of the n + m shards may be lost.

    codec = Codec()                                scratch memory; one for each duty, never shared by two threads
    codec.encode(area, n, m, size)                 write the parity shards
    codec.recover(area, n, m, size, present)       write the data shards that `present` has no bit for
    codec.checksum(area, n, m, size)               u32 of the data shards

An area is n data shards and m parity shards of `size` bytes, one behind the other, at any alignment. The codec keeps
no reference to it. Outside the code's domain (`check`), or for a size that is not p - 1 rows of whole words, a call
raises LocalError and has written nothing.

The code is Blaum and Roth's; docs/fec-code.md defines it for other implementations. A shard is p - 1 rows and one more
row of zeros, which is not stored. A shard turned by k has as row r its row (r + k) mod p. Parity j is the sum (XOR) of
all data shards, shard i turned by i * j; then its last row is added to every row.

How a parity becomes one reduction. The rows of the data shards are one series. Row t of shard i is number
(p - 1) * i + t of the series. That is t - i modulo p, the row of parity 1 that it belongs to. So parity 1 is the sum
of the data as they lie, in groups of p rows. For parity j, shard i is copied to place i * j mod p of such a series,
with zeros where no shard goes. That series is summed in the same groups.

Rows are summed as bytes, which is as fast as words and needs no alignment.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from pipeline.errors import LocalError
from pipeline.fec.field import solution
from pipeline.fec.scratch import WORD_BYTES, Array, ScratchViews, bytes_needed
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX, prime

Area = memoryview | bytearray | Array

CUTS_KEPT = 256
"""Cuts (n, m, size) whose views are kept: 3 to 30 KiB each. Block sizes of two cuts are 8 * (p - 1) * n bytes
apart."""

_BYTE = np.dtype(np.uint8)
_WORD = np.dtype("<u8")

_view = np.ndarray
_xor = np.bitwise_xor
_sum = np.bitwise_xor.reduce
_row_sums = np.einsum
_copy = np.copyto


def check(n: int, m: int) -> None:
    """LocalError if n data and m parity shards are outside the domain in which any m losses are recovered."""
    for count, least, most, what, too_few in (
        (n, 2, DATA_SHARDS_MAX, "data", "a single one is copied, not coded"),
        (m, 1, PARITY_SHARDS_MAX, "parity", "without parity there is nothing to code"),
    ):
        if not least <= count <= most:
            reason = too_few if count < least else f"beyond, not every loss of {m} shards is known to be recovered"
            raise LocalError(
                f"code of {n} + {m} shards: {least} to {most} {what} shards expected, found {count}: {reason}"
            )


class Codec:
    """Scratch memory that grows to the largest cut used, and the views of it for each cut (n, m, size)."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, _WORD)
        self._views: dict[tuple[int, int, int], ScratchViews] = {}
        self._used: ScratchViews | None = None  # those of the last call; all cuts share the memory
        self._placed: ScratchViews | None = None  # those whose zeros are in the places where no shard goes

    def encode(self, area: Area, n: int, m: int, size: int) -> None:
        """Write the m parity shards."""
        views = self._use(n, m, size)
        shards = _view(views.area, _BYTE, area)
        _sum(shards[:n], 0, None, shards[n])
        if m > 1:
            for j in range(1, m):
                self._turn_and_sum(views, area, shards, j)
            _xor(views.parity_rows, views.parity_last, _view(views.parity, _BYTE, area, (n + 1) * size))

    def recover(self, area: Area, n: int, m: int, size: int, present: int) -> int:
        """Write the missing data shards, and return their number. Bit i of `present` is shard i, data shards first.

        The bytes in the place of a missing shard do not matter: the difference that they make is corrected. Parity
        shards stay as they are. LocalError if fewer than n shards are present.
        """
        views = self._use(n, m, size)
        found = solution(views.p, n, m, present)
        if found is None:
            count = (present & (1 << n + m) - 1).bit_count()
            raise LocalError(f"block of {n} + {m} shards: {n} expected to recover it from, {count} are present")
        used, turned, steps, by_sum = found
        if not used:
            return 0
        shards = _view(views.area, _BYTE, area)
        for j in used:
            total = views.stored[j]
            if j == 0:
                _sum(shards[: n + 1], 0, None, total)
            else:
                self._turn_and_sum(views, area, shards, j)
                _xor(total, shards[n + j], total)
        remaining = shards[by_sum] if by_sum >= 0 else None
        if steps:
            solver = views.solver()
            solver.extend_sums(turned)
            for i, sources, factor in steps:
                difference = solver.lost_shard(sources, factor)
                shard = shards[i]
                _xor(shard, difference, shard)
                if remaining is not None:
                    _xor(remaining, difference, remaining)
        if remaining is not None:
            _xor(remaining, views.stored[0], remaining)
        return len(used)

    def checksum(self, area: Area, n: int, m: int, size: int) -> int:
        """u32 of the data shards: the CRC-32 of the sums of their rows. It shows wrong recovery, not forgery."""
        views = self._use(n, m, size)
        _row_sums("ij->i", _view(views.words, _WORD, area), out=views.row_sums)
        return crc32(views.row_sum_bytes)

    def _use(self, n: int, m: int, size: int) -> ScratchViews:
        views = self._views.get((n, m, size)) or self._make_views(n, m, size)
        if views is not self._used:
            self._used = views
            self._placed = None  # the last call may have written over the zeros
        return views

    def _turn_and_sum(self, views: ScratchViews, area: Area, shards: Array, j: int) -> None:
        """The sum of the data shards, each turned for parity j >= 1, as p rows."""
        if j == 1:
            _sum(_view(views.groups, _BYTE, area), 0, None, views.sums[1])
            if views.rest:
                _xor(views.beginning, _view(views.rest, _BYTE, area, views.rest_at), views.beginning)
            return
        if self._placed is not views:
            views.all_places.fill(0)
            self._placed = views
        for places, first, end in views.places[j]:
            _copy(places, shards[first:end])
        _sum(views.place_groups[j], 0, None, views.sums[j])

    def _make_views(self, n: int, m: int, size: int) -> ScratchViews:
        """Make the views of a cut. All kept views go when the memory has to grow, or when there are too many."""
        check(n, m)
        p = prime(n, m)
        if size < 1 or size % ((p - 1) * WORD_BYTES):
            raise LocalError(
                f"block of {n} + {m} shards: a multiple of {(p - 1) * WORD_BYTES} bytes expected as the "
                f"size of a shard, found {size}"
            )
        needed = bytes_needed(p, n, m, size) // WORD_BYTES
        if len(self._memory) < needed or len(self._views) >= CUTS_KEPT:
            self._views.clear()
        if len(self._memory) < needed:
            self._memory = np.zeros(needed, _WORD)
        views = self._views[n, m, size] = ScratchViews(self._memory, p, n, m, size)
        return views
