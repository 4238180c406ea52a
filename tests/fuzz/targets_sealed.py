"""Targets of sealed connections: their records, the blocks in them, and the key shares that they begin with.

The other end may be hostile, and it has the keys: so the inputs are sealed here, and reach what is behind a good tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.sealing import kinds
from pipeline.sealing.aead import aead
from pipeline.sealing.block_seal import BlockSealer
from pipeline.sealing.frame_cut import HEADER, HEADER_BYTES, RECORD_HEADER, SEALED_HEADER_BYTES, cut
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, HeaderSecret
from pipeline.sealing.padding import PADDED_FRAME_MOST, marked, split
from pipeline.sealing.records import KEEPALIVE_HEADER, RecordScanner
from pipeline.sealing.session import NO_HASH, KeyShare, Offer, answer_key_share, answer_offer
from pipeline.wire import block, framing
from tests.fuzz.byte_source import ByteSource
from tests.fuzz.fuzzer import Feed
from tests.harness.sealed_lane import Lane, block_keys, handle, key
from tests.reference.packets import echo_request

SECRET = HeaderSecret(bytes(range(32)))
BODY_MOST = 40_000
IN_SLOTS = {framing.PADDING, framing.RUN, framing.UNKNOWN}
AS_MADE, ANOTHER_LENGTH, RAW, END, SPOILT_RECORD = range(5)
"""Parts of an input: a frame as an honest end makes it of this header; one whose record says another length; bytes; an
alert, sealed; a frame whose further records say another length."""


# -- records


def stream_of(data: bytes) -> bytes:
    """The bytes on the wire that an input stands for."""
    source, sealer, wire = ByteSource(data), HeaderSealer(AES_256_GCM, SECRET), b""
    while source:
        part = source.number() % 5
        if part == RAW:
            wire += source.piece(source.number())
            continue
        plaintext = source.piece(3 if part == END else HEADER_BYTES).ljust(3 if part == END else HEADER_BYTES, b"\0")
        sealed = sealer.seal(0, plaintext)
        sealer.advance(1)
        if part == END:
            wire += RECORD_HEADER.pack(23, 0x303, len(sealed)) + sealed
            continue
        kind, _, _, n, m, _, count, field, _, _ = HEADER.unpack(plaintext)
        padding, size = split(field)
        body = count * shard.shard_bytes(size, n, m) if kind == framing.RUN else 0
        plan = cut(min(body, BODY_MOST))
        padding = 0 if plan.further or plan.wire_bytes + padding > PADDED_FRAME_MOST else padding
        length = source.number(2) if part == ANOTHER_LENGTH else plan.record_bytes(0) + padding
        frame = bytearray(RECORD_HEADER.pack(23, 0x303, length) + sealed).ljust(plan.wire_bytes + padding, b"\x17")
        for record in range(1, plan.further + 1):
            RECORD_HEADER.pack_into(
                frame, record * plan.unit, 23, 0x303, plan.record_bytes(record) - (part == SPOILT_RECORD)
            )
        wire += frame
    return wire


def scanned(wire: bytes, step: int) -> tuple[bytes, int, bool]:
    """The slot, the end of its whole frames, and whether the peer was found guilty, of bytes that come in steps."""
    scanner = RecordScanner(HeaderOpener(AES_256_GCM, SECRET))
    guard = 7
    slot = memoryview(bytearray(guard + len(wire) + guard))
    at = end = guard
    while end < guard + len(wire):
        size = min(step, guard + len(wire) - end)
        slot[end : end + size] = wire[end - guard : end - guard + size]
        end += size
        try:
            whole, after, frames, runs, bare, charged = scanner.scan(slot, at, end, framing.LENGTH_LIMIT)
        except PeerError:
            return b"", 0, True  # what came whole with it is lost as well
        assert at <= whole <= end and (not after or after > end) and 0 <= runs + bare <= frames and charged >= 0
        _check_frames(slot, at, whole)
        at = whole
    assert not any(slot[:guard]) and not any(slot[guard + len(wire) :])
    return bytes(slot[guard:at]), at, False


def _check_frames(slot: memoryview, at: int, end: int) -> None:
    while at < end:
        length, kind = framing.FRAME.unpack_from(slot, at)
        assert kind in IN_SLOTS
        if kind == framing.RUN:
            _, _, _, _, n, m, first, count, size, _, _ = shard.SEALED_RUN.unpack_from(slot, at)
            assert length == shard.RUN_BYTES - 4 + count * shard.shard_bytes(size, n, m)
            assert 0 < count <= n + m - first and length <= framing.LENGTH_LIMIT + shard.RUN_BYTES
        at += 4 + length
    assert at == end


def sealed_records(data: bytes) -> None:
    """A byte that says in which steps they come, and parts. Whole frames of a slot come out, however they are cut."""
    wire = stream_of(data[1:])
    at_once = scanned(wire, len(wire) or 1)
    assert scanned(wire, 1 + (data[0] if data else 0)) == at_once


def header(n: int = 1, m: int = 0, count: int = 1, size: int = 100, first: int = 0, kind: int = framing.RUN) -> bytes:
    return HEADER.pack(kind, 0x301, 7, n, m, first, count, size, 1, 1 if n == 1 and not m else 0)


def sealed_records_seeds() -> list[bytes]:
    frames = [
        header(),
        header(10, 3, 5, 13000),
        header(1, 2, 1, 60, 1),
        header(size=30_000),
        header(size=16_364),
        header(n=12, m=6, count=2),
        header(first=2),
        header(count=0),
        header(kind=0x55),
        KEEPALIVE_HEADER,
        marked(header(), 200),
        marked(header(size=1), PADDED_FRAME_MOST - 43),
        marked(header(size=1), PADDED_FRAME_MOST - 42),
        marked(header(10, 3, 1, 2000), 60),
        marked(header(size=20_000), 1),
        marked(KEEPALIVE_HEADER, 258),
        marked(header(kind=0x55), 16383),
    ]
    parts = [bytes([AS_MADE]) + each for each in frames]
    good = b"\x40" + b"".join(parts[:4]) + parts[9] + parts[8] + bytes([END]) + b"\1\0\x15" + parts[0]
    return [
        good,
        b"\x07" + b"".join((parts[10], parts[0], parts[15], parts[11])),
        *(b"\x05" + each for each in parts),
        b"\xff" + bytes([SPOILT_RECORD]) + header(size=30_000),
        b"\x90" + bytes([ANOTHER_LENGTH]) + header() + b"\0\x30",
        b"\0" + bytes([RAW, 5]) + RECORD_HEADER.pack(23, 0x303, SEALED_HEADER_BYTES),
        b"\0" + bytes([RAW, 5]) + RECORD_HEADER.pack(21, 0x303, 19),
        b"\0" + bytes([END]) + b"\2\0\x15",
        b"\0" + bytes([RAW, 60]) + RECORD_HEADER.pack(23, 0x303, 60) + bytes(55),
    ]


# -- blocks


@contextmanager
def sealed_block() -> Iterator[Feed]:
    """Two bytes of flags, a run header, and a plaintext, sealed with a genuine key. A block of packets, or nothing."""
    with closing(Lane()) as lane:
        lane.keys.write(block_keys(handle(1), key(1)))
        sealer = BlockSealer(aead(AES_256_GCM, key(1)))

        def take(data: bytes) -> None:
            source = ByteSource(data)
            is_sealed = source.number() % 2 == 0
            stream, number, copy, epoch = source.number(4), source.number(4), source.number(), source.number() % 3
            content = source.rest()
            opening = lane.opening()
            if is_sealed:
                into = memoryview(bytearray(len(content) + 16))
                sealer.seal(stream, number, copy, memoryview(content), into)
            else:
                into = memoryview(bytearray(content))
            run = shard.SEALED_RUN.pack(
                21 + len(into), framing.RUN, stream, number, 1, 0, copy, 1, len(into), epoch, 1
            ) + bytes(into)
            before = opening._windows.may_open(handle(1), stream, number)
            size = opening.open(memoryview(run), 0, len(run), handle(1))
            assert (size >= 0) == (is_sealed and epoch == 0 and before)
            if size < 0:
                return
            assert opening.plaintext[:size] == content
            assert not opening._windows.may_open(handle(1), stream, number)
            assert opening.open(memoryview(run), 0, len(run), handle(1)) < 0
            with suppress(PeerError):
                first, lengths = block.table_lengths(opening.plaintext, block.EPOCH_BYTES, size)
                assert block.EPOCH_BYTES < first <= size and first + sum(lengths) == size
            lane.windows[:] = bytes(len(lane.windows)) if number & 15 == 15 else lane.windows

        yield take


def sealed_block_seeds() -> list[bytes]:
    packet = bytes(10) + echo_request("10.0.0.2", "10.0.0.1", 7)
    front = b"\0" + (1 << 8 | kinds.LIGHT).to_bytes(4, "big")
    contents = [
        b"\0\0" + len(packets).to_bytes(2, "big") + b"".join(len(each).to_bytes(4, "big") for each in packets)
        + b"".join(packets)
        for packets in ([], [packet], [packet] * 3)
    ]  # fmt: skip
    return [
        *(front + turn.to_bytes(4, "big") + b"\0\0" + each for turn, each in enumerate(contents)),
        front + b"\0\0\0\x09\1\1" + contents[1],
        front + b"\xff\xff\xff\xff\0\0" + b"\0",
        b"\1" + front[1:] + bytes(6) + bytes(40),
        b"\0" + bytes(10),
    ]


# -- key shares


def key_share(data: bytes) -> None:
    """The bytes of the extension, from a client and from a server. What is taken is packed as it was, or is refused."""
    offered = KeyShare.of_client(data)
    if offered is not None:
        assert offered.pack() == data
        session = answer_offer(offered, AES_256_GCM, b"k", 1, 2)  # PeerError for a key share of no use
        assert len(answer_key_share(session, b"").pack()) == 97
    answer = KeyShare.of_server(data)
    if answer is not None:
        assert answer.pack() == data
        Offer(AES_256_GCM).take_answer(answer, b"k", 1, 2)


def key_share_seeds() -> list[bytes]:
    public = Offer(AES_256_GCM).key_share.public
    one = KeyShare(1, (9).to_bytes(32, "little"))
    return [
        one.pack(),
        KeyShare(2, bytes(32)).pack(),
        KeyShare(77, (1).to_bytes(32, "little")).pack(),
        KeyShare(2, one.public, bytes(32), NO_HASH).pack(),
        KeyShare(1, bytes(32), b"n" * 32, b"h" * 32).pack(),
        KeyShare(9, one.public, bytes(32), NO_HASH).pack(),
        b"",
        one.pack()[: len(public)],
    ]
