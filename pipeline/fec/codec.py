"""The erasure code: m parity shards for n data shards; any m of the n + m may be lost.

    codec = Codec()                                scratch memory; one for each duty, never for two threads
    codec.encode(area, n, m, size)                 write the parity shards
    codec.encode_many(areas, n, m, size)           the same for several blocks of one shape
    codec.recover(area, n, m, size, present)       write the data shards that `present` has no bit for
    codec.checksum(area, n, m, size)               u32 of the data shards

An area is n data shards and m parity shards of `size` bytes, one behind the other, at any alignment. No reference to it
is kept. Outside the code's domain (`check`), or for a size that is not p - 1 rows of whole words: LocalError, and
nothing has been written.

The code is Blaum and Roth's; docs/fec-code.md has it for other implementations. A shard is p - 1 rows and, not
stored, one more of zeros. Turned by k, it has its row (r + k) mod p as row r. Parity j is the sum (XOR) of all data
shards, shard i turned by i * j; then its last row is added to every row.

How a parity becomes one reduction. The rows of the data shards are one series. Row t of shard i is number
(p - 1) * i + t of it, which is t - i modulo p: the row of parity 1 that it belongs to. So parity 1 is the data as they
lie, in groups of p rows, summed. For parity j, shard i is copied to place i * j mod p of such a series, with zeros
where no shard goes, and the same is done.

Rows are summed as bytes, which is as fast as words and needs no alignment.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import numpy as np

from pipeline.errors import LocalError
from pipeline.fec.field import solution
from pipeline.fec.scratch import WORD_BYTES, Shape, bytes_needed
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX, prime

Area = memoryview | bytearray | np.ndarray

SHAPES_KEPT = 256  # 3 to 30 KiB each; block sizes that give another shape are 8 * (p - 1) * n bytes apart

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
    """Scratch memory that grows to the largest shape seen, and the views of it that each shape needs."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, _WORD)
        self._shapes: dict[tuple[int, int, int], Shape] = {}
        self._used: Shape | None = None  # by the last call: all shapes share the memory
        self._placed: Shape | None = None  # whose zeros stand in the places where no shard goes

    def encode(self, area: Area, n: int, m: int, size: int) -> None:
        """Write the m parity shards."""
        shape = self._use(n, m, size)
        shards = _view(shape.area, _BYTE, area)
        _sum(shards[:n], 0, None, shards[n])
        if m > 1:
            for j in range(1, m):
                self._turn_and_sum(shape, area, shards, j)
            _xor(shape.parity_rows, shape.parity_last, _view(shape.parity, _BYTE, area, (n + 1) * size))

    def encode_many(self, areas: Iterable[Area], n: int, m: int, size: int) -> None:
        """Write the parity shards of each area. A loop: blocks side by side in one scratch area are two more copies,
        which take most of what fewer calls give."""
        for area in areas:
            self.encode(area, n, m, size)

    def recover(self, area: Area, n: int, m: int, size: int, present: int) -> int:
        """Write the data shards that are missing; how many there were. Bit i of `present` is shard i, data first.

        What stands in the place of a missing shard does not matter: it is corrected by the difference that it makes.
        Parity shards are left as they are. LocalError if fewer than n shards are present.
        """
        shape = self._use(n, m, size)
        found = solution(shape.p, n, m, present)
        if found is None:
            there = (present & (1 << n + m) - 1).bit_count()
            raise LocalError(f"block of {n} + {m} shards: {n} expected to recover it from, {there} are present")
        used, turned, steps, by_sum = found
        if not used:
            return 0
        shards = _view(shape.area, _BYTE, area)
        for j in used:
            total = shape.stored[j]
            if j == 0:
                _sum(shards[: n + 1], 0, None, total)
            else:
                self._turn_and_sum(shape, area, shards, j)
                _xor(total, shards[n + j], total)
        remaining = shards[by_sum] if by_sum >= 0 else None
        if steps:
            solver = shape.solver()
            solver.begin(turned)
            for i, sources, factor in steps:
                difference = solver.shard(sources, factor)
                shard = shards[i]
                _xor(shard, difference, shard)
                if remaining is not None:
                    _xor(remaining, difference, remaining)
        if remaining is not None:
            _xor(remaining, shape.stored[0], remaining)
        return len(used)

    def checksum(self, area: Area, n: int, m: int, size: int) -> int:
        """u32 of the data shards: the CRC-32 of the sums of their rows. Against wrong recovery, not against forgery."""
        shape = self._use(n, m, size)
        _row_sums("ij->i", _view(shape.words, _WORD, area), out=shape.row_sums)
        return crc32(shape.row_sums)

    def _use(self, n: int, m: int, size: int) -> Shape:
        shape = self._shapes.get((n, m, size)) or self._shape(n, m, size)
        if shape is not self._used:
            self._used = shape
            self._placed = None  # the last shape may have written where the zeros were
        return shape

    def _turn_and_sum(self, shape: Shape, area: Area, shards: np.ndarray, j: int) -> None:
        """The sum of the data shards, each turned for parity j >= 1, as p rows."""
        if j == 1:
            _sum(_view(shape.groups, _BYTE, area), 0, None, shape.sums[1])
            if shape.rest:
                _xor(shape.beginning, _view(shape.rest, _BYTE, area, shape.rest_at), shape.beginning)
            return
        if self._placed is not shape:
            shape.all_places.fill(0)
            self._placed = shape
        for places, first, end in shape.places[j]:
            _copy(places, shards[first:end])
        _sum(shape.place_groups[j], 0, None, shape.sums[j])

    def _shape(self, n: int, m: int, size: int) -> Shape:
        """A shape that was not kept. Memory that has to grow, or too many shapes, end all that were kept."""
        check(n, m)
        p = prime(n, m)
        if size < 1 or size % ((p - 1) * WORD_BYTES):
            raise LocalError(
                f"block of {n} + {m} shards: a multiple of {(p - 1) * WORD_BYTES} bytes expected as the "
                f"size of a shard, found {size}"
            )
        needed = bytes_needed(p, n, m, size) // WORD_BYTES
        if len(self._memory) < needed or len(self._shapes) >= SHAPES_KEPT:
            self._shapes.clear()
        if len(self._memory) < needed:
            self._memory = np.zeros(needed, _WORD)
        shape = self._shapes[n, m, size] = Shape(self._memory, p, n, m, size)
        return shape
