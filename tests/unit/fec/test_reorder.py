"""The order of blocks, how long a block waits for another one, and when a block is given up."""

from __future__ import annotations

import tracemalloc

import pytest

from pipeline.fec import shard
from pipeline.fec.reassembly import KEEP_NS, STREAMS_MAX
from pipeline.fec.reorder import REORDER_WINDOW, TORN_NS, WAIT_NS
from pipeline.wire import framing
from tests.harness.reassembly import BULK, LIGHT, MS, ReassemblyHarness, block, copies, run, runs


@pytest.fixture
def bench() -> ReassemblyHarness:
    return ReassemblyHarness()


# Waiting


@pytest.mark.parametrize(("stream", "wait_ms"), [(BULK, 100), (LIGHT, 10)], ids=["bulk", "light"])
def test_a_complete_block_waits_for_the_one_before_it_as_long_as_its_class_says(
    bench: ReassemblyHarness, stream: int, wait_ms: int
) -> None:
    frames = runs(block(1), 1, stream=stream)
    bench.add_runs(frames[0])
    bench.now += 3 * MS
    bench.add_runs(*copies(block(2), 2, stream=stream))
    assert bench.pop() == []
    assert bench.due_ms() == wait_ms == WAIT_NS[stream & 1] / MS
    bench.now += wait_ms * MS - 1
    assert bench.pop() == []
    bench.now += 1
    assert bench.pop() == [block(2)]
    assert bench.due_ms() is None


def test_after_a_death_of_the_decoder_no_block_waits_long_for_one_that_nobody_can_complete() -> None:
    """The dead decoder had shards of block 1. Its successor gets the rest of them, too few."""
    bench = ReassemblyHarness(torn_ms=TORN_NS // MS)
    bench.add_runs(runs(block(1), 1)[-1], *copies(block(2), 2))
    assert bench.due_ms() == WAIT_NS[framing.LIGHT] / MS
    bench.now += WAIT_NS[framing.LIGHT]
    assert bench.pop() == [block(2)]
    bench.now += TORN_NS
    bench.add_runs(*copies(block(4), 4))
    assert bench.due_ms() == WAIT_NS[framing.BULK] / MS


def test_a_wait_counts_from_the_shard_that_completed_the_block(bench: ReassemblyHarness) -> None:
    bench.add_runs(runs(block(1), 1)[0], *runs(block(2), 2)[:3])
    bench.now += 50 * MS
    assert bench.due_ms() is None
    bench.add_runs(runs(block(2), 2)[3])
    assert bench.due_ms() == 100


def test_waiting_blocks_go_on_in_order_when_the_missing_block_comes(bench: ReassemblyHarness) -> None:
    frames = [runs(block(i), i) for i in range(4)]
    bench.add_runs(frames[0][0], *frames[3], *frames[2], *frames[1])
    assert bench.pop() == []
    bench.now += 99 * MS
    bench.add_runs(*frames[0][1:])
    assert bench.pop() == [block(i) for i in range(4)]
    assert bench.due_ms() is None


def test_a_block_that_was_overtaken_goes_on_at_once_when_it_comes(bench: ReassemblyHarness) -> None:
    frames = runs(block(1), 1)
    bench.add_runs(frames[0], *copies(block(2), 2))
    bench.now += 100 * MS
    assert bench.pop() == [block(2)]
    bench.add_runs(*frames[1:])
    assert bench.pop() == [block(1)]
    assert bench.counts() == {"blocks_whole": 2, "blocks_overtaken": 1, "shards_unneeded": 2}
    bench.add_runs(*runs(block(1), 1))
    assert bench.pop() == []


def test_a_block_that_was_never_seen_may_be_overtaken_too(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(1), 1), *copies(block(3), 3))
    bench.now += 100 * MS
    assert bench.pop() == [block(1), block(3)]
    bench.add_runs(*copies(block(2), 2, 2))
    assert bench.pop() == [block(2)]
    assert bench.counts() == {"blocks_whole": 3, "blocks_overtaken": 1, "shards_duplicate": 1}


