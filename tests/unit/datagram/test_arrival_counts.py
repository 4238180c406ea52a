"""A receiver tells what has come of a process's segments, and what is lost, whatever the path does with their order."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datagram.arrival_counts import PATIENCE_MOST_NS, PATIENCE_NS, REACH, ArrivalCounts
from pipeline.wire.control_datagram import FAR_LAG

MS = 1_000_000
STEP_NS = 2 * MS


def give(counts: ArrivalCounts, sequences: list[int], now: int) -> None:
    if len(sequences) == 1:
        counts.add_one(sequences[0], now)
    elif sequences:
        counts.add(np.array(sequences, ">u4"), now)


def settled(counts: ArrivalCounts, now: int) -> tuple[int, int, int]:
    """What is lost, and the pairs, once all is judged."""
    counts.judge(now)
    counts.judge(now + counts.patience_ns)
    found = counts.counts(now)
    return found.lost, found.pairs, found.far_pairs


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(1, 398), max_size=200), st.integers(1, 60))
def test_each_missing_segment_is_lost_once_with_its_lost_neighbours(first: int, lost: set[int], burst: int) -> None:
    counts = ArrivalCounts(3)
    left = [each for each in range(400) if each not in lost]
    now = 0
    for at in range(0, len(left), burst):
        now += STEP_NS
        give(counts, [first + each & 0xFFFFFFFF for each in left[at : at + burst]], now)
        counts.judge(now)
    pairs = sum(each - 1 in lost for each in lost)
    far_pairs = sum(each - FAR_LAG in lost for each in lost)
    assert settled(counts, now) == (len(lost), pairs, far_pairs)
    found = counts.counts(now + 7000)
    assert (found.sender, found.received, found.age) == (3, len(left), 7)
    assert found.highest == first + 399 & 0xFFFFFFFF


@given(st.randoms(), st.integers(1, 20))
def test_the_order_of_segments_that_come_within_patience_makes_no_loss(chance: Random, reach: int) -> None:
    counts = ArrivalCounts(0)
    order = [0, *sorted(range(1, 300), key=lambda each: each + chance.uniform(0, reach))]
    for at in range(0, 300, 10):
        give(counts, order[at : at + 10], at * 10_000)
        counts.judge(at * 10_000)
    assert settled(counts, 3 * MS) == (0, 0, 0)


def test_a_segment_is_lost_after_patience_and_not_before() -> None:
    counts = ArrivalCounts(0)
    give(counts, [0, 1, 3], 0)
    counts.judge(0)
    counts.judge(PATIENCE_NS - 1)
    assert counts.lost == 0 and counts.is_waiting
    counts.judge(PATIENCE_NS)
    assert counts.lost == 1 and not counts.is_waiting


def test_lost_segments_that_come_after_all_are_lost_no_more_and_patience_grows() -> None:
    counts = ArrivalCounts(0)
    give(counts, [0, 4], 0)
    assert settled(counts, 0) == (3, 2, 0)
    give(counts, [2], 20 * MS)
    assert (counts.lost, counts.pairs) == (2, 0)
    give(counts, [1, 3, 2, 2], 20 * MS)
    assert (counts.lost, counts.pairs) == (0, 0)
    assert counts.patience_ns == 2 * PATIENCE_NS


def test_jitter_that_lasts_looks_like_losses_for_a_moment_alone() -> None:
    chance = Random(1)
    counts = ArrivalCounts(0)
    coming = sorted((each * MS + chance.randrange(100 * MS), each) for each in range(4000))
    lost = []
    for at, each in coming:
        give(counts, [each], at)
        counts.judge(at)
        lost.append(counts.lost)
    assert max(lost[-1000:]) <= 2
    assert PATIENCE_NS < counts.patience_ns <= PATIENCE_MOST_NS
    end = coming[-1][0]
    for second in range(60):
        give(counts, [4000 + second], end + second * 1000 * MS)
        counts.judge(end + second * 1000 * MS)
    assert counts.patience_ns < PATIENCE_NS + MS


def test_segments_that_come_twice_change_nothing_but_the_sum() -> None:
    counts = ArrivalCounts(0)
    for _ in range(3):
        give(counts, list(range(50)), 0)
    assert settled(counts, MS) == (0, 0, 0)
    assert counts.received == 150 and counts.patience_ns == PATIENCE_NS


def test_a_jump_beyond_reach_begins_anew_without_losses() -> None:
    counts = ArrivalCounts(0)
    give(counts, [5, 6, 7], 0)
    give(counts, [REACH + 10, REACH + 11], MS)
    assert settled(counts, 2 * MS)[0] == 0
    assert counts.counts(2 * MS).highest == REACH + 11


def test_a_jump_within_reach_is_a_loss_of_all_between() -> None:
    counts = ArrivalCounts(0)
    give(counts, [0, REACH - 1], 0)
    assert settled(counts, 0)[0] == REACH - 2


def test_one_forged_sequence_among_others_is_left_out() -> None:
    counts = ArrivalCounts(0)
    give(counts, list(range(10)), 0)
    give(counts, [10, 2**31, 11, 12], 0)
    assert settled(counts, 0)[0] == 0 and counts.counts(0).highest == 12


def test_the_memory_is_taken_again_without_what_was_there() -> None:
    counts = ArrivalCounts(0)
    now = 0
    for first in range(0, 5 * REACH, 100):
        now += MS
        give(counts, [each for each in range(first, first + 100) if each % 1000], now)
        counts.judge(now)
    assert settled(counts, now)[0] == 5 * REACH // 1000
