"""Sealed records: what goes out comes in, whole and in place, however the bytes are cut on their way."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.sealing import frame_cut, records
from pipeline.sealing.header_seal import STRETCH_BITS, HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, HeaderSecret
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.wire import framing, notes

SECRET = HeaderSecret(bytes(range(32)))
LIMIT = framing.LENGTH_LIMIT
BOUNDARIES = [
    body
    for further in range(8)
    for unit in (frame_cut.UNIT_BYTES, frame_cut.SHORTER_UNIT_BYTES)
    for body in range((further + 1) * unit - 5 * further - 42 - 12, (further + 1) * unit - 5 * further - 42 + 12)
]
BOUNDARIES = [body for body in BOUNDARIES if body <= shard.BLOCK_BYTES_MAX]


def both(suite: int = AES_256_GCM) -> tuple[RecordWriter, RecordScanner]:
    return RecordWriter(HeaderSealer(suite, SECRET)), RecordScanner(HeaderOpener(suite, SECRET))


def run(body: bytes, number: int = 7, packets: int = 3) -> bytes:
    return shard.SEALED_RUN.pack(21 + len(body), framing.RUN, 0x0102, number, 1, 0, 0, 1, len(body), 2, packets)


def sent(writer: RecordWriter, body: bytes, number: int = 7) -> bytes:
    pieces, length = writer.pieces(0, run(body, number), body)
    assert length == sum(map(len, pieces))
    writer.started(1)
    return b"".join(pieces)


def bodies_in(view: memoryview, until: int) -> list[tuple[bytes, bytes]]:
    """Of each run in a slot, its header and its body."""
    found, at = [], 0
    while at < until:
        length, kind = framing.FRAME.unpack_from(view, at)
        if kind == framing.RUN:
            found.append((bytes(view[at : at + 25]), bytes(view[at + 25 : at + 4 + length])))
        at += 4 + length
    assert at == until
    return found


@pytest.mark.parametrize("body_bytes", sorted({17, 1000, 65584, 131072 + 2066, *BOUNDARIES}))
def test_a_frame_of_any_length_has_records_as_tls_makes_them_and_comes_back_in_place(body_bytes: int) -> None:
    writer, scanner = both()
    body = random.Random(body_bytes).randbytes(body_bytes)
    wire = sent(writer, body)
    lengths, at = [], 0
    while at < len(wire):
        kind, version, length = frame_cut.RECORD_HEADER.unpack_from(wire, at)
        assert (kind, version) == (23, 0x303) and 1 <= length <= 16401
        lengths.append(length)
        at += 5 + length
    assert at == len(wire) and len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
    view = memoryview(bytearray(wire))
    assert scanner.scan(view, 0, len(wire), 1 << 20)[:4] == (len(wire), 0, 1, 0)
    assert bodies_in(view, len(wire)) == [(run(body), body)]


@given(st.lists(st.integers(1, 40000), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_frames_are_found_however_the_stream_is_cut(sizes: list[int], rng: random.Random) -> None:
    writer, scanner = both()
    bodies = [rng.randbytes(size) for size in sizes]
    stream = b"".join(sent(writer, body, number) + writer.keepalive() for number, body in enumerate(bodies))
    buffer = memoryview(bytearray(len(stream)))
    found, begin, end = [], 0, 0
    while end < len(stream):
        step = min(rng.choice([1, 4, 5, 41, 42, 43, 5000, 100000]), len(stream) - end)
        buffer[end : end + step] = stream[end : end + step]
        end += step
        whole, after, *_ = scanner.scan(buffer, begin, end, LIMIT)
        assert not after or after > end
        found += bodies_in(buffer[begin:], whole - begin)
        begin = whole
    assert begin == end == len(stream)
    assert [body for _, body in found] == bodies


def test_a_header_that_no_socket_took_may_be_sealed_again_and_the_other_end_reads_what_was_sent() -> None:
    writer, scanner = both()
    writer.pieces(0, run(b"never sent"), b"never sent")
    wire = sent(writer, b"sent in its place")
    view = memoryview(bytearray(wire))
    scanner.scan(view, 0, len(wire), LIMIT)
    assert bodies_in(view, len(wire))[0][1] == b"sent in its place"


@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])
def test_headers_go_on_under_a_new_key_where_a_stretch_ends(suite: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sealing import header_seal

    monkeypatch.setattr(header_seal, "STRETCH_BITS", 2)
    writer, scanner = both(suite)
    for number in range(13):
        pieces = [writer.pieces(ahead, run(b"x", number + ahead), b"x") for ahead in range(3)]
        wire = b"".join(pieces[0][0])
        writer.sealer.advance(1)
        view = memoryview(bytearray(wire))
        scanner.scan(view, 0, len(wire), LIMIT)
        assert bodies_in(view, len(wire)) == [(run(b"x", number), b"x")]
    assert STRETCH_BITS == 20


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_flipped_bit_in_a_header_ends_the_connection_and_one_in_a_body_stays_in_the_body(at: int, flip: int) -> None:
    writer, scanner = both()
    body = bytes(2000)
    wire = bytearray(sent(writer, body))
    at %= len(wire)
    wire[at] ^= flip
    if at < frame_cut.FRONT_BYTES:
        with pytest.raises(PeerError):
            scanner.scan(memoryview(wire), 0, len(wire), LIMIT)
    else:
        scanner.scan(memoryview(wire), 0, len(wire), LIMIT)
        ((header, found),) = bodies_in(memoryview(wire), len(wire))
        assert header == run(body) and found[at - frame_cut.FRONT_BYTES] == flip and sum(map(bool, found)) == 1


def test_frames_that_are_repeated_dropped_or_swapped_end_the_connection() -> None:
    writer, _ = both()
    frames = [sent(writer, os.urandom(50), number) for number in range(3)]
    for order in ([0, 0], [1], [0, 2], [1, 0]):
        _, scanner = both()
        wire = b"".join(frames[number] for number in order)
        with pytest.raises(PeerError, match="does not prove"):
            scanner.scan(memoryview(bytearray(wire)), 0, len(wire), LIMIT)


def test_an_end_looks_like_that_of_tls_and_nothing_behind_it_counts() -> None:
    writer, scanner = both()
    wire = sent(writer, b"last") + writer.end() + b"rubbish"
    assert len(writer.end()) == 24  # an alert of TLS 1.3
    view = memoryview(bytearray(wire))
    whole, after, frames, _, bare, _ = scanner.scan(view, 0, len(wire), LIMIT)
    assert (whole, after, frames, bare) == (len(wire) - 7, 0, 2, 1) and scanner.ended


def test_the_news_that_the_other_end_is_about_to_stop_is_heard_and_frames_go_on_behind_it() -> None:
    writer, scanner = both()
    wire = sent(writer, b"first") + writer.goaway() + sent(writer, b"last")
    view = memoryview(bytearray(wire))
    whole, after, frames, _, bare, _ = scanner.scan(view, 0, len(wire), LIMIT)
    assert (whole, after, frames, bare) == (len(wire), 0, 3, 1) and scanner.leaving and not scanner.ended
    assert [body for _, body in bodies_in(view, whole)] == [b"first", b"last"]


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_an_error_of_the_peer(data: bytes) -> None:
    _, scanner = both()
    try:
        whole, *_ = scanner.scan(memoryview(bytearray(data)), 0, len(data), LIMIT)
    except PeerError:
        return
    assert whole == 0 and len(data) < 42


IMPOSSIBLE = {  # n, m, first, count, size of the sealed block
    "no data shards": (0, 1, 0, 1, 100),
    "too many data shards": (38, 0, 0, 1, 100),
    "too many parity shards": (10, 7, 0, 1, 100),
    "no shard": (10, 3, 0, 0, 13000),
    "shards behind the last": (10, 3, 9, 5, 13000),
    "no block": (1, 0, 0, 1, 0),
    "a block that is too long": (1, 0, 0, 1, shard.BLOCK_BYTES_MAX + 1),
    "a body above the limit": (37, 6, 0, 43, shard.BLOCK_BYTES_MAX),
}


@pytest.mark.parametrize(("n", "m", "first", "count", "size"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_run_ends_the_connection_before_a_byte_of_its_body_is_awaited(
    n: int, m: int, first: int, count: int, size: int
) -> None:
    writer, scanner = both()
    header = frame_cut.HEADER.pack(framing.RUN, 0x301, 7, n, m, first, count, size, 0, 0)
    wire = bytearray(writer.control(header))
    wire[3:5] = (16401).to_bytes(2, "big")
    with pytest.raises(PeerError, match="run of"):
        scanner.scan(memoryview(wire), 0, len(wire), LIMIT)


def test_the_greatest_sealed_block_is_a_frame_that_the_next_stages_take() -> None:
    writer, scanner = both()
    body = bytes(shard.BLOCK_BYTES_MAX)
    wire = sent(writer, body)
    view = memoryview(bytearray(wire))
    scanner.scan(view, 0, len(wire), LIMIT)
    assert framing.scan(view, 0, len(wire), LIMIT)[0] == len(wire)
    assert bodies_in(view, len(wire)) == [(run(body), body)]


@pytest.mark.parametrize("change", [-1, 1, 16, -300])
def test_a_record_of_another_length_than_its_frame_has_ends_the_connection(change: int) -> None:
    for at, body in ((3, b"x" * 1000), (frame_cut.UNIT_BYTES + 3, b"x" * 20000)):
        writer, scanner = both()
        wire = bytearray(sent(writer, body))
        wire[at : at + 2] = (int.from_bytes(wire[at : at + 2], "big") + change).to_bytes(2, "big")
        with pytest.raises(PeerError):
            scanner.scan(memoryview(wire), 0, len(wire), LIMIT)


@pytest.mark.parametrize("size", [24, 300, notes.NOTE_BYTES_MAX])
def test_a_note_comes_out_whole_and_frames_go_on_behind_it(size: int) -> None:
    writer, scanner = both()
    note = bytes(range(256)) * 4
    wire = sent(writer, b"first") + writer.note(note[:size]) + sent(writer, b"last")
    for end in range(len(wire)):
        assert scanner.scan(memoryview(bytearray(wire)), 0, 0, LIMIT)[0] == 0, end
    view = memoryview(bytearray(wire))
    whole, after, frames, _, bare, _ = scanner.scan(view, 0, len(wire), LIMIT)
    assert (whole, after, frames, bare) == (len(wire), 0, 3, 1) and scanner.notes == [note[:size]]
    assert [body for _, body in bodies_in(view, whole)] == [b"first", b"last"]


def test_a_note_that_is_too_long_ends_the_connection_and_notes_that_nobody_takes_are_few() -> None:
    writer, scanner = both()
    wire = b"".join(writer.note(b"n" * 30) for _ in range(20))
    scanner.scan(memoryview(bytearray(wire)), 0, len(wire), LIMIT)
    assert len(scanner.notes) == records.NOTES_WAITING
    wire = writer.note(bytes(notes.NOTE_BYTES_MAX + 1))
    with pytest.raises(PeerError, match="note of"):
        scanner.scan(memoryview(bytearray(wire)), 0, len(wire), LIMIT)