def test_no_block_waits_for_one_that_was_overtaken(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(1), 1), *copies(block(3), 3))
    bench.now += 100 * MS
    bench.add_runs(*copies(block(4), 4))
    assert bench.pop() == [block(1), block(3), block(4)]
    bench.add_runs(*copies(block(5), 5))
    assert bench.pop() == [block(5)]


def test_a_block_that_has_waited_long_enough_takes_along_those_before_and_directly_behind_it(
    bench: ReassemblyHarness,
) -> None:
    bench.add_runs(runs(block(0), 0)[0])
    bench.add_runs(*copies(block(5), 5))
    bench.now += 60 * MS
    for i in (2, 3, 6, 7, 9):
        bench.add_runs(*copies(block(i), i))
    bench.now += 40 * MS
    assert bench.pop() == [block(i) for i in (2, 3, 5, 6, 7)]
    assert bench.due_ms() == 60  # 9 waits for 8, which is younger than those that have gone on
    bench.now += 60 * MS
    assert bench.pop() == [block(9)]


def test_all_blocks_that_have_waited_long_enough_go_on_together(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(1), 1), *copies(block(7), 7), *copies(block(4), 4))
    bench.now += 200 * MS
    assert bench.pop() == [block(1), block(4), block(7)]


def test_an_old_stream_waits_as_one_that_has_just_begun(bench: ReassemblyHarness) -> None:
    bench.receive_long(until=5000)
    bench.add_runs(*copies(block(1), 5001), *copies(block(0), 5000))
    assert bench.pop() == [block(0), block(1)]
    bench.add_runs(*copies(block(3), 5003))
    assert bench.due_ms() == 100
    bench.now += 100 * MS
    assert bench.pop() == [block(3)]
    bench.add_runs(*copies(block(2), 5002))
    assert bench.pop() == [block(2)]


def test_the_earliest_block_of_all_streams_is_due(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(1), 1), *copies(block(3), 3))
    bench.now += 5 * MS
    bench.add_runs(*copies(block(1), 1, stream=LIGHT), *copies(block(3), 3, stream=LIGHT))
    assert bench.due_ms() == 10
    bench.pop()
    bench.now += 10 * MS
    assert bench.pop() == [block(3)]
    assert bench.due_ms() == 85


def test_streams_do_not_wait_for_each_other(bench: ReassemblyHarness) -> None:
    bench.add_runs(runs(block(1), 1)[0], *copies(block(2), 2, stream=LIGHT), *copies(block(3), 3, stream=LIGHT))
    assert bench.pop() == [block(2), block(3)]


# Numbers


def test_numbers_wrap(bench: ReassemblyHarness) -> None:
    first = (1 << 32) - 3
    blocks = [block(i) for i in range(6)]
    frames = [runs(data, first + i) for i, data in enumerate(blocks)]
    bench.add_runs(*frames[0], *frames[5], *frames[2], *frames[4], *frames[1])
    assert bench.pop() == blocks[:3]
    bench.now += 100 * MS
    assert bench.pop() == blocks[4:]
    bench.add_runs(*frames[3], *frames[4])
    assert bench.pop() == blocks[3:4]
    assert bench.counts()["blocks_overtaken"] == 1


def test_a_stream_may_begin_anywhere_and_those_before_its_first_block_may_still_come(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(9), 9), *copies(block(8), 8))
    assert bench.pop() == [block(9), block(8)]
    bench.add_runs(*copies(block(8), 8), *copies(block(10), 10))
    assert bench.pop() == [block(10)]


def test_blocks_before_the_first_one_that_never_come_are_not_missed(bench: ReassemblyHarness) -> None:
    for i in range(5000, 5000 + 3 * REORDER_WINDOW):
        bench.add_runs(*copies(block(i, 100), i))
    assert len(bench.pop()) == 3 * REORDER_WINDOW
    assert bench.counts() == {"blocks_whole": 3 * REORDER_WINDOW}


