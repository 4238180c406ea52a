"""Framing: every split of the stream, and lengths at and beyond the limits."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.wire import framing

LIMIT = 40


def framed(*bodies: bytes) -> bytes:
    """Frames as the wire has them; a body here is type and body together, and may be empty."""
    return b"".join(struct.pack(">I", len(body)) + body for body in bodies)


def scan(stream: bytes, at: int = 0, end: int | None = None, limit: int = LIMIT) -> tuple[int, int, int, int]:
    return framing.scan(memoryview(stream), at, len(stream) if end is None else end, limit)[:4]


def expected(bodies: list[bytes], at: int, end: int) -> tuple[int, int, int, int]:
    """End of the last whole frame, end of the next one if its length is known, number of whole ones and of runs."""
    frames = runs = 0
    for body in bodies:
        after = at + 4 + len(body)
        if after > end:
            return (at, after if end - at >= 4 else 0, frames, runs)
        at = after
        frames += 1
        runs += body[:1] == bytes([framing.RUN])
    return (at, 0, frames, runs)


def test_a_frame_is_its_length_its_type_and_its_body() -> None:
    assert framing.frame(framing.DATA, b"packet") == b"\x00\x00\x00\x07\x01packet"
    assert framing.frame(framing.KEEPALIVE) == framing.KEEPALIVE_FRAME == b"\x00\x00\x00\x01\x02"


def test_types_and_limit_of_the_original_are_as_it_has_them() -> None:
    assert (framing.DATA, framing.KEEPALIVE, framing.COMPAT_LENGTH_LIMIT) == (0x01, 0x02, 1496)


def test_types_are_unique() -> None:
    types = [
        framing.DATA,
        framing.KEEPALIVE,
        framing.HELLO,
        framing.WELCOME,
        framing.REFUSED,
        framing.BLOCK,
        framing.RUN,
    ]
    assert len(set(types)) == len(types)


def test_the_limit_is_a_run_around_the_longest_block() -> None:
    assert framing.LENGTH.size + framing.LENGTH_LIMIT >= shard.RUN_BYTES + shard.BLOCK_BYTES_MAX
    assert framing.BLOCK_LENGTH_LIMIT == 1 + 2 + 4 * framing.BLOCK_PACKETS_MAX + framing.BLOCK_PAYLOAD_MAX


def test_nothing_holds_nothing() -> None:
    assert scan(b"") == (0, 0, 0, 0)


def test_every_split_of_a_stream_gives_the_frames_before_it_and_where_the_next_one_ends() -> None:
    bodies = [b"\x01ab", b"", b"\x02", b"", b"\x21", b"", b"\x20" + bytes(LIMIT - 1), b"\x21ab", b"\x01"]
    stream = framed(*bodies)
    for end in range(len(stream) + 1):
        assert scan(stream, 0, end) == expected(bodies, 0, end)


@given(st.lists(st.binary(max_size=LIMIT), max_size=8), st.integers(0, 20), st.data())
def test_any_stretch_of_any_frames_is_read_from_any_offset(bodies: list[bytes], at: int, data: st.DataObject) -> None:
    stream = b"\xff" * at + framed(*bodies) + b"\xff" * 7
    end = data.draw(st.integers(at, len(stream) - 7))
    assert scan(stream, at, end) == expected(bodies, at, end)


@given(st.lists(st.binary(max_size=LIMIT), max_size=8), st.data())
def test_a_stream_cut_anywhere_and_read_on_gives_the_same_frames(bodies: list[bytes], data: st.DataObject) -> None:
    stream = framed(*bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    frames = at = 0
    for end in [*cuts, len(stream)]:
        found = scan(stream, at, end)
        frames += found[2]
        at = found[0]
    assert (at, frames) == (len(stream), len(bodies))


def test_a_frame_of_length_zero_is_whole_and_has_no_type() -> None:
    assert scan(framed(b"", b"")) == (8, 0, 2, 0)


def test_a_frame_of_length_one_is_its_type_alone() -> None:
    assert scan(framed(b"\x02")) == (5, 0, 1, 0)


@pytest.mark.parametrize(
    "limit", [LIMIT, framing.COMPAT_LENGTH_LIMIT, framing.LENGTH_LIMIT, framing.HELLO_LENGTH_LIMIT]
)
def test_a_frame_at_the_limit_is_taken(limit: int) -> None:
    stream = framed(bytes(limit))
    assert scan(stream, limit=limit) == (4 + limit, 0, 1, 0)
    assert scan(stream, end=4, limit=limit) == (0, 4 + limit, 0, 0)


@pytest.mark.parametrize(
    "limit", [LIMIT, framing.COMPAT_LENGTH_LIMIT, framing.LENGTH_LIMIT, framing.HELLO_LENGTH_LIMIT]
)
@pytest.mark.parametrize(
    "beyond", [lambda limit: limit + 1, lambda _: 1 << 31, lambda _: (1 << 32) - 1], ids=["limit+1", "2^31", "2^32-1"]
)
def test_a_length_beyond_the_limit_is_refused_before_its_body_comes(limit: int, beyond) -> None:
    length = beyond(limit)
    stream = struct.pack(">I", length)
    with pytest.raises(PeerError, match=f"frame of {length} bytes, at most {limit} allowed"):
        scan(stream, limit=limit)
    assert scan(stream, end=3, limit=limit) == (0, 0, 0, 0)


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_beyond_the_limit_is_refused_behind_good_frames_as_well(length: int) -> None:
    with pytest.raises(PeerError):
        scan(framed(b"\x02", b"") + struct.pack(">I", length))


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer_or_a_peer_error(stream: bytes) -> None:
    try:
        found = scan(stream)
    except PeerError:
        return
    assert 0 <= found[0] <= len(stream)
    assert found[1] == 0 or len(stream) < found[1] <= found[0] + 4 + LIMIT
