"""How blocks are cut for a path that loses datagrams: rows, parity, and how far apart the rows of a codeword go. Pure.

A path is taken for a Gilbert-Elliott channel: it is bad for a while, loses a part of the segments meanwhile, and loses
none else. Three shares tell all of it (see PathLoss). Losses one by one are the case without a memory.

A block has K codewords of n data rows and m parity rows each, which recover any m lost ones. The rows of `depth`
codewords go out in turn: those of one block, or of `spread` blocks that are there already. So two rows of a codeword
are `depth` segments apart, and between them the path forgets: its memory per row is memory ** depth. With that, the
chance that a codeword loses more than m rows is computed, not estimated.

    repeat   lost rows are sent again, and there is no parity: where enough rounds of that fit in REPEAT_MOST_NS, or
             where so little is lost that at most LATE_MOST of the blocks are late
    both     the cheapest cut with which one round of repeats leaves no more blocks lost than `target`, and at most
             LATE_MOST late: where a round fits in WAIT_NS
    parity   the cheapest cut that loses no more blocks than `target`, as a repeat would come too late

Of two cuts that cost alike, the one with less spread is taken. Where none is good enough, a decade of losses is worth
DECADE. A new plan costs milliseconds. Numbers are rounded to a coarse grid, to the worse side, and plans are
remembered: a path that stays as it is costs one look-up for each block.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

ROWS_MOST, PARITY_MOST = 37, 6  # of a codeword: pipeline.fec.shard
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows of blocks for which there are plans; a block has that of the next size. 131072 bytes are 94 rows of 1400."""

TARGETS = ((0.02, 1e-4), (0.10, 1e-3))
"""Share of blocks that may be lost, by the share of segments that is. Cubic makes 50 Mbit/s in 50 ms of one loss in
24 000 segments (RFC 9438, 5.1), which is one block of 500. Other losses of the path have room beside it."""

SPREADS = (1, 2, 4, 8)
DELAY_MOST_NS = 25_000_000
"""The time that rows of blocks may go out in turn: a block waits so long at most for one that was ready with it. By
choice: a queue of that length is short for bulk, and light blocks go ahead of it."""

OVERHEAD_MOST = 1.0  # parity rows for each data row; two copies of all would do as well
DECADE = 1.0  # of overhead, for a tenth of the losses, where no cut reaches the target
REPEAT_MOST_NS = 30_000_000  # all blocks may be late by this: a third of WAIT_NS, by choice
WAIT_NS = 150_000_000  # the other end waits 50 ms longer for bulk, as both may be late: workers.dgram.reception
LACKING = 2  # rows that a block needs besides what has come, if it needs any: on average less
REPORT_NS = 5_000_000  # reports are so far apart at most
LATE_MOST = 0.005  # share of the blocks, as in pipeline.policy.parity_size

LEAST_LOSSES = 20
CERTAIN = 3  # standard deviations, before a memory is believed
STEPS = 20  # of the grid, in a decade
LOSS_MOST = 0.5
MEMORY_MOST = 0.99


class PathLoss(NamedTuple):
    """The share of segments that are lost; the share that is lost while the path is bad; and how much of the state of
    one segment the next one has: 0 is losses one by one."""

    loss: float = 0.0
    bad: float = 1.0
    memory: float = 0.0

    @classmethod
    def measured(cls, segments: int, lost: int, pairs: int, far_pairs: int, far_lag: int) -> PathLoss:
        """From the counts of reports: `pairs` of lost neighbours, and of lost segments `far_lag` apart.

        The correlation of two losses k segments apart is (bad - loss) / (1 - loss) * memory ** k. So the two counts
        give both.
        """
        if not lost:
            return cls()
        loss = min(lost / segments, LOSS_MOST)
        noise = CERTAIN * math.sqrt(loss / lost / (1 - loss))
        near, far = ((count / lost - loss) / (1 - loss) for count in (pairs, far_pairs))
        if lost < LEAST_LOSSES or max(near, far) < noise:
            return cls(_worse(loss))
        if not noise < far < near:  # too few are so far apart, so the path may lose all while it is bad
            return cls(_worse(loss), 1.0, _longer(max(near, far)))
        memory = (far / near) ** (1 / (far_lag - 1))
        bad = loss + (1 - loss) * near / memory
        return cls(_worse(loss), min(1.0, math.ceil(bad * 10) / 10), _longer(memory))


class Cut(NamedTuple):
    """`codewords`: of a block. `n`: data rows of the largest. `spread`: blocks whose rows go out in turn."""

    codewords: int
    n: int
    m: int
    spread: int = 1

    @property
    def depth(self) -> int:
        return self.codewords * self.spread

    @property
    def overhead(self) -> float:
        """Parity rows for each data row."""
        return self.m / self.n


