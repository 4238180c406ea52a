"""Blocks become segments and blocks again, whatever is lost, comes twice or in another order."""

from __future__ import annotations

from os import urandom
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.datagram.arriving_block import Single
from pipeline.datagram.assembly import KEEP_NS, Assembly
from pipeline.datagram.cut import PARTS_MAX, cut, is_cut, parts_of
from pipeline.datagram.segment import FIELDS, HEADER_BYTES, ROWS, TOKEN_BYTES, Mask
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.codec import Codec

TOKEN = 0x01020304
KEY = bytes(range(32))
MOST = 512
WAIT_NS = 5_000_000
BULK, LIGHT = 0x700, 0x701
CODEC = Codec()


def counters() -> memoryview:
    return memoryview(bytearray(8 * 320)).cast("Q")


def assembly(counts: memoryview | None = None, limit: int = 16 << 20) -> Assembly:
    return Assembly(CODEC, counters() if counts is None else counts, limit, WAIT_NS)


def segments_of(block: bytes, number: int, m: int = 0, row_most: int = 1400, stream: int = BULK) -> list[bytes]:
    """The segments of a block as they are on the wire."""
    mask, segmenter = Mask(KEY, MOST), Segmenter(CODEC, 7, MOST)
    how = cut(len(block), row_most, m)
    if how.n == 1:
        return [
            segmenter.head_of_row(memoryview(block), TOKEN, mask, copy, stream, number, 3, m, copy) + block
            for copy in range(m + 1)
        ]
    memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
    train = segmenter.cut_block(memory, memoryview(block), how, TOKEN, mask, 1000 * number, stream, number, 3)
    return [bytes(row) for row in train.rows]


def unmasked(segment: bytes) -> tuple[tuple[int, ...], bytes]:
    """The fields as a receiver has them, and the row."""
    head, row = segment[TOKEN_BYTES:HEADER_BYTES], segment[HEADER_BYTES:]
    fields = int.from_bytes(head, "big") ^ Mask(KEY, 1).of_row(row)
    sequence, sender, stream, number, epoch, size, part, n, m, index = FIELDS.unpack(fields.to_bytes(24, "big"))
    return (sequence, sender, stream << 32 | number, epoch, size, part, n << 8 | m, index), row


def give(to: Assembly, segments: list[bytes], now: int = 1, *, together: bool = True) -> None:
    """Segments of one size come together, as one receive has them; or each by itself."""
    while segments:
        size = len(segments[0])
        count = next((i for i, each in enumerate(segments) if len(each) != size), len(segments)) if together else 1
        batch, segments = segments[:count], segments[count:]
        if together and size >= HEADER_BYTES + 32:
            rows = np.frombuffer(b"".join(batch), np.uint8).reshape(count, size)
            fields = np.ascontiguousarray(
                rows[:, TOKEN_BYTES:HEADER_BYTES] ^ Mask(KEY, count).of_rows(rows[:, HEADER_BYTES:])
            )
            to.add_rows(fields.view(ROWS).reshape(count), rows[:, HEADER_BYTES:], now)
        else:
            for each in batch:
                one, row = unmasked(each)
                to.add_row(one, memoryview(row), now)


def taken(frm: Assembly, now: int = 1) -> list[tuple[int, bytes]]:
    """(stream and number, content) of all blocks that are ready."""
    found = []
    while (block := frm.pop(now)) is not None:
        slot = memoryview(bytearray(shard.RUN_BYTES + shard.BLOCK_BYTES_MAX))
        end = frm.write(block, slot, 0)
        _, _, stream, number, n, _, _, count, size, epoch, _ = shard.SEALED_RUN.unpack_from(slot)
        assert (n, count, size, epoch) == (1, 1, end - shard.RUN_BYTES, 3)
        found.append((stream << 32 | number, bytes(slot[shard.RUN_BYTES : end])))
    return found


@given(st.integers(1, shard.BLOCK_BYTES_MAX), st.integers(600, 1444), st.integers(0, 6))
def test_every_block_has_a_cut_that_holds_it_in_rows_that_the_path_carries(size: int, row_most: int, m: int) -> None:
    how = cut(size, row_most, m)
    assert how.row_bytes <= row_most and how.parts * how.n * how.row_bytes >= size
    assert how.parts <= PARTS_MAX and is_cut(size, how.n, m, how.row_bytes)
    assert parts_of(size, how.n, how.row_bytes) == how.parts, "the receiver finds the same number of parts"


