"""A bounded number of bytes, lent out in buffers that are used again."""

from __future__ import annotations

import pytest

from pipeline.fec.buffer_pool import KEPT_SHARE, SMALLEST_BYTES, BufferPool, rounded


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 5120, 5121, 65_535, 65_536, 65_537, 533_000])
def test_a_buffer_is_large_enough_and_not_a_quarter_larger_than_that(size: int) -> None:
    buffer = BufferPool(1 << 20).lend(size)
    assert buffer is not None
    assert size <= len(buffer) == rounded(size) <= max(SMALLEST_BYTES, size * 5 // 4 + 1)


def test_a_buffer_that_came_back_is_lent_again() -> None:
    buffers = BufferPool(1 << 20)
    first = buffers.lend(60_000)
    assert first is not None
    buffers.take_back(first)
    assert buffers.lend(66_000) is not first
    assert buffers.lend(60_001) is first


def test_nothing_is_lent_or_held_beyond_the_limit() -> None:
    buffers = BufferPool(100_000)
    lent = buffers.lend(65_536)
    assert lent is not None
    assert buffers.lend(65_536) is None
    assert not buffers.hold(34_465)
    assert buffers.hold(34_464)
    assert buffers.used == 100_000
    buffers.take_back(lent)
    buffers.release(34_464)
    assert buffers.used == 0


def test_what_is_kept_is_a_part_of_the_limit() -> None:
    buffers = BufferPool(1 << 20)
    lent = [buffers.lend(4096) for _ in range(256)]
    assert buffers.used == 1 << 20
    for buffer in lent:
        assert buffer is not None
        buffers.take_back(buffer)
    assert (buffers.used, buffers.kept) == (0, (1 << 20) // KEPT_SHARE)
    buffers.forget()
    assert buffers.kept == 0


@pytest.mark.parametrize(
    "ask", [lambda buffers: buffers.lend(80_000), lambda buffers: buffers.hold(80_000)], ids=["a buffer", "held bytes"]
)
def test_what_is_kept_makes_way_for_what_is_asked_for(ask: object) -> None:
    buffers = BufferPool(100_000)
    kept = buffers.lend(24_576)
    assert kept is not None
    buffers.take_back(kept)
    assert ask(buffers)
    assert buffers.used + buffers.kept <= 100_000


def test_a_buffer_in_use_again_counts_as_kept_no_more() -> None:
    buffers = BufferPool(1 << 20)
    first = buffers.lend(60_000)
    assert first is not None
    for _ in range(10):
        buffers.take_back(first)
        assert buffers.lend(60_000) is first
    assert buffers.kept == 0
