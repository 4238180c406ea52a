"""A pool of buffers with a limit of bytes, in which buffers are used again."""

from __future__ import annotations

import pytest

from pipeline.fec.buffer_pool import KEPT_SHARE, SMALLEST_BYTES, BufferPool, rounded_up


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 5120, 5121, 65_535, 65_536, 65_537, 533_000])
def test_a_buffer_is_large_enough_and_not_a_quarter_larger_than_that(size: int) -> None:
    buffer = BufferPool(1 << 20).acquire(size)
    assert buffer is not None
    assert size <= len(buffer) == rounded_up(size) <= max(SMALLEST_BYTES, size * 5 // 4 + 1)


def test_a_buffer_that_came_back_is_used_again() -> None:
    buffers = BufferPool(1 << 20)
    first = buffers.acquire(60_000)
    assert first is not None
    buffers.release(first)
    assert buffers.acquire(66_000) is not first
    assert buffers.acquire(60_001) is first


def test_no_byte_is_acquired_or_reserved_beyond_the_limit() -> None:
    buffers = BufferPool(100_000)
    used = buffers.acquire(65_536)
    assert used is not None
    assert buffers.acquire(65_536) is None
    assert not buffers.reserve(34_465)
    assert buffers.reserve(34_464)
    assert buffers.used == 100_000
    buffers.release(used)
    buffers.unreserve(34_464)
    assert buffers.used == 0


def test_the_kept_buffers_are_a_part_of_the_limit() -> None:
    buffers = BufferPool(1 << 20)
    used = [buffers.acquire(4096) for _ in range(256)]
    assert buffers.used == 1 << 20
    for buffer in used:
        assert buffer is not None
        buffers.release(buffer)
    assert (buffers.used, buffers.kept) == (0, (1 << 20) // KEPT_SHARE)
    buffers.trim()
    assert buffers.kept == 0


@pytest.mark.parametrize(
    "ask",
    [lambda buffers: buffers.acquire(80_000), lambda buffers: buffers.reserve(80_000)],
    ids=["a buffer", "reserved bytes"],
)
def test_kept_buffers_make_way_for_a_new_request(ask: object) -> None:
    buffers = BufferPool(100_000)
    kept = buffers.acquire(24_576)
    assert kept is not None
    buffers.release(kept)
    assert ask(buffers)
    assert buffers.used + buffers.kept <= 100_000


def test_a_buffer_in_use_again_counts_as_kept_no_more() -> None:
    buffers = BufferPool(1 << 20)
    first = buffers.acquire(60_000)
    assert first is not None
    for _ in range(10):
        buffers.release(first)
        assert buffers.acquire(60_000) is first
    assert buffers.kept == 0