@settings(deadline=None)
@given(st.integers(1, 80_000), st.integers(0, 6), st.integers(600, 1444), st.booleans(), st.randoms())
def test_a_block_arrives_whatever_m_rows_of_each_part_are_lost(
    size: int, m: int, row_most: int, together: bool, chance: Random
) -> None:
    block = urandom(size)
    how = cut(size, row_most, m)
    segments = segments_of(block, 9, m, row_most)
    lost = {index * how.parts + part for part in range(how.parts) for index in chance.sample(range(how.n + m), m)}
    left = [each for at, each in enumerate(segments) if at not in lost]
    if not together:
        chance.shuffle(left)
    to = assembly()
    give(to, left, together=together)
    assert taken(to) == [(BULK << 32 | 9, block)]


def test_with_one_row_too_few_a_block_is_given_up_and_those_behind_it_go_on() -> None:
    counts = counters()
    to = assembly(counts)
    blocks = {number: urandom(40_000) for number in range(3)}
    give(to, segments_of(blocks[0], 0))
    give(to, segments_of(blocks[1], 1)[1:])
    give(to, segments_of(blocks[2], 2), now=10)
    assert [key & 0xFF for key, _ in taken(to, 10)] == [0]
    assert to.due() == 10 + WAIT_NS
    assert [key & 0xFF for key, _ in taken(to, 10 + WAIT_NS)] == [2]
    give(to, segments_of(blocks[1], 1)[:1], now=11 + WAIT_NS)
    assert taken(to, 11 + WAIT_NS) == [(BULK << 32 | 1, blocks[1])], "it is late, but it is there"
    assert counts[ID["dgram.blocks_overtaken"]] == 1


@settings(deadline=None, max_examples=40)
@given(st.randoms(), st.integers(1, 4))
def test_blocks_in_any_order_with_repeats_are_delivered_once_and_in_order(chance: Random, together: int) -> None:
    to = assembly()
    blocks = {number: urandom(chance.choice([200, 1400, 3000, 30_000, 66_000])) for number in range(12)}
    segments = [each for number, block in blocks.items() for each in segments_of(block, number, m=1)]
    segments += chance.sample(segments, len(segments) // 4)
    first, rest = segments[:1], segments[1:]
    chance.shuffle(rest)
    segments = first + rest
    found = []
    for at in range(0, len(segments), together):
        give(to, segments[at : at + together])
        found += taken(to)
    assert [key & 0xFFFF for key, _ in found] == sorted(blocks)
    assert all(content == blocks[key & 0xFFFF] for key, content in found)


def test_light_blocks_wait_for_none_and_each_copy_goes_on_with_its_number() -> None:
    to = assembly()
    give(to, segments_of(b"b" * 60, 7, m=1, stream=LIGHT))
    give(to, segments_of(b"a" * 60, 5, stream=LIGHT))
    give(to, segments_of(b"c" * 3000, 9, stream=LIGHT))
    give(to, segments_of(b"d" * 3000, 8, stream=LIGHT))
    assert [key & 0xF for key, _ in taken(to)] == [7, 7, 5, 9, 8]
    give(to, segments_of(b"e" * 60, 11, m=1, stream=LIGHT)[1:])
    block = to.pop(1)
    assert isinstance(block, Single) and (block.copies, block.copy) == (1, 1)


def test_memory_is_bounded_and_the_oldest_block_goes_first() -> None:
    counts = counters()
    to = assembly(counts, limit=1)
    for number in range(600):
        give(to, segments_of(urandom(66_000), number)[:-1])
    assert to._buffers.used <= to._buffers.limit
    assert counts[ID["dgram.blocks_expired"]] > 500
    block = urandom(66_000)
    give(to, segments_of(block, 600))
    assert taken(to, now=10_000_000_000)[-1] == (BULK << 32 | 600, block)


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=24, max_size=24), st.integers(0, 1500), st.booleans(), st.randoms())
def test_any_fields_whatever_cost_a_counter_and_no_exception(
    fields: bytes, size: int, together: bool, chance: Random
) -> None:
    to = assembly(limit=1)
    block = urandom(20_000)
    segments = segments_of(block, 3, m=2)
    give(to, segments[:3])
    if together:
        rows = np.frombuffer(bytes(3 * size), np.uint8).reshape(3, size)
        columns = np.frombuffer(fields * 3, ROWS)
        to.add_rows(columns, rows, 1)
    else:
        to.add_row(np.frombuffer(fields, ROWS)[0].item(), memoryview(bytes(size)), 1)
    taken(to)
    assert to._buffers.used <= to._buffers.limit


