"""The classes of a tun worker: which packets go into the light ring, in which blocks, and how many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.packet.flow_classifier import LIGHT_PACKET_BYTES, OVERDRAFT_BYTES
from pipeline.packet.flow_rules import RULED_BURST_BYTES, RULED_RATE
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import Port
from pipeline.shm.layout import FIRST_PEER_HANDLE, SLOT_BODY_AT
from pipeline.shm.peer_table import CLASSES, PeerTable
from pipeline.shm.slot import SLOT_BYTES_MIN, VOICE, read_header, read_marks
from pipeline.wire import block
from tests.harness.run import Run
from workers.tun.class_packer import KEPT_SHARE, ClassPacker, light_packer
from workers.tun.light_packer import LightPacker

SECOND = 1_000_000_000
EF, CS1 = 46, 8
RULES = {"always_voice": "EF", "always_light": "udp/5060", "always_bulk": "CS1"}
OTHER = 0  # a mark without a rule
BYTES = 1000


class Lane:
    """A packer, and the light ring behind it as its tcp worker sees it."""

    def __init__(self, packer: LightPacker, behind: Port, table: PeerTable) -> None:
        self.packer = packer
        self.behind = behind
        self._table = table
        self._slot = memoryview(bytearray(SLOT_BYTES_MIN))

    def offer(self, mark: int, size: int = BYTES, port: int = 9, now: int = 0, peer: int = 0) -> bool:
        head = bytes([0x45, mark << 2]) + bytes(7) + bytes([17]) + bytes(10) + port.to_bytes(2, "big") + bytes(2)
        self._slot[SLOT_BODY_AT + VNET_HEADER_BYTES : SLOT_BODY_AT + VNET_HEADER_BYTES + len(head)] = head
        return self.packer.offer(self._slot, SLOT_BODY_AT, size + VNET_HEADER_BYTES, now, FIRST_PEER_HANDLE | peer)

    def take(self) -> list[tuple[int, int, int]]:
        """Of each block that was handed on: its mark, its peer, the number of its packets."""
        self.packer.flush()
        found = []
        for ahead in range(self.behind.ready()):
            slot = self.behind.slot(ahead)
            start, length, _, peer_handle = read_header(slot)
            _, lengths = block.lengths(slot, start, start + length)
            found.append((read_marks(slot)[0], peer_handle - FIRST_PEER_HANDLE, len(list(lengths))))
        self.behind.advance(len(found))
        return found

    def counted(self, peer: int = 0) -> dict[str, int]:
        return {name: count for name, count in zip(CLASSES, self._table.class_bytes(peer), strict=True) if count}


@contextmanager
def lane(**settings: object) -> Iterator[Lane]:
    run = Run(1, 2, SLOT_BYTES_MIN)
    try:
        for peer in range(2):
            run.write_link(0, peer, established=1)
        attachment = run.attach("tun-0")
        attachment.settings = attachment.settings._replace(**settings)
        packer = light_packer(attachment, LinkView(attachment), None)
        (behind,) = run.attach("tcp-0").ports("outbound", "light")
        yield Lane(packer, behind, run.memory.peer_table)
    finally:
        run.close()


def test_without_a_rule_no_packet_is_looked_at() -> None:
    with lane() as own:
        assert type(own.packer) is LightPacker
    for settings in ({"always_bulk": "LE"}, {"class_by_dscp": True}):
        with lane(**settings) as own:
            assert type(own.packer) is ClassPacker


def test_each_class_goes_its_way_and_is_counted() -> None:
    with lane(**RULES) as own:
        assert own.offer(EF) and own.offer(OTHER) and own.offer(EF) and own.offer(OTHER, port=5060)
        assert not own.offer(CS1)
        assert own.take() == [(VOICE, 0, 2), (0, 0, 2)]
        assert own.counted() == {"voice": 2 * BYTES, "normal_light": 2 * BYTES}


def test_voice_of_each_peer_has_a_block_of_its_own() -> None:
    with lane(**RULES) as own:
        assert own.offer(EF, peer=1) and own.offer(OTHER, peer=1) and own.offer(EF, peer=0) and own.offer(EF, peer=1)
        assert own.take() == [(VOICE, 1, 2), (0, 1, 1), (VOICE, 0, 1)]


def test_a_flow_that_sends_a_lot_stays_voice_and_an_ordinary_one_does_not() -> None:
    with lane(**RULES) as own:
        sent = 2 * OVERDRAFT_BYTES // BYTES
        found = dict.fromkeys((EF, OTHER), 0)
        for number in range(sent):
            for mark in found:
                found[mark] += own.offer(mark, now=number * SECOND // 1000)
            own.take()
        assert found[EF] == sent and found[OTHER] < sent


@pytest.mark.parametrize(("mark", "port"), [(EF, 9), (OTHER, 5060)])
def test_a_rule_makes_a_limited_rate_light_and_voice_has_one_of_its_own(mark: int, port: int) -> None:
    with lane(**RULES) as own:
        light = 0
        for number in range(20_000):
            light += own.offer(mark, port=port, now=SECOND + number * SECOND // 10_000) * BYTES
            own.take()
        assert 1.9 * RULED_RATE <= light <= 2 * RULED_RATE + 3 * RULED_BURST_BYTES
        assert own.offer(OTHER if mark == EF else EF, port=5060, now=3 * SECOND)


def test_a_long_packet_is_never_light() -> None:
    with lane(**RULES) as own:
        assert not own.offer(EF, LIGHT_PACKET_BYTES + 1)


def test_voice_finds_room_in_a_ring_that_light_flows_have_filled() -> None:
    with lane(**RULES) as own:
        taken = 0
        while own.offer(OTHER, 100, port=taken % 60_000):
            own.packer.flush()
            taken += 1
        capacity = own.behind.ring.capacity
        assert taken == capacity - capacity // KEPT_SHARE
        assert not own.offer(OTHER, 100, port=5060) and own.offer(EF)


def test_a_rule_for_light_that_finds_no_slot_makes_no_other_flow_bulk() -> None:
    with lane(**{**RULES, "always_voice": ""}) as own:
        assert own.offer(OTHER, 100, port=1)
        while own.offer(OTHER, 100, port=5060):
            own.packer.flush()
        own.take()
        assert own.offer(OTHER, 100, port=1)