def cut(rows: int, path: PathLoss, segment_ns: int, rtt_ns: int) -> Cut:
    """For a block of so many data rows. `segment_ns`: from one segment to the next, at the pace of now."""
    if repeats(rows, path.loss, rtt_ns):
        return _even(rows, ROWS_MOST, 0, 1)
    size = next(size for size in SIZES if size >= rows)
    delayed = DELAY_MOST_NS // max(1, segment_ns * size)
    spread = max(spread for spread in SPREADS if spread <= max(1, delayed))
    made = _cheapest(size, path, spread, rtt_ns + REPORT_NS <= WAIT_NS)
    return _even(rows, made.n, made.m, made.spread)


def repeats(rows: int, loss: float, rtt_ns: int) -> bool:
    """Whether lost rows are sent again, and nothing more."""
    if _any_of(rows, loss) <= LATE_MOST:
        return True
    rounds, left = 0, loss
    while _any_of(rows, left) > target(loss):
        rounds, left = rounds + 1, left * loss
    return rounds * (rtt_ns + REPORT_NS) <= REPEAT_MOST_NS


def target(loss: float) -> float:
    """Share of blocks that may be lost: between the two of TARGETS in a straight line, if both axes are logarithms."""
    (low, least), (high, most) = TARGETS
    part = math.log(max(loss, low) / low) / math.log(high / low)
    return least * math.pow(most / least, min(1.0, part))


def fails(rows: int, m: int, path: PathLoss, depth: int) -> float:
    """The chance that of so many rows, parity among them, more than m are lost."""
    return _more_than(path.loss, path.bad, round(path.memory**depth, 2))[rows][m]


def _any_of(rows: int, loss: float) -> float:
    return 1 - (1 - loss) ** rows


def _even(rows: int, n: int, m: int, spread: int) -> Cut:
    """As few codewords as there must be of n rows, all of one size."""
    codewords = -(-rows // n)
    return Cut(codewords, -(-rows // codewords), m, spread)


@lru_cache(maxsize=1024)
def _cheapest(rows: int, path: PathLoss, spread_most: int, is_repeated: bool) -> Cut:
    allowed = target(path.loss)
    if is_repeated:
        allowed = min(LATE_MOST, allowed / (LACKING * path.loss))
    spreads = [spread for spread in SPREADS if spread <= spread_most and (path.memory or spread == 1)]

    def price(made: Cut) -> tuple[bool, float, int]:
        lost = made.codewords * fails(made.n + made.m, made.m, path, made.depth)
        if lost <= allowed:
            return False, made.overhead, made.spread
        return True, made.overhead + DECADE * math.log10(lost / allowed), made.spread

    sizes = {_even(rows, n, 0, 1).n for n in range(1, ROWS_MOST + 1)}
    cuts = (_even(rows, n, m, spread) for n in sizes for m in range(1, PARITY_MOST + 1) for spread in spreads)
    return min((made for made in cuts if made.overhead <= OVERHEAD_MOST), key=price)


@lru_cache(maxsize=512)
def _more_than(loss: float, bad_loss: float, memory: float) -> list[list[float]]:
    """By rows, and by m: the chance to lose more than m of them. `memory`: from one of the rows to the next one."""
    share = loss / bad_loss  # of the time in which the path is bad
    to_bad, to_good = share * (1 - memory), (1 - share) * (1 - memory)
    good, bad = [1 - share, *[0.0] * PARITY_MOST], [share, *[0.0] * PARITY_MOST]  # by the rows lost so far
    found = [[0.0] * (PARITY_MOST + 1)]
    for _ in range(ROWS_MOST + PARITY_MOST):
        bad = [here * (1 - bad_loss) + fewer * bad_loss for here, fewer in zip(bad, [0.0, *bad], strict=False)]
        kept, total = [], 0.0
        for one, other in zip(good, bad, strict=True):
            total += one + other
            kept.append(max(0.0, 1 - total))
        found.append(kept)
        good, bad = (
            [(1 - to_bad) * one + to_good * other for one, other in zip(good, bad, strict=True)],
            [to_bad * one + (1 - to_good) * other for one, other in zip(good, bad, strict=True)],
        )
    return found


def _worse(share: float) -> float:
    """The next share of the grid that is not below."""
    return min(LOSS_MOST, float(f"{10 ** (math.ceil(STEPS * math.log10(share)) / STEPS):.3g}"))


def _longer(memory: float) -> float:
    """The next memory whose distance from 1 is on the grid, and not above."""
    left = max(1 - memory, 1 - MEMORY_MOST)
    return 1 - float(f"{10 ** (math.floor(STEPS * math.log10(left)) / STEPS):.3g}")
