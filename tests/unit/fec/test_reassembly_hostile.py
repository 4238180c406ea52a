"""Runs of a hostile peer: no exception, no wrong block, a bounded number of bytes, a bounded time, and a counter."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.fec.reassembly import KEEP_NS
from pipeline.fec.reorder import REORDER_WINDOW
from pipeline.wire import framing
from tests.harness.reassembly import BULK, LIGHT, MS, ReassemblyHarness, block, coded, copies, framed, run, runs
from tests.harness.run_header import decode

DATA = block(1)
SHARDS, CHECKSUM = coded(DATA, 10, 3)
EACH = len(SHARDS[0])


@pytest.fixture
def bench() -> ReassemblyHarness:
    return ReassemblyHarness()


# Runs


def header(
    n: int = 10, m: int = 3, first: int = 0, count: int = 3, size: int = len(DATA), body: int = 3 * EACH
) -> bytes:
    return framed(bytes(body), n, m, first, count, size, CHECKSUM)


MALFORMED = {
    "no data shards": header(n=0),
    "too many data shards": header(n=38),
    "too many parity shards": header(m=7),
    "a code outside the domain": header(n=12, m=255),
    "no shards": header(count=0, body=0),
    "shards behind the last": header(first=11),
    "first behind the last": header(first=255),
    "no bytes in the block": header(size=0),
    "a block above the limit": framed(bytes(shard.BLOCK_BYTES_MAX + 1), 1, 0, 0, 1, shard.BLOCK_BYTES_MAX + 1, 0),
    "the largest number as a size": header(size=0xFFFFFFFF),
    "a byte too few": header(body=3 * EACH - 1),
    "a byte too many": header(body=3 * EACH + 1),
    "nothing behind the header": header(body=0),
    "half a header": framing.FRAME.pack(9, framing.RUN) + bytes(8),
    "a single of another size": framed(bytes(301), 1, 2, 0, 1, 300, 0),
    "a copy too many": framed(bytes(600), 1, 2, 2, 2, 300, 0),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_run_that_contradicts_itself_is_dropped_and_counted(bench: ReassemblyHarness, frame: bytes) -> None:
    bench.add_runs(frame)
    assert bench.pop() == []
    assert bench.counts() == {"dropped_run_malformed": 1}
    bench.add_runs(*runs(DATA, 5))
    assert bench.pop() == [DATA]


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("before", [0, 1, 4, 5], ids=["no run", "one run", "a complete block", "a block handed on"])
def test_a_malformed_run_does_not_harm_the_block_that_it_names(
    bench: ReassemblyHarness, frame: bytes, before: int
) -> None:
    frames = runs(DATA, 0)
    bench.add_runs(*frames[:before])
    early = bench.pop() if before == 5 else []
    bench.add_runs(frame)
    assert bench.counts()["dropped_run_malformed"] == 1
    bench.add_runs(*frames[before:])
    assert early + bench.pop() == [DATA]


OTHER = {
    "more data shards": run(DATA, 11, 3, 0, 3),
    "fewer parity shards": run(DATA, 10, 2, 0, 3),
    "another size": framed(bytes(3 * EACH), 10, 3, 0, 3, len(DATA) - 1, CHECKSUM),
    "another checksum": framed(bytes(3 * EACH), 10, 3, 0, 3, len(DATA), CHECKSUM ^ 1),
    "another block": run(block(2), 10, 3, 0, 3),
    "a single": copies(DATA, 0)[0],
}


@pytest.mark.parametrize("frame", OTHER.values(), ids=OTHER.keys())
@pytest.mark.parametrize("before", [1, 4], ids=["an open block", "a complete block"])
def test_a_run_that_contradicts_the_first_of_its_block_is_dropped(
    bench: ReassemblyHarness, frame: bytes, before: int
) -> None:
    frames = runs(DATA, 0)
    bench.add_runs(*frames[:before], frame)
    assert bench.counts()["dropped_run_malformed"] == 1
    bench.add_runs(*frames[before:])
    assert bench.pop() == [DATA]


small = st.sampled_from([0, 1, 2, 3, 9, 10, 12, 13, 14, 36, 37, 38, 254, 255])
sizes = st.one_of(st.integers(0, 300), st.just(shard.BLOCK_BYTES_MAX + 1), st.integers(0, 0xFFFFFFFF))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Frames with a header of any numbers; about half of them have the right length, if there is a right one."""
    n, m = draw(st.one_of(st.integers(0, 38), small)), draw(st.one_of(st.integers(0, 7), small))
    first, count, size = draw(small), draw(st.one_of(st.integers(0, 4), small)), draw(sizes)
    body = draw(st.integers(0, 400))
    if draw(st.booleans()) and shard.prime(n, m) and size <= shard.BLOCK_BYTES_MAX:
        body = count * shard.shard_bytes(size, n, m)
    return framed(bytes(body), n, m, first, count, size, 7)


