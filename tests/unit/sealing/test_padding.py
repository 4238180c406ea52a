"""Padding: which frames get it, how much, and what the other end makes of it, also of a hostile sender's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.sealing import frame_cut, padding
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, HeaderSecret
from pipeline.sealing.padding import PADDED_FRAME_MOST, SIZES, PaddingSource
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.wire import charge, framing
from tests.unit.sealing.test_records import bodies_in, run, sent

SECRET = HeaderSecret(bytes(range(32)))
LIMIT = framing.LENGTH_LIMIT
FRONT = frame_cut.FRONT_BYTES
LONGEST = SIZES[-1] - FRONT  # of a body that is padded


def both() -> tuple[RecordWriter, RecordScanner]:
    return (
        RecordWriter(HeaderSealer(AES_256_GCM, SECRET), PaddingSource()),
        RecordScanner(HeaderOpener(AES_256_GCM, SECRET)),
    )


def scan(scanner: RecordScanner, wire: bytes) -> tuple[memoryview, tuple[int, ...]]:
    view = memoryview(bytearray(wire))
    return view, scanner.scan(view, 0, len(wire), LIMIT)


def record_with(padding_bytes: int, body: bytes, told: int, kind: int = framing.RUN) -> bytes:
    """A frame whose header tells of so much padding, whatever it has. A hostile end can seal it."""
    header = frame_cut.HEADER.pack(kind, 0x102, 7, 1, 0, 0, 1, told << 18 | len(body), 2, 3)
    sealed = HeaderSealer(AES_256_GCM, SECRET).seal(0, header)
    rest = sealed + bytes(padding_bytes) + body
    return frame_cut.RECORD_HEADER.pack(23, 0x303, len(rest)) + rest


# -- what goes out


@pytest.mark.parametrize("body_bytes", range(1, SIZES[-1] + 400))
def test_a_small_frame_has_one_of_the_sizes_and_any_other_its_own(body_bytes: int) -> None:
    writer, _ = both()
    bare = FRONT + body_bytes
    size = len(sent(writer, bytes(body_bytes)))
    assert size == (min(each for each in SIZES if each >= bare) if bare <= SIZES[-1] else bare)


@pytest.mark.parametrize("body_bytes", [shard.BLOCK_BYTES_MAX, 65584, 16400, LONGEST + 1])
def test_a_large_frame_has_the_bytes_that_it_has_without_padding(body_bytes: int) -> None:
    plain, (padded, _) = RecordWriter(HeaderSealer(AES_256_GCM, SECRET)), both()
    body = random.Random(1).randbytes(body_bytes)
    assert sent(padded, body) == sent(plain, body)
    assert padded.padding_bytes == 0


def test_a_frame_with_padding_is_one_segment_of_any_path_and_no_longer_than_any_end_takes() -> None:
    web_socket, tls = 8, 5 + 1 + 16  # a masked frame, a record around it
    assert max(SIZES) + web_socket + tls <= 1280 - 40 - 20 - 12  # headers of IPv6 and TCP, time stamps
    assert max(SIZES) <= PADDED_FRAME_MOST
    assert list(SIZES) == sorted(SIZES)


@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])
def test_both_suites_pad(suite: int) -> None:
    writer = RecordWriter(HeaderSealer(suite, SECRET), PaddingSource())
    scanner = RecordScanner(HeaderOpener(suite, SECRET))
    wire = sent(writer, b"body")
    view, _ = scan(scanner, wire)
    assert len(wire) == SIZES[0] and bodies_in(view, len(wire)) == [(run(b"body"), b"body")]


def test_without_a_source_of_padding_no_frame_has_any() -> None:
    writer = RecordWriter(HeaderSealer(AES_256_GCM, SECRET))
    assert [len(sent(writer, bytes(size))) for size in range(1, 500)] == [FRONT + size for size in range(1, 500)]
    assert len(writer.keepalive()) == FRONT


def test_frames_without_a_body_look_like_small_ones_but_an_end_like_that_of_tls() -> None:
    writer, scanner = both()
    wires = [writer.keepalive(), writer.question(), writer.goaway()]
    assert {len(wire) for wire in wires} == {SIZES[0]}
    _, (_, _, frames, _, bare, _) = scan(scanner, b"".join(wires))
    assert (frames, bare) == (3, 3) and scanner.asked and scanner.leaving
    assert len(writer.end()) == 24


def test_padding_is_random_and_goes_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "_POOL_BYTES", 2048)  # so that many pools are used up
    writer, _ = both()
    parts = [sent(writer, b"the same body", number)[FRONT : SIZES[0] - 13] for number in range(200)]
    pieces = {part[at : at + 8] for part in parts for at in range(0, len(part) - 8, 8)}
    assert len(pieces) == sum(len(range(0, len(part) - 8, 8)) for part in parts)


def test_what_counts_as_padding_is_that_of_frames_of_which_a_byte_is_gone() -> None:
    writer, _ = both()
    for ahead, size in enumerate((100, 2000, 500)):
        writer.pieces(ahead, run(bytes(size)), bytes(size))
    writer.started(2)
    assert writer.padding_bytes == SIZES[0] - FRONT - 100
    writer.pieces(0, run(bytes(500)), bytes(500))
    writer.pieces(1, run(bytes(9)), bytes(9))
    writer.started(1)
    assert writer.padding_bytes == SIZES[0] - FRONT - 100 + SIZES[1] - FRONT - 500
    assert writer.take_padding(50) == 50 and writer.take_padding(1 << 20) == 166 and writer.take_padding(9) == 0


# -- what comes in


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_bodies_come_out_as_they_were_however_the_stream_is_cut(sizes: list[int], rng: random.Random) -> None:
    writer, scanner = both()
    bodies = [rng.randbytes(size) for size in sizes]
    stream = b"".join(sent(writer, body, number) + writer.keepalive() for number, body in enumerate(bodies))
    buffer = memoryview(bytearray(len(stream)))
    found, begin, end = [], 0, 0
    while end < len(stream):
        step = min(rng.choice([1, 41, 42, 43, 299, 300, 301, 5000]), len(stream) - end)
        buffer[end : end + step] = stream[end : end + step]
        end += step
        whole, *_ = scanner.scan(buffer, begin, end, LIMIT)
        found += bodies_in(buffer[begin:], whole - begin)
        begin = whole
    assert begin == len(stream)
    assert found == [(run(body, number), body) for number, body in enumerate(bodies)]
    assert scanner.padding_bytes == len(stream) - sum(FRONT + size for size in sizes) - FRONT * len(sizes)


def test_the_first_frame_of_a_slot_begins_behind_its_padding_and_its_charge_is_that_of_any_frame() -> None:
    writer, scanner = both()
    wire = sent(writer, b"x" * 20)
    view, (_, _, frames, runs, bare, charged) = scan(scanner, wire)
    assert (frames, runs, bare) == (1, 0, 0) and charged == charge.FRAME + charge.RECORD + 3 * charge.PACKET
    assert view[scanner.begin + 4] == framing.RUN and scanner.begin == len(wire) - 20 - 25


def test_an_older_end_would_close_the_connection_so_it_must_not_get_padding() -> None:
    """Its scanner takes the field for the size of a block."""
    wire = record_with(200, bytes(50), told=200)
    field = frame_cut.HEADER.unpack(HeaderOpener(AES_256_GCM, SECRET).open(memoryview(wire)[5:42]))[7]
    assert field > shard.BLOCK_BYTES_MAX


HOSTILE = {
    "more than a frame may have": record_with(1500 - FRONT - 50 + 1, bytes(50), told=1500 - FRONT - 50 + 1),
    "the most that the field holds": record_with(16383, bytes(50), told=16383),
    "with a frame of several records": record_with(100, bytes(20000), told=100),
    "less than the header says": record_with(99, bytes(50), told=100),
    "more than the header says": record_with(101, bytes(50), told=100),
    "none, and the header tells of some": record_with(0, bytes(50), told=100),
    "some, and the header tells of none": record_with(100, bytes(50), told=0),
    "too much behind no body": record_with(1500 - FRONT + 1, b"", told=1500 - FRONT + 1, kind=framing.KEEPALIVE),
    "too much in a frame of an unknown type": record_with(9000, b"", told=9000, kind=0x66),
}


@pytest.mark.parametrize("wire", HOSTILE.values(), ids=HOSTILE.keys())
def test_padding_that_no_honest_end_sends_ends_the_connection(wire: bytes) -> None:
    _, scanner = both()
    with pytest.raises(PeerError):
        scan(scanner, wire)
    assert scanner.padding_bytes == 0


@pytest.mark.parametrize("kind", [framing.KEEPALIVE, 0x66])
def test_the_most_padding_is_taken_in_frames_of_any_type(kind: int) -> None:
    _, scanner = both()
    most = PADDED_FRAME_MOST - FRONT
    _, (whole, _, frames, _, bare, _) = scan(scanner, record_with(most, b"", told=most, kind=kind))
    assert (whole, frames, bare) == (PADDED_FRAME_MOST, 1, kind == framing.KEEPALIVE)
    assert scanner.take_padding(1 << 20) == most


@given(st.integers(0, 16383), st.integers(0, (1 << 18) - 1))
def test_the_field_holds_any_padding_and_any_block(padding_bytes: int, block: int) -> None:
    header = frame_cut.HEADER.pack(framing.RUN, 0x102, 7, 3, 2, 1, 1, block, 9, 0)
    fields = frame_cut.HEADER.unpack(padding.marked(header, padding_bytes))
    assert padding.split(fields[7]) == (padding_bytes, block)
    assert fields[:7] + fields[8:] == frame_cut.HEADER.unpack(header)[:7] + (9, 0)
