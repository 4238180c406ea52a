"""How the blocks for one path are cut: rows, parity, spread, repeats, copies, as its losses call for (pipeline.policy).

The losses are those of reports, of late: all counts become half when there are SEGMENTS_MOST of them, or after HALF_NS
with enough of them to say anything. So parity follows a path that gets worse within some reports, and one that gets
better within some seconds.

    bulk that fills the path    repeats in place of parity, where they cost less (datagram_repeats)
    other bulk                  parity
    light blocks of rows        parity, one row at least: nothing waits for them, and the first losses of a path are not
                                known yet
    light blocks of one row     copies, as many as the losses call for

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from pipeline.datagram import cut as rows_cut
from pipeline.policy import datagram_parity, datagram_repeats
from pipeline.policy.datagram_parity import PathLoss
from pipeline.wire.control_datagram import FAR_LAG, Counts

UPDATE_NS = 100_000_000
SEGMENTS_MOST = 16_384
HALF_NS = 2_000_000_000
SEGMENTS_LEAST = 256
CUTS_KEPT = 512

FULL_SHARE = 0.4
"""Bulk that takes more of the rate fills the path: a parity row for each data row would take the rest."""
SMOOTHED = 2  # UPDATE_NS
LIGHT_PARITY_LEAST = 1

COPIES_MOST = 3  # of a light block, beyond the first
LIGHT_TARGET = 1e-4  # share of light blocks that may be lost with all copies
COPY_SPACING_NS = 2_000_000
COPY_SPACING_MOST_NS = 7_000_000  # as on TCP: pipeline.policy.loss_bursts
BURSTS_APART = 2  # the mean length of a burst of losses that a copy waits

PLAIN = datagram_parity.Cut(1, 1, 0)

_HALF, _MASK = 1 << 31, (1 << 32) - 1


class BlockCut(NamedTuple):
    """`spread`: blocks whose rows go out in turn."""

    cut: rows_cut.Cut
    spread: int


@lru_cache(maxsize=1024)
def _cut_rows(size: int, row_most: int, m: int, parts: int) -> rows_cut.Cut:
    return rows_cut.cut(size, row_most, m, parts)


class CutPlan:
    """`copies`: of a light block; each goes out `spacing_ns` behind the one before. `repeats`: lost rows go again.

    `bulk`: bytes of blocks since the last update; the caller adds to it.
    """

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
        self.bulk = 0
        self._bulk_share = 0.0  # of the rate
        self._rounds = 0
        self._bulk_cuts: dict[int, BlockCut] = {}
        self._light_cuts: dict[int, BlockCut] = {}
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

    def update(self, now: int, pace: float, segment_bytes: int, round_trip: int, rate: float = 0.0) -> None:
        """Call it each burst: ten times a second it does something. `rate`: of the path; 0: it is not known."""
        passed = now - self._updated_at
        if passed < UPDATE_NS:
            return
        self._updated_at = now
        self._forget(now)
        self._bulk_cuts.clear()
        self._light_cuts.clear()
        share = self.bulk * 1e9 / passed / rate if rate else 0.0
        self._bulk_share += (share - self._bulk_share) / SMOOTHED
        self.bulk = 0
        self._rounds = datagram_repeats.rounds(round_trip)
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

    def cut(self, size: int, row_most: int, is_light: bool = False) -> BlockCut:
        """The cut of a block. ValueError if no cut of rows of this size holds it."""
        found = (self._light_cuts if is_light else self._bulk_cuts).get(size)
        if found is None or row_most != self._row_most:
            found = self._find(size, row_most, is_light)
        return found

    def times(self, rows: int) -> int:
        """A lost row of a block of so many goes again so often, if it has no parity."""
        return max(1, datagram_repeats.times(rows, self.loss.loss, self._rounds))

    def _find(self, size: int, row_most: int, is_light: bool) -> BlockCut:
        cuts = self._light_cuts if is_light else self._bulk_cuts
        if row_most != self._row_most or len(cuts) >= CUTS_KEPT:
            self._light_cuts.clear()
            self._bulk_cuts.clear()
            self._row_most = row_most
        cuts[size] = found = self._plan(size, -(-size // row_most), row_most, is_light)
        return found

    def _plan(self, size: int, rows: int, row_most: int, is_light: bool) -> BlockCut:
        loss = self.loss.loss
        planned = PLAIN
        if 1 < rows <= datagram_parity.SIZES[-1]:
            planned = datagram_parity.cut(rows, self.loss, self._segment_ns, self._round_trip)
        if not is_light and loss and self._bulk_share > FULL_SHARE:
            times = datagram_repeats.times(rows, loss, self._rounds)
            if times and datagram_repeats.cost(times, loss) < planned.overhead:
                planned = PLAIN
        m = max(planned.m, LIGHT_PARITY_LEAST) if is_light and rows > 1 else planned.m
        return BlockCut(_cut_rows(size, row_most, m, planned.codewords), planned.spread)


def copies_of(loss: float) -> int:
    """Copies of a light block, beyond the first, that leave no more of them lost than the path's target."""
    copies = 0
    while copies < COPIES_MOST and loss and loss ** (copies + 1) > LIGHT_TARGET:
        copies += 1
    return copies


def growth(before: int, after: int) -> int:
    """Of a count modulo 2^32; below 0 if it has gone back."""
    grown = after - before & _MASK
    return grown if grown < _HALF else grown - _MASK - 1
