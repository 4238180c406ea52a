"""The reference sends and understands the datagrams of docs/wire.md."""

from __future__ import annotations

import random

import pytest

from tests.harness.wire_document import named_example
from tests.reference import datagrams, key_schedule, sealed_blocks
from tests.reference.blocks import RUN, Violation
from tests.reference.datagrams import (
    Answer,
    Arrivals,
    ControlSeal,
    Counts,
    Incomplete,
    Probe,
    Report,
    Segment,
    Segments,
)
from tests.reference.key_schedule import AES_256_GCM, TO_CLIENT, TO_SERVER, DatagramKeys
from tests.reference.packets import echo_request
from tests.reference.records import Header

EXAMPLE = named_example()
PROCESS, SERVER_PROCESS = 3, 5


def keys_of(direction: str) -> DatagramKeys:
    return key_schedule.datagram_keys(EXAMPLE["root"], EXAMPLE["context"], direction)


THERE, BACK = keys_of(TO_SERVER), keys_of(TO_CLIENT)
BODIES = {
    "probe": (THERE, PROCESS, 0, Probe(0x0123456789ABCDEF, 1_000_000, 0)),
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


def test_its_keys_are_those_of_the_document() -> None:
    for keys, end, process in ((THERE, "", PROCESS), (BACK, " back", SERVER_PROCESS)):
        assert keys.secret == EXAMPLE[f"datagrams{end}"]
        assert keys.control_token == EXAMPLE[f"control{end}" if end else "control token"]
        assert keys.mask_key == EXAMPLE[f"mask key{end}"]
        assert keys.control_key(process << 12) == EXAMPLE[f"control key{end}"]
    assert THERE.data_token == EXAMPLE["data token"]


def test_its_segment_of_one_row_is_that_of_the_document() -> None:
    sealed = EXAMPLE["sealed block"]
    header = Header(RUN, PROCESS << 8 | 1, 7, 1, 0, 0, 1, len(sealed), 0)
    (made,) = datagrams.segments_of(header, sealed, 1, 0)
    segment = made._replace(sequence=5, sender=PROCESS)
    assert datagrams.FIELDS.pack(*segment[:-1]) == EXAMPLE["fields"]
    assert datagrams.mask_of(THERE.mask_key, sealed[:32])[:24] == EXAMPLE["mask"]
    assert datagrams.pack_segment(THERE, segment) == EXAMPLE["segment"]
    assert datagrams.read_segment(THERE, EXAMPLE["segment"]) == segment
    assert Segments().add(segment) == (header, sealed)


def test_its_segments_of_several_rows_are_those_of_the_document() -> None:
    plain = sealed_blocks.plaintext([echo_request("10.0.0.2", "10.0.0.1", 2, bytes(range(64)))], 0)
    assert plain == EXAMPLE["bulk plaintext"]
    nonce = PROCESS << 8, 0, 0
    assert sealed_blocks.NONCE.pack(*nonce) == EXAMPLE["bulk nonce"]
    sealed = sealed_blocks.seal(AES_256_GCM, EXAMPLE["block key 0"], nonce, plain)
    assert sealed == EXAMPLE["bulk block"]
    header = Header(RUN, PROCESS << 8, 0, 1, 0, 0, 1, len(sealed), 0)
    made = [
        each._replace(sequence=6 + number, sender=PROCESS)
        for number, each in enumerate(datagrams.segments_of(header, sealed, 2, 1, 0, EXAMPLE["bulk padding"]))
    ]
    for number, segment in enumerate(made):
        assert datagrams.FIELDS.pack(*segment[:-1]) == EXAMPLE[f"fields {number}"]
        assert datagrams.pack_segment(THERE, segment) == EXAMPLE[f"segment {number}"]
    for lost in range(3):
        there = Segments()
        found = [
            there.add(datagrams.read_segment(THERE, EXAMPLE[f"segment {number}"]))
            for number in range(3)
            if number != lost
        ]
        assert found == [None, (header, sealed)]
        assert there.recovered == (lost < 2)


@pytest.mark.parametrize("name", BODIES)
def test_its_control_datagrams_are_those_of_the_document(name: str) -> None:
    keys, process, number, body = BODIES[name]
    packed, sealer = datagrams.pack(body), ControlSeal(AES_256_GCM, keys)
    assert packed == EXAMPLE[name]
    assert sealer.seal(process, 0, number, packed) == EXAMPLE[f"{name} datagram"]
    count = int.from_bytes(EXAMPLE[f"{name} count"], "big")
    assert sealer.open(EXAMPLE[f"{name} datagram"]) == (count, packed)
    parsed = datagrams.parse(packed)
    assert parsed == (body._replace(size=len(packed)) if isinstance(body, Probe) else body)


def test_it_finds_a_control_datagram_that_comes_twice_or_is_forged() -> None:
    datagram = EXAMPLE["probe datagram"]
    opener = ControlSeal(AES_256_GCM, THERE)
    opener.open(datagram)
    for bad in (datagram, datagram[:-1] + bytes([datagram[-1] ^ 1]), EXAMPLE["answer datagram"]):
        with pytest.raises(Violation):
            opener.open(bad)


def test_it_finds_segments_that_break_the_rules() -> None:
    good = datagrams.read_segment(THERE, EXAMPLE["segment 0"])
    changes = {"n": 0, "m": 7, "row_index": 3, "codeword": 1, "row": good.row[:-8]}
    for name, value in changes.items():
        bad = good._replace(**{name: value})
        with pytest.raises(Violation):
            datagrams.read_segment(THERE, datagrams.pack_segment(THERE, bad))
    there = Segments()
    there.add(good)
    with pytest.raises(Violation):
        there.add(good._replace(row_index=1, epoch=1))


def test_any_n_rows_of_each_codeword_give_the_block() -> None:
    draw = random.Random(3)
    for n, m, row_bytes, size in ((2, 6, 80, 700), (5, 2, 160, 1599), (13, 6, 144, 2000), (37, 6, 288, 20_000)):
        sealed = draw.randbytes(size)
        header = Header(RUN, 0x100, 1, 1, 0, 0, 1, size, 0)
        made: list[Segment] = datagrams.segments_of(header, sealed, n, m, row_bytes)
        draw.shuffle(made)
        there, came = Segments(), {}
        found = []
        for each in made:
            if len(came.setdefault(each.codeword, [])) < n:
                came[each.codeword].append(each)
                found.append(there.add(each))
        assert [each for each in found if each] == [(header, sealed)] and found[-1]