@given(headers())
def test_a_first_run_is_refused_if_and_only_if_its_header_contradicts_itself(frame: bytes) -> None:
    bench = ReassemblyHarness()
    bench.add_runs(frame)
    try:
        decode(memoryview(frame), 0, len(frame) - 4)
    except PeerError:
        assert bench.counts() == {"dropped_run_malformed": 1}
    else:
        assert "dropped_run_malformed" not in bench.counts()


# Blocks


@pytest.mark.parametrize("spoilt", [0, 9, 10], ids=["the first data shard", "the last data shard", "the parity"])
def test_parity_that_does_not_fit_the_data_gives_no_block(bench: ReassemblyHarness, spoilt: int) -> None:
    for i in (0, *range(2, 11)):
        shards = bytes(byte ^ (i == spoilt) for byte in SHARDS[i])
        bench.add_runs(framed(shards, 10, 3, i, 1, len(DATA), CHECKSUM))
    bench.add_runs(*copies(block(2), 1))
    assert bench.pop() == [block(2)]
    assert bench.counts() == {"dropped_block_checksum": 1, "blocks_whole": 1}
    bench.add_runs(*runs(DATA, 0))
    assert bench.pop() == []


NO_FRAMES = {
    "another length": framing.FRAME.pack(995, framing.BLOCK) + bytes(995),
    "another type": framing.FRAME.pack(996, framing.DATA) + bytes(995),
    "two frames": 2 * (framing.FRAME.pack(496, framing.BLOCK) + bytes(495)),
    "zeros": bytes(100),
    "four bytes": framing.LENGTH.pack(0),
    "one byte": b" ",
}


@pytest.mark.parametrize("data", NO_FRAMES.values(), ids=NO_FRAMES.keys())
@pytest.mark.parametrize("n", [1, 10])
def test_a_block_that_is_no_block_frame_is_not_delivered(bench: ReassemblyHarness, data: bytes, n: int) -> None:
    bench.add_runs(*(run(data, n, 3, i, 1, 0) for i in range(1, 1 + n)), *copies(block(2), 1))
    assert bench.pop() == [block(2)]
    assert bench.counts()["dropped_block_malformed"] == 1


