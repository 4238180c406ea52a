"""Runs of shards become blocks: each block is delivered once, byte for byte, in whatever order its shards came."""

from __future__ import annotations

import itertools
import mmap
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fec import shard
from pipeline.fec.reassembly import KEEP_NS
from pipeline.fec.reorder import REORDER_WINDOW
from pipeline.wire import framing
from tests.harness.reassembly import FIVE, LIGHT, MS, ReassemblyHarness, block, copies, run, runs


@pytest.fixture
def bench() -> ReassemblyHarness:
    return ReassemblyHarness()


def test_a_block_comes_out_as_it_was_cut(bench: ReassemblyHarness) -> None:
    data = block(1)
    bench.add_runs(*runs(data, 7))
    assert bench.pop() == [data]
    assert bench.counts() == {"blocks_whole": 1, "shards_unneeded": 2}
    assert bench.reassembly.pop(bench.now) is None


def test_a_block_comes_out_with_the_run_that_completes_it(bench: ReassemblyHarness) -> None:
    data = block(1)
    for frame in runs(data, 7)[:3]:
        bench.add_runs(frame)
        assert bench.pop() == []
    bench.add_runs(runs(data, 7)[3])
    assert bench.pop() == [data]


def test_the_runs_of_a_block_come_in_any_order(bench: ReassemblyHarness) -> None:
    orders = list(itertools.permutations(range(5)))
    for number, order in enumerate(orders):
        frames = runs(block(number), number)
        bench.add_runs(*(frames[i] for i in order))
        assert bench.pop() == [block(number)]
    assert bench.counts() == {"blocks_whole": len(orders), "shards_unneeded": UNNEEDED}


UNNEEDED = sum(count for order in itertools.permutations(FIVE) for i, count in enumerate(order) if sum(order[:i]) >= 10)


@pytest.mark.parametrize(
    ("came", "missing"),
    [(range(3, 13), 3), ((*range(8), 10, 12), 2), ((*range(4), *range(5, 11)), 1), (range(10), 0)],
    ids=str,
)
def test_any_n_shards_make_a_block_and_what_was_missing_is_counted(
    bench: ReassemblyHarness, came: Sequence[int], missing: int
) -> None:
    data = block(1)
    bench.add_runs(*(run(data, 10, 3, i, 1, 7) for i in came))
    assert bench.pop() == [data]
    assert bench.counts() == {f"blocks_recovered_{missing}" if missing else "blocks_whole": 1}


@pytest.mark.parametrize("cut", [(2, 1), (2, 6), (3, 2), (13, 5), (29, 4), (37, 6), (10, 0)], ids=str)
@pytest.mark.parametrize("size", [7, 1201, 65_000, shard.BLOCK_BYTES_MAX], ids=str)
def test_every_shape_and_size_comes_through_with_as_much_lost_as_may_be(
    bench: ReassemblyHarness, cut: tuple[int, int], size: int
) -> None:
    n, m = cut
    data = block(1, size)
    bench.add_runs(*(run(data, n, m, i, 1) for i in range(m, n + m)))
    assert bench.pop() == [data]


def test_a_run_of_which_some_shards_are_present_adds_the_others(bench: ReassemblyHarness) -> None:
    data = block(1)
    bench.add_runs(run(data, 10, 3, 0, 6), run(data, 10, 3, 1, 6), run(data, 10, 3, 1, 6))
    assert bench.pop() == []
    assert bench.counts() == {"shards_duplicate": 11}
    bench.add_runs(run(data, 10, 3, 6, 4))
    assert bench.pop() == [data]
    assert bench.counts() == {"blocks_whole": 1, "shards_duplicate": 12}


def test_data_that_comes_before_the_block_goes_on_need_not_be_recovered(bench: ReassemblyHarness) -> None:
    data = block(1)
    bench.add_runs(run(data, 10, 3, 3, 10), run(data, 10, 3, 0, 3))
    assert bench.pop() == [data]
    assert bench.counts() == {"blocks_whole": 1, "shards_unneeded": 3}


def test_a_single_shard_is_the_block_and_its_copies_are_duplicates(bench: ReassemblyHarness) -> None:
    data = block(1, 300)
    bench.add_runs(*copies(data, 7, 3))
    assert bench.pop() == [data]
    bench.add_runs(copies(data, 7, 3)[1])
    assert bench.pop() == []
    assert bench.counts() == {"blocks_whole": 1, "shards_duplicate": 3}


def test_any_copy_will_do(bench: ReassemblyHarness) -> None:
    data = block(1, 300)
    bench.add_runs(copies(data, 7, 3)[2])
    assert bench.pop() == [data]


def test_a_frame_with_several_copies_counts_all_but_one_as_duplicates(bench: ReassemblyHarness) -> None:
    data = block(1, 300)
    bench.add_runs(run(data, 1, 2, 1, 2))
    assert bench.pop() == [data]
    assert bench.counts() == {"blocks_whole": 1, "shards_duplicate": 1}


