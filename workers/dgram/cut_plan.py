"""How the blocks for one path are cut: rows, parity, spread, copies, as its losses call for (pipeline.policy).

The losses are those of reports, of late: all counts become half when there are SEGMENTS_MOST of them, or after HALF_NS
with enough of them to say anything. So parity follows a path that gets worse within some reports, and one that gets
better within some seconds.

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from pipeline.datagram import cut as rows_cut
from pipeline.policy import datagram_parity
from pipeline.policy.datagram_parity import PathLoss
from pipeline.wire.control_datagram import FAR_LAG, Counts

UPDATE_NS = 100_000_000
SEGMENTS_MOST = 16_384
HALF_NS = 2_000_000_000
SEGMENTS_LEAST = 256
CUTS_KEPT = 512

COPIES_MOST = 2  # of a light block, beyond the first
COPY_SPACING_NS = 2_000_000
COPY_SPACING_MOST_NS = 7_000_000  # as on TCP: pipeline.policy.loss_bursts
BURSTS_APART = 2  # the mean length of a burst of losses that a copy waits

_HALF, _MASK = 1 << 31, (1 << 32) - 1


class BlockCut(NamedTuple):
    """`spread`: blocks whose rows go out in turn."""

    cut: rows_cut.Cut
    spread: int


@lru_cache(maxsize=1024)
def _cut_rows(size: int, row_most: int, m: int, parts: int) -> rows_cut.Cut:
    return rows_cut.cut(size, row_most, m, parts)


class CutPlan:
    """`copies`: of a light block; each goes out `spacing_ns` behind the one before. `repeats`: lost rows go again."""

    def __init__(self) -> None:
        self.loss = PathLoss()
        self.copies = 0
        self.spacing_ns = COPY_SPACING_NS
        self.repeats = True
        self._segments = self._lost = self._pairs = self._far_pairs = 0.0
        self._seen = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self._halved_at = self._updated_at = 0
        self._segment_ns = 1
        self._round_trip = 0
        self._cuts: dict[int, BlockCut] = {}
        self._row_most = 0

    def begin(self, counts: Counts) -> None:
        """A first report has come: its counts are of another time, or of few segments."""
        self._seen = counts

    def take(self, counts: Counts) -> None:
        """A report has come."""
        seen, self._seen = self._seen, counts
        lost = growth(seen.lost, counts.lost)
        self._segments += growth(seen.received, counts.received) + lost
        self._lost += lost
        self._pairs += growth(seen.pairs, counts.pairs)
        self._far_pairs += growth(seen.far_pairs, counts.far_pairs)

    def _forget(self, now: int) -> None:
        is_old = now - self._halved_at > HALF_NS and self._segments > SEGMENTS_LEAST
        if self._segments > SEGMENTS_MOST or is_old:
            self._halved_at = now
            self._segments /= 2
            self._lost /= 2
            self._pairs /= 2
            self._far_pairs /= 2

    def update(self, now: int, pace: float, segment_bytes: int, round_trip: int) -> None:
        """Call it each burst: ten times a second it does something."""
        if now - self._updated_at < UPDATE_NS:
            return
        self._updated_at = now
        self._forget(now)
        self._cuts.clear()
        self._segment_ns = max(1, int(segment_bytes * 1e9 / pace))
        self._round_trip = round_trip
        lost = int(self._lost)
        self.loss = loss = PathLoss.measured(
            max(1, int(self._segments)), max(0, lost), int(self._pairs), int(self._far_pairs), FAR_LAG
        )
        self.copies = copies_of(loss.loss)
        burst = self._segment_ns / (1 - loss.memory)
        self.spacing_ns = int(min(COPY_SPACING_MOST_NS, max(COPY_SPACING_NS, BURSTS_APART * burst)))
        self.repeats = round_trip + datagram_parity.REPORT_NS <= datagram_parity.WAIT_NS

    def cut(self, size: int, row_most: int) -> BlockCut:
        """The cut of a block. ValueError if no cut of rows of this size holds it."""
        found = self._cuts.get(size)
        if found is None or row_most != self._row_most:
            found = self._find(size, row_most)
        return found

    def _find(self, size: int, row_most: int) -> BlockCut:
        if row_most != self._row_most or len(self._cuts) >= CUTS_KEPT:
            self._cuts.clear()
            self._row_most = row_most
        rows = -(-size // row_most)
        if rows > 1 and rows <= datagram_parity.SIZES[-1]:
            planned = datagram_parity.cut(rows, self.loss, self._segment_ns, self._round_trip)
            found = BlockCut(_cut_rows(size, row_most, planned.m, planned.codewords), planned.spread)
        else:
            found = BlockCut(_cut_rows(size, row_most, 0, 1), 1)
        self._cuts[size] = found
        return found


def copies_of(loss: float) -> int:
    """Copies of a light block, beyond the first, that leave no more of them lost than the path's target."""
    copies = 0
    while copies < COPIES_MOST and loss and loss ** (copies + 1) > datagram_parity.target(loss):
        copies += 1
    return copies


def growth(before: int, after: int) -> int:
    """Of a count modulo 2^32; below 0 if it has gone back."""
    grown = after - before & _MASK
    return grown if grown < _HALF else grown - _MASK - 1
