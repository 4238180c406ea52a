"""How blocks are cut for paths that lose datagrams: computed, and tried on simulated paths."""

from __future__ import annotations

from itertools import pairwise, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.datagram_parity import (
    DELAY_MOST_NS,
    LATE_MOST,
    OVERHEAD_MOST,
    PARITY_MOST,
    REPEAT_MOST_NS,
    REPORT_NS,
    ROWS_MOST,
    SIZES,
    SPREADS,
    WAIT_NS,
    Cut,
    PathLoss,
    cut,
    fails,
    repeats,
    target,
)

FULL = 47  # rows of 1400 bytes: a block of 64 KiB
LAG = 8
FAST_NS, SLOW_NS = 22_000, 560_000  # from segment to segment at 500 and at 20 Mbit/s
MS = 1_000_000
FAR_NS, MIDDLE_NS, NEAR_NS = 150 * MS, 60 * MS, 2 * MS


def losses(chance: np.random.Generator, size: int, loss: float, burst: float, bad: float = 1.0) -> np.ndarray:
    """Which segments are lost: at times for `burst` of them on average, that is a part `bad` of them; 0: one by one."""
    if not burst:
        return chance.random(size) < loss
    apart = burst * (bad / loss - 1)
    turns = int(1.5 * size / (burst + apart)) + 100
    lengths = np.stack((chance.geometric(1 / apart, turns), chance.geometric(1 / burst, turns)), axis=1)
    is_bad = np.repeat(np.tile([False, True], turns), lengths.ravel())[:size]
    assert len(is_bad) == size
    return is_bad & (chance.random(size) < bad)


def measured(lost: np.ndarray) -> PathLoss:
    pairs, far = (int((lost[lag:] & lost[:-lag]).sum()) for lag in (1, LAG))
    return PathLoss.measured(len(lost), int(lost.sum()), pairs, far, LAG)


def lacking(made: Cut, lost: np.ndarray) -> np.ndarray:
    """By block: the rows that it needs besides what has come. The rows of `depth` codewords go out in turn."""
    length = made.n + made.m
    whole = len(lost) // (length * made.depth) * length * made.depth
    missing = lost[:whole].reshape(-1, length, made.depth).sum(axis=1)
    return np.maximum(missing - made.m, 0).reshape(-1, made.spread, made.codewords).sum(axis=2).ravel()


PATHS = {  # mean burst in segments, share that is lost meanwhile
    "one by one": (0, 1.0),
    "in twos": (2, 1.0),
    "in bursts of 4": (4, 1.0),
    "in bursts of 8": (8, 1.0),
    "half of 10": (10, 0.5),
    "a third of 20": (20, 0.3),
}