def test_a_block_sent_twice_comes_out_once(bench: ReassemblyHarness) -> None:
    """A successor of the sender's worker encodes a half done slot again, perhaps for other connections."""
    data, small = block(1), block(2, 300)
    bench.add_runs(*runs(data, 1)[:2], *runs(data, 1, (5, 5, 3)), *copies(small, 2, 2))
    assert bench.pop() == [data, small]
    bench.add_runs(*runs(data, 1, (5, 5, 3)), *copies(small, 2, 2))
    assert bench.pop() == []
    assert bench.counts() == {"blocks_whole": 2, "shards_duplicate": 5 + 1 + 1 + 2, "shards_unneeded": 3 + 13}


def test_a_block_coded_anew_with_other_parity_does_not_mix_with_the_first(bench: ReassemblyHarness) -> None:
    data = block(1)
    bench.add_runs(*runs(data, 1)[:2], run(data, 10, 2, 0, 12, 1))
    assert bench.pop() == []
    bench.add_runs(*runs(data, 1)[2:])
    assert bench.pop() == [data]
    assert bench.counts()["dropped_run_malformed"] == 1


def test_several_blocks_may_be_complete_at_once_and_come_out_in_order(bench: ReassemblyHarness) -> None:
    blocks = [block(i) for i in range(5)]
    bench.add_runs(*(frame for i, data in enumerate(blocks) for frame in runs(data, i)))
    assert bench.pop() == blocks


def test_connections_of_unequal_speed_disturb_nothing(bench: ReassemblyHarness) -> None:
    """One connection's runs of all blocks come first, then the next one's: blocks complete together, in order."""
    blocks = [block(i) for i in range(20)]
    frames = [runs(data, i) for i, data in enumerate(blocks)]
    bench.add_runs(*(of_block[connection] for connection in (4, 2, 0, 3) for of_block in frames))
    assert bench.pop() == blocks
    assert bench.due_ms() is None


def test_a_view_stays_good_until_the_next_pop(bench: ReassemblyHarness) -> None:
    first, second = block(1), block(2)
    bench.add_runs(*runs(first, 1))
    view = bench.reassembly.pop(bench.now)
    assert view is not None
    bench.add_runs(*runs(second, 2))
    assert bytes(view) == first
    assert bench.pop() == [second]


def test_blocks_of_light_streams_go_on_before_those_of_bulk(bench: ReassemblyHarness) -> None:
    bulk, light = [block(i) for i in range(3)], [block(i, 300) for i in range(10, 13)]
    for number in range(3):
        bench.add_runs(*runs(bulk[number], number), *copies(light[number], number, stream=LIGHT))
    assert bench.pop() == light + bulk


def test_the_traffic_class_of_each_block_is_told_with_it(bench: ReassemblyHarness) -> None:
    bench.add_runs(*runs(block(1), 1), *copies(block(2, 300), 2, stream=LIGHT))
    told = []
    while bench.reassembly.pop(bench.now) is not None:
        told.append(bench.reassembly.traffic_class)
    assert told == [framing.LIGHT, framing.BULK]


def test_a_light_block_goes_on_with_the_next_pop_however_much_bulk_waits(bench: ReassemblyHarness) -> None:
    bench.add_runs(*(frame for number in range(5) for frame in runs(block(number), number)))
    assert bench.pop_one() == block(0)
    bench.add_runs(*copies(block(9, 300), 9, stream=LIGHT))
    assert bench.pop_one() == block(9, 300)
    assert bench.pop_one() == block(1)


# Idle


def test_a_reassembly_without_any_run_is_idle(bench: ReassemblyHarness) -> None:
    assert bench.reassembly.is_idle(bench.now)


def test_a_reassembly_is_idle_when_no_block_is_left_and_the_last_run_came_long_ago(bench: ReassemblyHarness) -> None:
    bench.add_runs(*runs(block(1), 1))
    assert not bench.reassembly.is_idle(bench.now)
    bench.pop()
    assert not bench.reassembly.is_idle(bench.now)  # a copy of the block, or a run that was late, may still come
    bench.now += KEEP_NS - 1
    assert not bench.reassembly.is_idle(bench.now)
    bench.now += 1
    assert bench.reassembly.is_idle(bench.now)
    bench.add_runs(*copies(block(2), 2))
    bench.pop()
    assert not bench.reassembly.is_idle(bench.now)