# Anything


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Runs of a few blocks of a few streams, sound or not quite, and bytes."""
    number = draw(
        st.one_of(
            st.integers(-3, 6), st.sampled_from([REORDER_WINDOW, REORDER_WINDOW + 1, 3000, 1 << 31, (1 << 31) + 5])
        )
    )
    stream = draw(st.sampled_from([BULK, BULK | framing.LIGHT, BULK + 256]))
    n, m = draw(st.sampled_from([(1, 0), (1, 2), (2, 1), (10, 3)]))
    first = draw(st.integers(0, n + m - 1))
    frame = bytearray(run(block(number, 200), n, m, first, draw(st.integers(1, n + m - first)), number, stream))
    if draw(st.integers(0, 3)) == 0:
        frame[draw(st.integers(5, len(frame) - 1))] ^= 1 << draw(st.integers(0, 7))
    if draw(st.integers(0, 7)) == 0:
        body = bytes(frame[4 : draw(st.integers(5, len(frame)))]) + draw(st.binary(max_size=30))
        return framing.LENGTH.pack(len(body)) + body
    return bytes(frame)


noise = st.binary(max_size=400).map(lambda body: framing.FRAME.pack(1 + len(body), framing.RUN) + body)


@given(st.lists(st.tuples(st.one_of(frames(), noise), st.sampled_from([0, 0, MS, 40 * MS, 900 * MS])), max_size=60))
def test_no_bytes_raise_an_error_and_only_whole_block_frames_are_delivered(sent: list[tuple[bytes, int]]) -> None:
    bench = ReassemblyHarness(bytes_limit=0)
    for frame, pause in sent:
        bench.add_runs(frame)
        bench.now += pause
        for data in bench.pop():
            assert (len(data) - 4, framing.BLOCK) == framing.FRAME.unpack_from(data)
        assert bench.due_ms() is None or bench.due_ms() > 0


# Floods

LIMIT = 4_000_000
BESIDE = 2_000_000
"""Bytes of the objects that stand for blocks beside their buffers: a few hundred for each number in the windows."""

Header = tuple[int, int, int, int, int]  # stream, block, n, m, size
Flood = Callable[[random.Random, int], Header]


def any_cut(dice: random.Random) -> tuple[int, int, int]:
    return dice.randint(2, 37), dice.randint(0, 5), dice.choice([1, 300, 5000, dice.randint(1, shard.BLOCK_BYTES_MAX)])


def unfinished(dice: random.Random, i: int) -> Header:
    return BULK, i, *any_cut(dice)


def all_over_the_window(dice: random.Random, i: int) -> Header:
    return BULK, i + dice.randint(-REORDER_WINDOW, REORDER_WINDOW), *any_cut(dice)


def backwards(dice: random.Random, i: int) -> Header:
    return BULK, REORDER_WINDOW * (1 + i // REORDER_WINDOW) - i % REORDER_WINDOW, *any_cut(dice)


def anywhere(dice: random.Random, i: int) -> Header:
    return dice.getrandbits(32), dice.getrandbits(32), *any_cut(dice)


def small_blocks_and_new_streams(dice: random.Random, i: int) -> Header:
    return (BULK, i // 2 % REORDER_WINDOW, 2, 0, 1) if i % 2 else (i, i, 2, 0, 1)


def jumps(dice: random.Random, i: int) -> Header:
    return BULK, i * 1500, 2, 1, 1


def long_steps(dice: random.Random, i: int) -> Header:
    return BULK, i * 1000, 1 + i % 2, 0, 100


def singles_that_wait(dice: random.Random, i: int) -> Header:
    return BULK + 256 * (i % 16), 2 * (i // 16), 1, 0, dice.choice([1, 1, 100_000])


def singles_that_wait_in_new_streams(dice: random.Random, i: int) -> Header:
    return i // 6, i % 6 * 2, 1, 0, 1


FLOODS = [
    unfinished,
    all_over_the_window,
    backwards,
    anywhere,
    small_blocks_and_new_streams,
    jumps,
    long_steps,
    singles_that_wait,
    singles_that_wait_in_new_streams,
]


def flood(bench: ReassemblyHarness, kind: Flood, count: int, pops: bool) -> None:
    dice = random.Random(1)
    reassembly = bench.reassembly
    slot = memoryview(bytearray(shard.RUN_BYTES + 2 * shard.BLOCK_BYTES_MAX))
    for i in range(count):
        stream, number, n, m, size = kind(dice, i)
        length = shard.RUN_BYTES - framing.LENGTH.size + shard.shard_bytes(size, n, m)
        shard.RUN.pack_into(slot, 0, length, framing.RUN, stream, number & 0xFFFFFFFF, n, m, 0, 1, size, 0)
        reassembly.add_run(slot, 0, length, bench.now)
        bench.now += MS // 100
        if pops:
            reassembly.pop(bench.now)


floods = pytest.mark.parametrize("kind", FLOODS, ids=lambda kind: kind.__name__)
popped = pytest.mark.parametrize("pops", [True, False], ids=["popped", "never popped"])


@floods
@popped
def test_a_flood_stays_within_its_bytes(kind: Flood, pops: bool) -> None:
    bench = ReassemblyHarness(LIMIT)
    tracemalloc.start()
    try:
        flood(bench, kind, 4000, pops)
        assert tracemalloc.get_traced_memory()[1] < LIMIT + BESIDE
    finally:
        tracemalloc.stop()


@floods
@popped
def test_a_flood_costs_a_bounded_time_for_each_run_and_harms_only_itself(kind: Flood, pops: bool) -> None:
    bench = ReassemblyHarness(LIMIT)
    began = time.process_time()
    flood(bench, kind, 20_000, pops)
    assert time.process_time() - began < 2  # ten times what it takes; a loop over the window in each run takes more
    assert bench.counts().get("dropped_run_malformed", 0) < 2000  # a number that came twice, in two cuts
    bench.pop()
    bench.now += KEEP_NS
    bench.pop()
    honest = [block(i, 60_000) for i in range(5)]
    bench.add_runs(*(frame for i, data in enumerate(honest) for frame in runs(data, i, stream=LIGHT)))
    assert bench.pop() == honest
    bench.add_runs(*copies(block(6), 6, stream=LIGHT))
    assert bench.pop() == []  # it waits: memory is short no longer