@pytest.mark.parametrize("field", ["size", "epoch", "code", "index", "part"])
def test_a_segment_that_contradicts_its_block_costs_itself(field: str) -> None:
    counts = counters()
    to = assembly(counts)
    block = urandom(66_000)
    segments = segments_of(block, 3, m=1)
    give(to, segments[:-5])
    fields, row = unmasked(segments[-1])
    names = ["sequence", "sender", "block", "epoch", "size", "part", "code", "index"]
    wrong = list(fields)
    wrong[names.index(field)] = 200 if field in ("index", "part") else fields[names.index(field)] + 1
    to.add_row(tuple(wrong), memoryview(row), 1)
    assert counts[ID["dgram.dropped_segment_malformed"]] == 1
    give(to, segments[-5:])
    assert taken(to) == [(BULK << 32 | 3, block)]


def test_nothing_but_the_token_is_the_same_in_the_segments_of_equal_blocks() -> None:
    block = bytes(66_000)
    first, second = segments_of(block, 1), segments_of(block, 2)
    assert all(a[TOKEN_BYTES:HEADER_BYTES] != b[TOKEN_BYTES:HEADER_BYTES] for a, b in zip(first, second, strict=True))


def test_rows_have_no_block_of_another_key() -> None:
    segment = segments_of(bytes(range(60)), 1)[0]
    other = int.from_bytes(segment[TOKEN_BYTES:HEADER_BYTES], "big") ^ Mask(bytes(32), 1).of_row(segment[HEADER_BYTES:])
    assert FIELDS.unpack(other.to_bytes(24, "big"))[5] != 60


@settings(deadline=None, max_examples=40)
@given(st.integers(1445, 80_000), st.integers(0, 6), st.integers(600, 1444))
def test_a_train_gives_its_block_back(size: int, m: int, row_most: int) -> None:
    block = urandom(size)
    how = cut(size, row_most, m)
    memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
    train = Segmenter(CODEC, 7, MOST).lay_block(memory, memoryview(block), how, TOKEN, Mask(KEY, MOST), BULK, 9, 3)
    assert train.block() == block


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(1, 8), st.integers(0, 2**32 - 1), st.randoms())
def test_headers_are_written_when_segments_go_out_each_with_its_sequence(
    m: int, step: int, sequence: int, chance: Random
) -> None:
    block = urandom(30_000)
    how = cut(len(block), 1400, m)
    memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
    segmenter = Segmenter(CODEC, 7, MOST)
    train = segmenter.lay_block(memory, memoryview(block), how, TOKEN, Mask(KEY, MOST), BULK, 9, 3)
    first = chance.randrange(train.count)
    end = chance.randrange(first, train.count) + 1
    for _ in range(2):  # a segment that goes out again is a segment of its own
        segmenter.write_heads(train, first, end, sequence, step)
        for at in range(first, end):
            fields, _ = unmasked(bytes(train.rows[at]))
            assert fields[0] == (sequence + (at - first) * step) % 2**32
            assert fields[2] == BULK << 32 | 9 and fields[4] == len(block)
            assert (fields[5], fields[7]) == (at % how.parts, at // how.parts)
        sequence += 1000


@pytest.mark.parametrize("silence", [0, KEEP_NS])
def test_blocks_that_have_gone_another_way_meanwhile_are_neither_waited_for_nor_given_up(silence: int) -> None:
    counts = counters()
    to = assembly(counts)
    for number in range(2000):
        give(to, segments_of(urandom(60), number), now=1)
    assert len(taken(to)) == 2000
    block = urandom(30_000)
    give(to, segments_of(block, 2400), now=1 + silence)
    if silence:
        assert taken(to, 1 + silence) == [(BULK << 32 | 2400, block)]
        give(to, segments_of(urandom(60), 2401), now=1 + silence)
        assert len(taken(to, 1 + silence)) == 1
    else:
        assert taken(to, 1) == [], "the blocks between may be under way"
    assert counts[ID["dgram.blocks_expired"]] == 0


def test_an_old_segment_after_a_silence_begins_nothing_anew() -> None:
    counts = counters()
    to = assembly(counts)
    old = segments_of(urandom(60), 3)
    for number in range(10):
        give(to, segments_of(urandom(60), number) if number != 3 else old, now=1)
    taken(to)
    give(to, old, now=1 + KEEP_NS)
    block = urandom(60)
    give(to, segments_of(block, 10), now=1 + KEEP_NS)
    assert taken(to, 1 + KEEP_NS) == [(BULK << 32 | 10, block)]
    assert counts[ID["dgram.segments_unneeded"]] == 1