@pytest.mark.parametrize(
    "frames",
    [runs(block(2), 2)[:1], copies(block(3), 3), copies(block(2), 2), runs(block(2), 2), runs(block(3), 3)],
    ids=["open", "waiting", "ready", "ready, of several shards", "waiting, of several shards"],
)
def test_a_reassembly_with_any_block_is_not_idle(bench: ReassemblyHarness, frames: list[bytes]) -> None:
    bench.add_runs(*copies(block(1), 1))
    bench.pop()
    bench.add_runs(*frames)
    bench.now += 10 * KEEP_NS
    assert not bench.reassembly.is_idle(bench.now)
    bench.pop()
    assert bench.reassembly.is_idle(bench.now)


# Memory


def test_without_traffic_hardly_any_memory_is_used(bench: ReassemblyHarness) -> None:
    frames = [frame for i in range(40) for frame in runs(block(i, 60_000), i)]
    tracemalloc.start()
    try:
        idle = [ReassemblyHarness() for _ in range(10)]
        assert tracemalloc.get_traced_memory()[0] < 10 * 8_000
        del idle
        before = tracemalloc.get_traced_memory()[0]
        bench.add_runs(*frames[:-4])
        assert tracemalloc.get_traced_memory()[0] - before > 2_000_000
        assert len(bench.pop()) == 39
        bench.add_runs(*(run(block(i, 100), 2, 0, 0, 1, i) for i in range(40, 1000)))
        for _ in range(3):
            bench.now += KEEP_NS
            bench.pop()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("swap", [0, 1], ids=["in order", "every two in disorder"])
def test_steady_traffic_needs_no_more_memory(bench: ReassemblyHarness, swap: int) -> None:
    frames = [memoryview(bytearray(frame)) for frame in runs(block(1, 60_000), 0)]

    def receive(numbers: range) -> None:
        for number in numbers:
            for frame in frames:
                frame[NUMBER_AT : NUMBER_AT + 4] = (number ^ swap).to_bytes(4)
                bench.reassembly.add_run(frame, 0, len(frame) - 4, bench.now)
            bench.pop()

    receive(range(2 * REORDER_WINDOW))
    tracemalloc.start()
    try:
        receive(range(2 * REORDER_WINDOW, 4 * REORDER_WINDOW))
        assert tracemalloc.get_traced_memory()[1] < 350_000  # a few popped blocks
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()
    assert bench.counts()["blocks_whole"] == 4 * REORDER_WINDOW


NUMBER_AT = 9  # of a run: behind length, type and stream


def test_no_block_waits_while_memory_is_short() -> None:
    bench = ReassemblyHarness(bytes_limit=4_000_000)
    bench.add_runs(*copies(block(0), 0))
    bench.pop()
    taken, out = [], []
    while not out:
        taken.append(block(len(taken), 60_000))
        bench.add_runs(*runs(taken[-1], 1 + len(taken)))
        out = bench.pop()
    assert out == taken
    assert 25 < len(out) < 45


def test_when_memory_runs_out_the_oldest_open_blocks_are_given_up() -> None:
    bench = ReassemblyHarness(bytes_limit=4_000_000)
    frames = [runs(block(i, 60_000), i) for i in range(100)]
    bench.add_runs(*(of_block[0] for of_block in frames))
    bench.add_runs(*(frame for of_block in frames for frame in of_block[1:]))
    out = bench.pop()
    assert out == [block(i, 60_000) for i in range(100 - len(out), 100)]
    assert 35 < len(out) < 55
    assert bench.counts()["blocks_expired"] == 100 - len(out)


@pytest.mark.slow
def test_blocks_that_are_never_complete_need_no_more_memory_and_the_next_whole_one_is_delivered() -> None:
    """A peer sends one shard of each block, or its path loses all others."""
    bench = ReassemblyHarness(bytes_limit=4_000_000)
    frame = memoryview(bytearray(run(block(0, 600), 10, 3, 0, 1)))

    def receive(numbers: range) -> None:
        for number in numbers:
            frame[NUMBER_AT : NUMBER_AT + 4] = number.to_bytes(4)
            bench.reassembly.add_run(frame, 0, len(frame) - 4, bench.now)
            if not number % 1000:
                bench.now += MS
                assert bench.pop() == []

    receive(range(20_000))
    steady = resident_bytes()
    receive(range(20_000, 100_000))
    assert resident_bytes() < steady + 2_000_000
    assert bench.counts()["blocks_expired"] > 100_000 - 2 * REORDER_WINDOW
    bench.add_runs(*runs(block(1), 100_000))
    bench.now += 1000 * MS
    assert bench.pop() == [block(1)]


