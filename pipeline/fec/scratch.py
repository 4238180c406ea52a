"""The scratch memory of `pipeline.fec.codec` as one cut (n, m, size) sees it.

    region    rows           contents
    sums      (m + 1) * 2p   for each parity a sum of turned data shards: p rows, and for solving a copy of them behind,
                             so that p rows from row k on are that sum turned by k; the last sum is the one that a lost
                             shard is a multiple of
    solved    p              a lost shard
    places    p * groups     for each parity from 2 on the data shards at their places, and zeros where no shard goes

A checksum writes its sums of rows over the first two regions. The places keep their zeros until another cut is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

WORD_BYTES = 8

Array = np.ndarray[Any, Any]

_xor = np.bitwise_xor
_copy = np.copyto


class ScratchViews:
    """The numbers and views that the calls for one cut need, so that a call makes views of its area only.

    It has many attributes because each would else be computed for each block.
    """

    def __init__(self, memory: Array, p: int, n: int, m: int, size: int) -> None:
        rows, width = p - 1, size // (p - 1)
        scratch = memory.view(np.uint8)
        self.p = p
        self.area = (n + m, size)
        self.parity = (m - 1, rows, width)
        self.groups = (n - 1, p * width)
        self.rest = ((p - n) * width,) if n < p else ()
        self.rest_at = (n - 1) * p * width
        self.words = (n * rows, width // WORD_BYTES)
        self.row_sums = memory[: n * rows]
        self.row_sum_bytes = self.row_sums.data

        sums = scratch[: (m + 1) * 2 * p * width].reshape(m + 1, 2 * p, width)
        self.sums = [each[:p].reshape(-1) for each in sums[:m]]
        self.stored = [each[: rows * width] for each in self.sums]  # the stored rows of each sum
        self.parity_rows = sums[1:m, :rows]
        self.parity_last = sums[1:m, rows:p]
        self.beginning = self.sums[-1 if m == 1 else 1][: (p - n) * width]

        self.all_places = scratch[_before_places(p, n, m, size) : bytes_needed(p, n, m, size)]
        self.places: dict[int, list[tuple[Array, int, int]]] = {}
        self.place_groups: dict[int, Array] = {}
        at = 0
        for j in range(2, m):
            places = self.all_places[at : at + _groups(p, n, j) * p * width]
            self.places[j] = list(_runs(places, p, n, j, size))
            self.place_groups[j] = places.reshape(-1, p * width)
            at += len(places)

        self._scratch, self._m, self._width = scratch, m, width
        self._solver: LossSolver | None = None

    def solver(self) -> LossSolver:
        """The solver of this cut, made when the cut first needs it."""
        if self._solver is None:
            self._solver = LossSolver(self._scratch, self.p, self._m, self._width)
        return self._solver


class LossSolver:
    """Lost shards from the sums, once these hold the lost shards alone. See `field.Step`."""

    def __init__(self, scratch: Array, p: int, m: int, width: int) -> None:
        length = p * width
        sums = scratch[: (m + 1) * 2 * length].reshape(m + 1, 2 * length)
        self._turns = [each[k * width : k * width + length] for each in sums for k in range(p)]
        self._halves = [(each[length:], each[:length]) for each in sums]
        self._last_of_plain = sums[0, length - width : length]
        self._solved = scratch[sums.size : sums.size + length]
        self._shard = self._solved[: length - width]
        self._rows = self._shard.reshape(p - 1, width)
        self._last = self._solved[length - width :]

    def extend_sums(self, turned: tuple[int, ...]) -> None:
        """Copy the sums that are needed in other turns than 0. Parity 0 is summed without its last row: zero it."""
        self._last_of_plain.fill(0)
        for j in turned:
            _copy(*self._halves[j])

    def lost_shard(self, sources: tuple[int, ...], factor: tuple[int, ...]) -> Array:
        """One lost shard, valid until the next call."""
        if sources:
            again, once = self._halves[-1]
            self._sum(sources, once)
            _copy(again, once)
        self._sum(factor, self._solved)
        _xor(self._rows, self._last, self._rows)
        return self._shard

    def _sum(self, numbers: tuple[int, ...], out: Array) -> None:
        turns = self._turns
        if len(numbers) == 1:
            _copy(out, turns[numbers[0]])
            return
        total = turns[numbers[0]]
        for number in numbers[1:]:
            _xor(total, turns[number], out)
            total = out


def bytes_needed(p: int, n: int, m: int, size: int) -> int:
    """Bytes of scratch memory for a cut."""
    places = sum(_groups(p, n, j) for j in range(2, m))
    return _before_places(p, n, m, size) + places * p * (size // (p - 1))


def _before_places(p: int, n: int, m: int, size: int) -> int:
    width = size // (p - 1)
    return max(((m + 1) * 2 + 1) * p * width, n * (p - 1) * WORD_BYTES)


def _groups(p: int, n: int, j: int) -> int:
    """How many groups of p rows the places of parity j are. All p places, of p - 1 rows each, are p - 1 groups."""
    return min(p - 1, 1 + max(i * j % p for i in range(n)))


def _runs(places: Array, p: int, n: int, j: int, size: int) -> Iterator[tuple[Array, int, int]]:
    """The copies of the shards to their places: place, first shard, end. Shard i goes to place i * j mod p.

    One copy is for consecutive shards, until their places begin again from the start.
    """
    first = 0
    while first < n:
        place = first * j % p
        end = min(n, first + (p - place + j - 1) // j)
        yield np.ndarray((end - first, size), np.uint8, places, place * size, (j * size, 1)), first, end
        first = end