def test_a_block_as_far_ahead_as_the_window_waits(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(0), 0), *copies(block(1 + REORDER_WINDOW), 1 + REORDER_WINDOW))
    assert bench.pop() == [block(0)]
    assert bench.due_ms() == 100


def test_a_block_beyond_the_window_makes_the_stream_jump(bench: ReassemblyHarness) -> None:
    frames = runs(block(1), 1)
    far = 5000
    bench.add_runs(*copies(block(0), 0), frames[0], *copies(block(2), 2))
    assert bench.pop() == [block(0)]
    bench.add_runs(*copies(block(far), far))
    assert bench.pop() == [block(2), block(far)]
    assert bench.counts() == {"blocks_whole": 3, "blocks_expired": far - REORDER_WINDOW - 1}  # 1, and 3 to far - WINDOW
    bench.add_runs(*frames)
    assert bench.pop() == []
    assert bench.counts()["shards_late"] == 13


def test_after_a_jump_the_blocks_just_before_may_still_come(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(0), 0), *copies(block(5000), 5000), *copies(block(4999), 4999))
    assert bench.pop() == [block(0), block(5000), block(4999)]


def test_a_jump_by_half_of_all_numbers_costs_no_more_than_another(bench: ReassemblyHarness) -> None:
    far = (1 << 31) - 1
    tracemalloc.start()
    try:
        for i, number in enumerate((0, far, 2 * far, 2 * far + 1)):
            bench.add_runs(*copies(block(i), number))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert bench.pop() == [block(i) for i in range(4)]
    assert bench.counts()["blocks_expired"] == 2 * far - REORDER_WINDOW


def test_a_block_behind_the_window_is_too_old(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(5000), 5000))
    bench.add_runs(
        *copies(block(4999 - REORDER_WINDOW), 4999 - REORDER_WINDOW, 2), *copies(block(5), 5000 - (1 << 31) + 1)
    )
    assert bench.pop() == [block(5000)]
    assert bench.counts()["shards_late"] == 3
    bench.add_runs(*copies(block(5000 - REORDER_WINDOW), 5000 - REORDER_WINDOW + 1))
    assert bench.pop() == [block(5000 - REORDER_WINDOW)]


# Giving up


def test_a_block_is_given_up_when_it_is_too_old(bench: ReassemblyHarness) -> None:
    frames = runs(block(1), 1)
    bench.add_runs(frames[0])
    bench.now += KEEP_NS - 1
    bench.add_runs(frames[1])
    bench.pop()
    assert bench.counts() == {}
    bench.now += 1
    bench.pop()
    assert bench.counts() == {"blocks_expired": 1}
    bench.add_runs(*frames)
    assert bench.pop() == []
    assert bench.counts() == {"blocks_expired": 1, "shards_late": 13}


def test_only_shards_of_a_block_that_was_given_up_are_late(bench: ReassemblyHarness) -> None:
    bench.receive_long(until=5000)
    frames = runs(block(1), 5000)
    bench.add_runs(frames[0])
    bench.now += KEEP_NS
    bench.pop()
    for number in range(5001, 5010):
        bench.add_runs(*copies(block(number, 100), number))
    assert len(bench.pop()) == 9
    for number in range(5001, 5010):
        bench.add_runs(*copies(block(number, 100), number))
    assert bench.counts() == {"blocks_whole": 9, "blocks_expired": 1, "shards_duplicate": 9}
    bench.add_runs(frames[1])
    assert bench.counts()["shards_late"] == 3


def test_a_block_before_the_first_one_that_was_begun_is_given_up_like_others(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(100), 100), run(block(50), 10, 3, 0, 3, 50))
    for number in range(101, 100 + 2 * REORDER_WINDOW):
        bench.add_runs(*copies(block(number, 20), number))
    bench.add_runs(run(block(0), 10, 3, 0, 3, 100 + 2 * REORDER_WINDOW))
    bench.pop()
    assert bench.counts() == {"blocks_whole": 2 * REORDER_WINDOW, "blocks_expired": 1}


