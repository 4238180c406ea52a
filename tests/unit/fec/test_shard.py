"""The header of a run, and how a block is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.fec.shard import BLOCK_BYTES_MAX, RUN, RUN_BYTES
from pipeline.wire import framing
from tests.harness import run_header

SIZES = st.integers(1, BLOCK_BYTES_MAX)


def run(n: int = 10, m: int = 3, first: int = 0, count: int = 3, size: int = 65_000, excess: int = 0) -> bytes:
    length = RUN_BYTES - 4 + count * shard.shard_bytes(size, n, m) if shard.prime(n, m) else 4000
    return RUN.pack(length + excess, framing.RUN, 5, 6, n, m, first, count, size, 7)


def decode(data: bytes) -> run_header.Run:
    view = memoryview(data)
    return run_header.decode(view, 0, int.from_bytes(view[:4], "big"))


@given(SIZES, st.integers(1, 37), st.integers(0, 6))
def test_the_shards_hold_the_block_and_little_more(size: int, n: int, m: int) -> None:
    each = shard.shard_bytes(size, n, m)
    assert n * each >= size
    if n == 1:
        assert each == size
    else:
        rows = shard.prime(n, m) - 1
        assert each % (rows * 8) == 0
        assert n * each - size < n * rows * 8


@given(SIZES, st.integers(1, 37))
def test_a_small_block_has_as_few_shards_as_fit_one_segment_each(size: int, most: int) -> None:
    n = shard.data_shards(size, most)
    assert 1 <= n <= most
    assert n == most or size / n <= shard.SHARD_MOST_BYTES
    assert n == 1 or size / (n - 1) > shard.SHARD_MOST_BYTES


@given(SIZES)
def test_a_shard_of_a_small_block_fits_one_segment_with_its_header(size: int) -> None:
    n = shard.data_shards(size, 10)
    if n < 10:
        assert RUN_BYTES + shard.shard_bytes(size, n, 1) <= 1448  # MTU 1500 less headers and timestamps


@pytest.mark.parametrize(
    ("n", "connections", "m"),
    [
        (1, 5, 1),
        (2, 5, 1),
        (4, 5, 1),
        (5, 5, 2),
        (8, 5, 2),
        (9, 5, 3),
        (10, 5, 3),
        (10, 1, 3),
        (10, 0, 3),
        (2, 2, 2),
        (10, 13, 1),
    ],
)
def test_a_block_gets_as_much_parity_as_the_loss_of_one_connection_costs(n: int, connections: int, m: int) -> None:
    assert shard.parity_shards(n, 3, connections) == m


def test_a_lone_small_packet_is_one_shard_and_a_full_block_has_them_all() -> None:
    assert shard.data_shards(100, 10) == 1
    assert shard.data_shards(65_549, 10) == 10


@given(SIZES, st.integers(1, 37), st.integers(1, 6))
def test_a_header_says_what_was_put_into_it(size: int, n: int, m: int) -> None:
    assert decode(run(n, m, n + m - 1, 1, size)) == (5, 6, n, m, n + m - 1, 1, size, 7)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (run(n=0), "code of 0"),
        (run(n=38), "code of 38"),
        (run(m=7), "code of 10"),
        (run(count=0), "shards 0 to -1"),
        (run(first=11), "shards 11 to 13"),
        (run(first=255, count=1), "shards 255"),
        (run(size=0), "block of 0 bytes"),
        (run(size=BLOCK_BYTES_MAX + 1), "bytes, 1 to"),
        (run(excess=1), "for 3 shards"),
        (run(excess=-1), "for 3 shards"),
        (b"\0\0\0\5" + bytes(40), "at least 21 expected"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(PeerError, match=text):
        decode(data)


@given(st.binary(min_size=RUN_BYTES, max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        run_header.decode(memoryview(data), 0, len(data) - 4)
    except PeerError:
        pass


@given(st.integers(0, 2**32 - 1), st.integers(0, 63), st.sampled_from([framing.BULK, framing.LIGHT]))
def test_the_number_of_a_stream_holds_lane_and_traffic_class(start: int, lane: int, traffic_class: int) -> None:
    number = shard.stream(start, lane, traffic_class)
    assert number < 2**32
    assert (number >> 1 & 0x7F, number & 1) == (lane, traffic_class)


LANES = st.integers(0, 31)


@given(st.integers(0, 2**24 - 1), LANES, st.integers(1, 37), st.integers(0, 6), st.booleans(), st.booleans())
def test_a_run_names_its_lane_and_is_the_tun_workers_if_all_blocks_of_its_stream_travel_in_copies(
    start: int, lane: int, n: int, m: int, copies: bool, light: bool
) -> None:
    number = shard.stream(start, lane, light) | (shard.COPIES if copies else 0)
    view = memoryview(RUN.pack(RUN_BYTES - 4, framing.RUN, number, 6, n, m, 0, 1, 8, 7))
    assert shard.lane_of(view, 0, RUN_BYTES - 4, False) == lane
    assert shard.is_whole(view, 0, RUN_BYTES - 4, False, light) is copies


@given(st.integers(0, 2**24 - 1), LANES, st.integers(0, 7), st.integers(1, 37), st.integers(0, 6), st.booleans())
def test_a_sealed_run_names_its_lane_and_is_the_tun_workers_if_its_block_is_whole_unless_it_is_a_copy_among_bulk(
    process: int, lane: int, kind: int, n: int, m: int, light: bool
) -> None:
    number = process << 8 | lane << 3 | kind
    view = memoryview(shard.SEALED_RUN.pack(RUN_BYTES - 4, framing.RUN, number, 6, n, m, 0, 1, 8, 0, 1))
    assert shard.lane_of(view, 0, RUN_BYTES - 4, True) == lane
    assert shard.is_whole(view, 0, RUN_BYTES - 4, True, light) is (n == 1 and (light or m == 0))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_run_frame_that_is_too_short_has_no_lane_and_counts_as_shards_of_lane_0(sealed: bool) -> None:
    view = memoryview(bytes(4) + b"\xff" * 13)
    assert (shard.lane_of(view, 0, 13, sealed), shard.is_whole(view, 0, 13, sealed, True)) == (0, False)