def resident_bytes() -> int:
    """Of this process: proc_pid_statm(5)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_run_that_finds_no_room_is_dropped_and_counted() -> None:
    bench = ReassemblyHarness(bytes_limit=0)
    sent = 0
    while not bench.counts():
        bench.add_runs(run(block(0, shard.BLOCK_BYTES_MAX), 1, 0, 0, 1, sent))
        sent += 1
    assert bench.counts() == {"shards_late": 1}
    bench.add_runs(*(run(block(1, shard.BLOCK_BYTES_MAX), 10, 3, i, 1, 0, LIGHT) for i in range(3)))
    assert bench.counts() == {"shards_late": 4}
    assert len(bench.pop()) == sent - 1
    bench.add_runs(*runs(block(1), 0, stream=LIGHT))
    assert bench.pop() == [block(1)]


def test_even_the_smallest_limit_has_room_for_two_blocks_of_any_cut() -> None:
    bench = ReassemblyHarness(bytes_limit=0)
    data = [block(i, shard.BLOCK_BYTES_MAX) for i in range(2)]
    bench.add_runs(
        run(data[0], 2, 6, 0, 1, 0),
        run(data[1], 2, 6, 7, 1, 1),
        run(data[0], 2, 6, 4, 1, 0),
        run(data[1], 2, 6, 2, 1, 1),
    )
    assert bench.pop() == data


# Any schedule

CUTS = ((1, 0), (1, 2), (2, 1), (4, 2), (10, 3))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Blocks, and their runs in an order that strays by a few blocks: some twice, and no more lost than parity allows.

    The first block comes first, so that the stream is known from its beginning.
    """
    blocks = [block(0, 100)]
    frames = [(-1.0, frame) for frame in copies(blocks[0], FIRST)]
    for number in range(1, draw(st.integers(2, 10))):
        n, m = draw(st.sampled_from(CUTS))
        blocks.append(block(number, draw(st.integers(7, 3000))))
        lost = draw(st.sets(st.integers(0, n + m - 1), max_size=m))
        cuts = {cut for i in lost for cut in (i, i + 1)} | draw(st.sets(st.integers(1, n + m), max_size=4))
        bounds = sorted(cuts | {0, n + m})
        for first, end in itertools.pairwise(bounds):
            if first not in lost:
                frame = run(blocks[-1], n, m, first, end - first, FIRST + number)
                places = draw(st.lists(st.floats(0, 4), min_size=1, max_size=2))
                frames += [(number + place, frame) for place in places]
    frames.sort(key=lambda each: each[0])
    return blocks, [frame for _, frame in frames]


FIRST = (1 << 32) - 4


@given(schedules(), st.data())
def test_within_the_waits_every_block_comes_out_once_and_in_order(
    schedule: tuple[list[bytes], list[bytes]], data: st.DataObject
) -> None:
    bench = ReassemblyHarness()
    if data.draw(st.booleans()):
        bench.receive_long(until=FIRST)
    blocks, frames = schedule
    out = []
    for frame in frames:
        bench.add_runs(frame)
        if data.draw(st.booleans()):
            out += bench.pop()
    assert out + bench.pop() == blocks
    assert bench.due_ms() is None
    assert bench.counts().keys() <= DONE


DONE = {
    "blocks_whole",
    "blocks_recovered_1",
    "blocks_recovered_2",
    "blocks_recovered_3",
    "shards_unneeded",
    "shards_duplicate",
}


@given(schedules(), st.data())
def test_beyond_the_waits_every_block_still_comes_out_once(
    schedule: tuple[list[bytes], list[bytes]], data: st.DataObject
) -> None:
    bench = ReassemblyHarness()
    blocks, frames = schedule
    out = []
    for frame in frames:
        bench.add_runs(frame)
        out += bench.pop()
        bench.now += data.draw(st.sampled_from([0, MS, 30 * MS]))
    assert sorted(out + bench.pop()) == sorted(blocks)


@given(schedules(), st.data())
def test_a_block_that_is_due_is_delivered_then_and_not_before(
    schedule: tuple[list[bytes], list[bytes]], data: st.DataObject
) -> None:
    bench = ReassemblyHarness()
    for frame in schedule[1]:
        bench.add_runs(frame)
        bench.pop()
        due = bench.reassembly.due()
        if due:
            bench.now = due - 1
            assert bench.pop() == []
            if data.draw(st.booleans()):
                bench.now = due
                assert bench.pop() != []


def test_a_stream_that_one_wrong_number_has_led_far_ahead_begins_anew(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(0), 5))
    bench.add_runs(*copies(block(1), 1_000_000))
    assert bench.pop() == [block(0), block(1)]
    for number in range(6, 40):
        bench.now += 100 * MS
        bench.add_runs(*copies(block(number), number))
    delivered = bench.pop()
    assert delivered == [block(number) for number in range(40 - len(delivered), 40)] and len(delivered) > 24


def test_runs_of_a_connection_that_stood_still_begin_no_stream_anew(bench: ReassemblyHarness) -> None:
    bench.add_runs(*copies(block(0), 5))
    assert bench.pop() == [block(0)]
    for turn in range(40):
        bench.now += 100 * MS
        bench.add_runs(*copies(block(turn), 5000 + turn), *copies(block(turn), turn))
        assert bench.pop() == [block(turn)]