def test_no_block_waits_for_one_that_was_given_up(bench: ReassemblyHarness) -> None:
    bench.add_runs(runs(block(1), 1)[0])
    bench.now += KEEP_NS - 50 * MS
    bench.add_runs(*copies(block(2), 2))
    assert bench.pop() == []
    bench.now += 50 * MS
    assert bench.pop() == [block(2)]


def test_a_block_is_given_up_when_its_stream_has_gone_on(bench: ReassemblyHarness) -> None:
    frames = runs(block(0), 0)
    bench.add_runs(frames[0], *copies(block(1, 100), 1))
    bench.now += 100 * MS
    for i in range(2, REORDER_WINDOW):
        bench.add_runs(*copies(block(i, 100), i))
    bench.pop()
    bench.add_runs(frames[1])
    assert bench.counts() == {"blocks_whole": REORDER_WINDOW - 1}
    bench.add_runs(*copies(block(REORDER_WINDOW, 100), REORDER_WINDOW))
    bench.add_runs(*frames[2:])
    assert bench.pop() == [block(REORDER_WINDOW, 100)]
    assert bench.counts() == {"blocks_whole": REORDER_WINDOW, "blocks_expired": 1, "shards_late": 7}


def test_blocks_that_were_never_seen_count_once_they_are_behind_the_window(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(0, 100), 0), *copies(block(8, 100), 8))
    bench.now += 100 * MS
    bench.pop()
    for i in range(9, 9 + 2 * REORDER_WINDOW):
        bench.add_runs(*copies(block(i, 100), i))
        bench.pop()
    assert bench.counts() == {"blocks_whole": 2 + 2 * REORDER_WINDOW, "blocks_expired": 7}


@pytest.mark.parametrize("pause_ms", [1, 3], ids=["behind the window first", "too old first"])
def test_every_block_is_either_handed_on_or_expired(bench: ReassemblyHarness, pause_ms: int) -> None:
    handed = 0
    for i in range(3 * REORDER_WINDOW):
        if i % 7:
            bench.add_runs(*copies(block(i, 100), i))
        elif i % 3:
            bench.add_runs(run(block(i), 10, 3, 0, 3, i))
        bench.now += pause_ms * MS
        handed += len(bench.pop())
    bench.add_runs(*copies(block(0, 100), 10 * REORDER_WINDOW))
    handed += len(bench.pop())
    bench.add_runs(*copies(block(0, 100), 20 * REORDER_WINDOW))
    handed += len(bench.pop())
    seen = range(1, 20 * REORDER_WINDOW + 1)
    assert handed + bench.counts()["blocks_expired"] == len(seen) - (
        REORDER_WINDOW - 1
    )  # those before the last may still come


def test_a_new_stream_takes_the_place_of_the_one_that_was_silent_longest(bench: ReassemblyHarness) -> None:
    streams = [shard.stream(number, 0, framing.BULK) for number in range(STREAMS_MAX + 1)]
    for stream in streams[:STREAMS_MAX]:
        bench.now += 1
        bench.add_runs(
            *copies(block(1), 1, stream=stream),
            *copies(block(3), 3, stream=stream),
            run(block(4), 10, 3, 0, 2, 4, stream),
            *runs(block(5), 5, stream=stream),
        )
        assert bench.pop() == [block(1)]
    bench.add_runs(*copies(block(2), 2, stream=streams[0]))
    assert bench.pop() == [block(2), block(3)]
    bench.add_runs(*copies(block(6), 6, stream=streams[STREAMS_MAX]))
    assert bench.pop() == [block(6)]
    assert bench.counts()["blocks_expired"] == 3
    bench.add_runs(
        *runs(block(5), 5, stream=streams[1]), *copies(block(6), 6, stream=streams[1])
    )  # as if it were another
    assert bench.pop() == [block(5), block(6)]
    bench.add_runs(run(block(4), 10, 3, 2, 10, 4, streams[0]))
    assert bench.pop() == [block(4), block(5)]
