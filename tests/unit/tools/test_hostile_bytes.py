"""What a hostile peer sends: whole frames of each kind, as cheap and as dear as they are meant to be."""

from __future__ import annotations

import pytest

from pipeline.counters import ID
from pipeline.packet import gso, ip
from pipeline.wire import block, charge, framing
from tools.load.hostile_bytes import KINDS, SEGMENTS, Target

pytestmark = pytest.mark.tools

AT = Target("10.0.0.2", "10.0.0.1", "10.0.0.3", "10.0.0.4")


def scan(stretch: bytes) -> tuple[int, int, int, int, int, int]:
    return framing.scan(memoryview(stretch), 0, len(stretch), framing.LENGTH_LIMIT)


def packets(kind: str) -> list[bytes]:
    stretch = KINDS[kind](AT)
    at, lengths = block.lengths(memoryview(stretch), 0, len(stretch))
    found = []
    for length in lengths:
        found.append(stretch[at : at + length])
        at += length
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_stretch_of_whole_frames(kind: str) -> None:
    stretch = KINDS[kind](AT)
    assert scan(stretch)[:2] == (len(stretch), 0)


@pytest.mark.parametrize("kind", ["full", "spoof", "echo", "small", "gso"])
def test_the_packets_of_blocks_are_sound(kind: str) -> None:
    for packet in packets(kind):
        drop = ip.check(memoryview(packet), 0, len(packet))
        assert drop is None, {number: name for name, number in ID.items()}[drop]


def test_a_super_packet_has_as_many_segments_as_it_says() -> None:
    (packet,) = packets("gso")
    assert len(gso.finish(packet)) == SEGMENTS


def test_hostile_kinds_are_dearer_for_their_bytes_than_an_honest_peer() -> None:
    def dearness(kind: str) -> float:
        stretch = KINDS[kind](AT)
        late = charge.SEGMENT * SEGMENTS if kind == "gso" else 0
        return (scan(stretch)[-1] + late) / len(stretch)

    assert all(dearness(kind) > 4 * dearness("full") for kind in KINDS if kind != "full")


def test_keepalives_are_nothing_else() -> None:
    _, _, frames, _, bare, _ = scan(KINDS["keep"](AT))
    assert frames == bare > 0
