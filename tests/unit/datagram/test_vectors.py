"""The datagrams of docs/wire.md, byte by byte, are those of the program: what it sends, and what it takes."""

from __future__ import annotations

import pytest

from pipeline.datagram import segmenter
from pipeline.datagram.assembly import Assembly
from pipeline.datagram.cut import Cut, cut
from pipeline.datagram.segment import FIELD_BYTES, FIELDS, HEADER_BYTES, TOKEN_BYTES, Mask
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.sealing.datagram_seal import ControlOpener, ControlSealer, ControlWindows
from pipeline.sealing.key_schedule import AES_256_GCM, CLIENT_TO_SERVER, SERVER_TO_CLIENT, DatagramSecret
from pipeline.wire import control_datagram
from pipeline.wire.control_datagram import Answer, Arrivals, Counts, Incomplete, Probe, Report
from tests.harness.wire_document import named_example

EXAMPLE = named_example()
PROCESS, SERVER_PROCESS = 3, 5
THERE, BACK = (
    DatagramSecret.of(EXAMPLE["header root"], direction) for direction in (CLIENT_TO_SERVER, SERVER_TO_CLIENT)
)
BODIES = {
    "probe": (THERE, PROCESS, 0, Probe(0x0123456789ABCDEF, 1_000_000)),
    "answer": (BACK, SERVER_PROCESS, 0, Answer(0x0123456789ABCDEF, 1_000_000, 42)),
    "report": (
        THERE,
        PROCESS,
        1,
        Report(
            Counts(SERVER_PROCESS, 100, 250, 97, 0, 0, 4, 1, 0),
            (Arrivals(0x500, 40, bytes([0b101])),),
            (Incomplete(0, 40, 0, 1 << 1),),
        ),
    ),
}


def packed(body: Probe | Answer | Report) -> bytes:
    match body:
        case Probe():
            return control_datagram.pack_probe(body, 0)
        case Answer():
            return control_datagram.pack_answer(body)
    return control_datagram.pack_report(body)


def blocks_of(*datagrams: bytes) -> list[bytes]:
    """The sealed blocks that these segments complete, behind the headers that they have in a slot."""
    assembly, mask = Assembly(Codec(), memoryview(bytearray(8 * 320)).cast("Q"), 1 << 20, 1), Mask(THERE.mask_key(), 1)
    for datagram in datagrams:
        row = memoryview(datagram)[HEADER_BYTES:]
        fields = int.from_bytes(datagram[TOKEN_BYTES:HEADER_BYTES], "big") ^ mask.of_row(row)
        sequence, sender, stream, number, epoch, size, part, n, m, index = FIELDS.unpack(
            fields.to_bytes(FIELD_BYTES, "big")
        )
        assembly.add_row((sequence, sender, stream << 32 | number, epoch, size, part, n << 8 | m, index), row, 1)
    found, room = [], memoryview(bytearray(4096))
    while (block := assembly.pop(1)) is not None:
        end = assembly.write(block, room, 0)
        found.append(bytes(room[shard.RUN_BYTES : end]))
    return found


def test_the_keys_are_those_of_the_document() -> None:
    for secret, end, process in ((THERE, "", PROCESS), (BACK, " back", SERVER_PROCESS)):
        assert secret.secret == EXAMPLE[f"datagrams{end}"]
        assert secret.control_token().to_bytes(4, "big") == EXAMPLE[f"control{end}" if end else "control token"]
        assert secret.mask_key() == EXAMPLE[f"mask key{end}"]
        assert secret.control_key(process << 12) == EXAMPLE[f"control key{end}"]
    assert THERE.data_token().to_bytes(4, "big") == EXAMPLE["data token"]


def test_the_segment_of_one_row_is_that_of_the_document() -> None:
    row, mask = memoryview(EXAMPLE["sealed block"]), Mask(THERE.mask_key(), 1)
    token, stream = THERE.data_token(), PROCESS << 8 | 1
    head = Segmenter(Codec(), PROCESS, 1).head_of_row(row, token, mask, 5, stream, 7, 0)
    assert head + row == EXAMPLE["segment"]
    assert blocks_of(EXAMPLE["segment"]) == [row]


def test_the_segments_of_several_rows_are_those_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter, "urandom", lambda size: EXAMPLE["bulk padding"][:size])
    sealed = EXAMPLE["bulk block"]
    made = cut(len(sealed), 80, 1)
    assert made == Cut(1, 2, 1, 80)
    memory = memoryview(bytearray(made.segments * (HEADER_BYTES + made.row_bytes)))
    train = Segmenter(Codec(), PROCESS, made.segments).cut_block(
        memory, memoryview(sealed), made, THERE.data_token(), Mask(THERE.mask_key(), 3), 6, PROCESS << 8, 0, 0
    )
    segments = [EXAMPLE[f"segment {number}"] for number in range(made.segments)]
    assert [bytes(each) for each in train.rows] == segments
    for lost in range(made.segments):
        assert blocks_of(*segments[:lost], *segments[lost + 1 :]) == [sealed]


@pytest.mark.parametrize("name", BODIES)
def test_control_datagrams_are_those_of_the_document(name: str) -> None:
    secret, process, number, body = BODIES[name]
    assert packed(body) == EXAMPLE[name]
    room = memoryview(bytearray(2000))
    sealer = ControlSealer(AES_256_GCM, secret, process, 0)
    for _ in range(number + 1):
        size = sealer.seal(packed(body), room)
    datagram = bytes(room[:size])
    assert datagram == EXAMPLE[f"{name} datagram"]
    opener = ControlOpener(AES_256_GCM, secret, ControlWindows(memoryview(bytearray(ControlWindows.BYTES))))
    size = opener.open(memoryview(datagram), room)
    assert control_datagram.parse(room[:size]) == body
    assert opener.count == int.from_bytes(EXAMPLE[f"{name} count"], "big")