@pytest.mark.parametrize(("burst", "bad"), PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize(("loss", "residual"), [(0.02, 1e-4), (0.10, 1e-3)])
def test_parity_alone_leaves_no_more_blocks_lost_than_the_target(
    loss: float, residual: float, burst: float, bad: float
) -> None:
    chance = np.random.default_rng(7)
    path = measured(losses(chance, 200_000, loss, burst, bad))
    made = cut(FULL, path, FAST_NS, FAR_NS)
    segments = 120_000 * made.codewords * (made.n + made.m)
    assert (lacking(made, losses(chance, segments, loss, burst, bad)) > 0).mean() <= residual


@pytest.mark.parametrize(("burst", "bad"), PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize(("loss", "residual"), [(0.02, 1e-4), (0.10, 1e-3)])
def test_parity_and_one_round_of_repeats_leave_no_more_and_cost_less(
    loss: float, residual: float, burst: float, bad: float
) -> None:
    chance = np.random.default_rng(8)
    path = measured(losses(chance, 200_000, loss, burst, bad))
    made = cut(FULL, path, FAST_NS, MIDDLE_NS)
    left = lacking(made, losses(chance, 120_000 * made.codewords * (made.n + made.m), loss, burst, bad))
    assert (left > 0).mean() <= LATE_MOST
    again = chance.binomial(left, loss)
    assert (again > 0).mean() <= residual
    assert made.overhead <= cut(FULL, path, FAST_NS, FAR_NS).overhead


OVERHEADS = {  # parity rows for each data row of a full block, by loss: far away, with repeats; docs tell them
    0.001: (0.09, 0.05),
    0.005: (0.13, 0.09),
    0.02: (0.21, 0.17),
    0.05: (0.50, 0.30),
    0.1: (0.86, 0.60),
}


@pytest.mark.parametrize("loss", OVERHEADS)
def test_losses_one_by_one_cost_no_more_than_this(loss: float) -> None:
    far, middle = (cut(FULL, PathLoss(loss), FAST_NS, rtt).overhead for rtt in (FAR_NS, MIDDLE_NS))
    assert (far, middle) <= OVERHEADS[loss]
    assert far <= OVERHEADS[loss][0] and middle <= OVERHEADS[loss][1]


def test_bursts_cost_depth_where_much_is_sent_and_parity_where_little_is() -> None:
    path = measured(losses(np.random.default_rng(9), 200_000, 0.02, 4))
    fast, slow = cut(FULL, path, FAST_NS, FAR_NS), cut(FULL, path, SLOW_NS, FAR_NS)
    assert fast.spread > slow.spread == 1
    assert slow.overhead > 2 * fast.overhead
    assert fast.overhead <= 0.25


def test_a_burst_that_no_cut_bridges_in_time_costs_less_than_a_copy_of_all() -> None:
    assert cut(FULL, PathLoss(0.02, 1.0, 0.98), SLOW_NS, FAR_NS).overhead < 0.5


# -- repeats


@pytest.mark.parametrize(
    ("loss", "rtt_ms", "expected"),
    [
        (0.0, 500, True),
        (0.0001, 500, True),  # one block in 200 is late
        (0.001, 20, True),
        (0.001, 30, False),
        (0.02, 4, True),
        (0.02, 10, False),
        (0.1, 2, True),
        (0.1, 5, False),
    ],
)
def test_a_short_round_trip_or_hardly_any_loss_needs_no_parity(loss: float, rtt_ms: int, expected: bool) -> None:
    assert repeats(FULL, loss, rtt_ms * MS) is expected
    assert (cut(FULL, PathLoss(loss), FAST_NS, rtt_ms * MS).m == 0) is expected


@pytest.mark.parametrize("loss", [0.001, 0.02, 0.1])
def test_repeats_alone_leave_no_more_blocks_lost_than_the_target_in_time(loss: float) -> None:
    chance = np.random.default_rng(10)
    rtt = max(rtt for rtt in range(0, 30 * MS, MS) if repeats(FULL, loss, rtt))
    left = chance.binomial(FULL, loss, 200_000)
    for _ in range(REPEAT_MOST_NS // (rtt + REPORT_NS)):
        left = chance.binomial(left, loss)
    assert (left > 0).mean() <= 1.2 * target(loss)


def test_repeats_that_come_too_late_save_no_parity() -> None:
    path = PathLoss(0.02)
    in_time, too_late = (cut(FULL, path, FAST_NS, WAIT_NS - REPORT_NS + late) for late in (0, 1))
    assert in_time.overhead < too_late.overhead


# -- the chance to lose a codeword


@given(st.integers(1, ROWS_MOST + PARITY_MOST), st.integers(0, PARITY_MOST), st.floats(0.0001, 0.5))
def test_without_a_memory_the_chance_is_the_binomial_one(rows: int, m: int, loss: float) -> None:
    expected = 1 - sum(comb(rows, lost) * loss**lost * (1 - loss) ** (rows - lost) for lost in range(m + 1))
    assert fails(rows, m, PathLoss(loss), 3) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("depth", [1, 3])
def test_with_a_memory_the_chance_is_the_sum_over_all_ways(depth: int) -> None:
    path = PathLoss(0.1, 0.5, 0.8)
    share, kept = 0.2, round(0.8**depth, 2)
    for rows, m in ((1, 0), (2, 1), (5, 1), (7, 2)):
        total = 0.0
        for states in product((False, True), repeat=rows):
            chance = share if states[0] else 1 - share
            for before, after in pairwise(states):
                chance *= kept * (before == after) + (1 - kept) * (share if after else 1 - share)
            bad = sum(states)
            total += chance * sum(comb(bad, lost) * 0.5**bad for lost in range(m + 1, bad + 1))
        assert fails(rows, m, path, depth) == pytest.approx(total, abs=1e-9)


# -- what is measured


@pytest.mark.parametrize("loss", [0.005, 0.02, 0.1])
def test_losses_one_by_one_have_no_memory(loss: float) -> None:
    found = [measured(losses(np.random.default_rng(seed), 50_000, loss, 0)) for seed in range(20)]
    assert sum(path.memory > 0 for path in found) <= 1
    assert all(loss * 0.85 <= path.loss <= loss * 1.35 for path in found)


@pytest.mark.parametrize(("burst", "bad"), [(4, 1.0), (10, 0.5), (20, 0.3), (30, 0.7)])
def test_bursts_are_measured_although_some_of_their_segments_pass(burst: float, bad: float) -> None:
    path = measured(losses(np.random.default_rng(11), 500_000, 0.02, burst, bad))
    share = 0.02 / bad
    assert path.memory == pytest.approx(1 - 1 / burst / (1 - share), abs=0.03)
    assert path.bad == pytest.approx(bad, abs=0.15)


@given(st.integers(0, 10**6), st.data())
def test_any_counts_give_a_path_and_any_path_a_cut(segments: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, segments))
    pairs, far = data.draw(st.integers(0, lost)), data.draw(st.integers(0, lost))
    path = PathLoss.measured(segments, lost, pairs, far, LAG)
    assert 0 <= path.loss <= path.bad <= 1 and 0 <= path.memory < 1
    rows = data.draw(st.integers(1, SIZES[-1]))
    segment_ns = data.draw(st.integers(0, 10**7))
    made = cut(rows, path, segment_ns, data.draw(st.integers(0, 10**9)))
    assert 1 <= made.n <= ROWS_MOST and 0 <= made.m <= PARITY_MOST and made.overhead <= OVERHEAD_MOST + made.m / rows
    assert made.codewords * made.n >= rows > (made.codewords - 1) * made.n
    assert made.spread in SPREADS and (made.spread == 1 or made.spread * rows * segment_ns <= DELAY_MOST_NS)


def test_counts_that_differ_by_little_give_one_path() -> None:
    paths = {PathLoss.measured(100_000, 2000 + more, 1000 + more, 200 + more, LAG) for more in range(60)}
    assert len(paths) <= 4


def test_the_target_lies_between_its_two_ends() -> None:
    assert [target(loss) for loss in (0.0, 0.001, 0.02)] == [1e-4] * 3
    assert target(0.1) == pytest.approx(1e-3) == target(0.4)
    assert 1e-4 < target(0.05) < 1e-3
