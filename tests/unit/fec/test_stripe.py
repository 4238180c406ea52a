"""Which connection carries which shards: each shard is sent once, evenly spread, and no frame is too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fec import shard, stripe
from pipeline.shm import layout
from pipeline.wire import framing


def test_connections_are_counted_through_all_workers() -> None:
    assert stripe.connections([2, 0, 1]) == ((0, 0), (0, 1), (2, 0))


def test_ten_and_three_over_five() -> None:
    over = stripe.connections([5])
    assert stripe.spread(13, 6560, over, 0) == [(0, 0, 0, 3), (0, 1, 3, 3), (0, 2, 6, 3), (0, 3, 9, 2), (0, 4, 11, 2)]
    assert [ordinal for _, ordinal, _, _ in stripe.spread(13, 6560, over, 3)] == [3, 4, 0, 1, 2]


@given(
    st.integers(1, 43),
    st.integers(1, 140_000),
    st.lists(st.integers(0, 8), min_size=1, max_size=4).filter(any),
    st.integers(0, 2**64 - 1),
)
def test_every_shard_goes_out_once_and_no_frame_is_too_long(
    shards: int, size: int, counts: list[int], turn: int
) -> None:
    size = min(size, framing.LENGTH_LIMIT - shard.RUN_BYTES)
    over = stripe.connections(counts)
    runs = stripe.spread(shards, size, over, turn)
    assert [i for _, _, first, count in runs for i in range(first, first + count)] == list(range(shards))
    assert all((member, ordinal) in over for member, ordinal, _, _ in runs)
    assert all(shard.RUN_BYTES + count * size <= framing.LENGTH.size + framing.LENGTH_LIMIT for *_, count in runs)
    assert max(run[3] for run in runs) - min(run[3] for run in runs) <= 1


@given(st.integers(2, 37), st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_with_enough_connections_none_carries_more_shards_than_a_block_can_lose(n: int, m: int, turn: int) -> None:
    over = stripe.connections([-(-(n + m) // m)])
    assert max(count for *_, count in stripe.spread(n + m, 1200, over, turn)) <= m


def test_one_connection_after_the_other_begins_a_block() -> None:
    over = stripe.connections([3])
    assert [stripe.spread(6, 1000, over, turn)[0][1] for turn in range(6)] == [0, 1, 2, 0, 1, 2]


SHARES = st.lists(st.floats(0.01, 1), min_size=1, max_size=16)


@given(SHARES, st.lists(st.tuples(st.integers(1, 43), st.integers(1, 140_000)), min_size=1, max_size=20))
def test_every_shard_goes_out_once_on_connections_with_shares(
    weights: list[float], blocks: list[tuple[int, int]]
) -> None:
    over = stripe.connections([len(weights)])
    shares = stripe.Shares(over, [each / sum(weights) for each in weights])
    for shards, size in blocks:
        size = min(size, framing.LENGTH_LIMIT - shard.RUN_BYTES, 2 * shard.BLOCK_BYTES_MAX // shards)
        runs = shares.spread(shards, size)
        assert [i for _, _, first, count in runs for i in range(first, first + count)] == list(range(shards))
        assert all((member, ordinal) in over for member, ordinal, _, _ in runs)
        assert all(shard.RUN_BYTES + count * size <= framing.LENGTH.size + framing.LENGTH_LIMIT for *_, count in runs)
        assert len(runs) <= layout.RUNS_MAX


@given(SHARES, st.integers(1, 13), st.integers(100, 7000))
def test_each_connection_carries_its_share_of_many_blocks(weights: list[float], shards: int, size: int) -> None:
    over = stripe.connections([len(weights)])
    shares = [each / sum(weights) for each in weights]
    spread = stripe.Shares(over, shares)
    carried = dict.fromkeys(over, 0)
    blocks = 500
    for _ in range(blocks):
        for consumer, ordinal, _, count in spread.spread(shards, size):
            carried[consumer, ordinal] += count
    for each, share in zip(over, shares, strict=True):
        assert abs(carried[each] - share * blocks * shards) <= 2 * len(over)
