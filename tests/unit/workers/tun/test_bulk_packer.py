"""The packer of a lane: whichever way bursts take, each packet is in one block, in order, and so are owed blocks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.packet.route_table import DEFAULT_ROUTES
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.token_bucket import BURST_LEAST
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import CLASSES
from pipeline.shm.slot import SLOT_BYTES_MIN, read_header
from pipeline.wire import block
from tests.harness.run import OFFLOADS, Run
from tests.support import eventually
from workers.tun.bulk_packer import BulkPacker
from workers.tun.classed_packer import ClassedPacker

PEER = FIRST_PEER_HANDLE
LIGHT_BYTES, BULK_BYTES = 100, 5000
EF, CS1 = 46, 8
RATE = 1_000_000
OWED: list[int] = []
"""A block without packets."""


def packet(number: int, size: int, mark: int = 0) -> bytes:
    """A packet of IPv4, with its virtio-net header, of one flow for each size."""
    head = bytes([0x45, mark << 2]) + bytes(7) + b"\x11" + bytes(2) + size.to_bytes(4, "big") + bytes(4)
    return bytes(VNET_HEADER_BYTES) + head + number.to_bytes(4, "big") + bytes(size - len(head) - 4)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[VNET_HEADER_BYTES + 20 : VNET_HEADER_BYTES + 24], "big")


class Lane:
    """The packer of lane 0, and the rings behind it as its tcp worker sees them."""

    def __init__(self, run: Run, maker: type[BulkPacker] = BulkPacker, **settings: object) -> None:
        run.memory.peer_table.write_record(PEER, 0)
        run.memory.peer_table.write_routes([(address, length, PEER) for address, length in DEFAULT_ROUTES])
        run.write_link(0, 0, established=1, offloads=OFFLOADS)
        self.owed: deque[int] = deque()
        self._table = run.memory.peer_table
        tun, tcp = run.attach("tun-0"), run.attach("tcp-0")
        self._counters = tun.page.counters
        tun.settings = tun.settings._replace(**settings)
        self.packer = maker(tun, None, self.owed)
        self._filled = {kind: tun.ports("outbound", kind)[0] for kind in ("plain", "light")}
        self._handed_on = {kind: tcp.ports("outbound", kind)[0] for kind in ("plain", "light")}
        self.packer.begin_burst()

    def dropped(self) -> int:
        return int(self._counters[ID["tun.dropped_bulk_limit"]])

    def write_bulk_rate(self, rate: int) -> None:
        """That of the peer itself."""
        self._table.write_record(PEER, 0, rate)

    def class_bytes(self) -> dict[str, int]:
        return dict(zip(CLASSES, self._table.class_bytes(0), strict=True))

    def long(self, packets: Sequence[bytes], has_begun: bool = False) -> None:
        """A burst that takes the long way. `has_begun`: the first packet has been read on the short one."""
        self.packer.begin_burst()
        for place, data in enumerate(packets):
            if place or not has_begun:
                buffers = self.packer.next_buffers()
                assert buffers is not None
                fill(buffers, data)
            assert self.packer.commit(len(data), 0) is None
        self.packer.next_buffers()  # for a read that finds nothing
        self.packer.flush()

    def alone(self, data: bytes) -> bool:
        """A burst of one packet, if it may take the short way."""
        if not self.begin_alone(data):
            return False
        self.packer.commit_alone(len(data), 0)
        return True

    def begin_alone(self, data: bytes) -> bool:
        buffers = self.packer.lone_buffers(OFFLOADS)
        if buffers is not None:
            fill(buffers, data)
        return buffers is not None

    def take(self, kind: str) -> list[list[int]]:
        """The numbers of the packets in each block that was handed on; the slots are overwritten and given back."""
        found = []
        port, slots = self._handed_on[kind], self._filled[kind].ring.slots
        ready = port.ready()
        for ahead in range(ready):
            slot = port.slot(ahead)
            start, length, _, peer_handle = read_header(slot)
            assert peer_handle == PEER
            at, lengths = block.lengths(slot, start, start + length)
            numbers = []
            for size in lengths:
                numbers.append(number_of(bytes(slot[at : at + size])))
                at += size
            found.append(numbers)
            slots[port.index(ahead)][:] = bytes(len(slot))
        port.advance(ready)
        return found


def fill(buffers: Sequence[memoryview], data: bytes) -> None:
    buffers[0][: len(data)] = data


@contextmanager
def lane(maker: type[BulkPacker] = BulkPacker, **settings: object) -> Iterator[Lane]:
    run = Run(1, 1, SLOT_BYTES_MIN, slots=16)
    try:
        yield Lane(run, maker, **settings)
    finally:
        run.close()


def test_a_block_that_is_owed_does_not_meet_the_slot_of_a_packet_that_went_alone() -> None:
    with lane() as own:
        own.long([packet(1, LIGHT_BYTES), packet(2, LIGHT_BYTES)])  # a block is prepared, and nobody's
        assert own.alone(packet(3, BULK_BYTES))
        own.owed.append(PEER)
        assert own.packer.acknowledge() == 1
        assert own.take("plain") == [[3], OWED]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["long", "begun"]), st.lists(st.sampled_from([LIGHT_BYTES, BULK_BYTES]), max_size=3)),
        st.tuples(st.just("alone"), st.sampled_from([LIGHT_BYTES, BULK_BYTES]).map(lambda size: [size])),
        st.tuples(st.sampled_from(["owed", "take"]), st.just([])),
    ),
    max_size=12,
)


@pytest.mark.parametrize("maker", [BulkPacker, ClassedPacker])
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_each_packet_is_in_one_block_and_each_class_in_order_whichever_way_bursts_take(
    maker: type[BulkPacker],
    steps: list[tuple[str, list[int]]],
) -> None:
    with lane(maker, class_by_dscp=maker is ClassedPacker) as own:
        number = 0
        expected: dict[int, list[int]] = {LIGHT_BYTES: [], BULK_BYTES: []}
        owed, taken = 0, {LIGHT_BYTES: [], BULK_BYTES: []}

        def take() -> None:
            taken[LIGHT_BYTES] += own.take("light")
            taken[BULK_BYTES] += own.take("plain")

        for step, sizes in steps:
            packets = []
            for size in sizes:
                number += 1
                expected[size].append(number)
                packets.append(packet(number, size))
            if step == "owed":
                own.owed.append(PEER)
                owed += 1
                assert own.packer.acknowledge() == 1
            elif step == "take":
                take()
            elif step == "alone":
                assert own.alone(packets[0])
            else:
                own.long(packets, has_begun=step == "begun" and bool(packets) and own.begin_alone(packets[0]))
            if own.packer.begin_burst():
                take()
        take()
        for size, blocks in taken.items():
            assert [each for numbers in blocks for each in numbers] == expected[size]
        assert sum(numbers == OWED for numbers in taken[BULK_BYTES]) == owed


def test_bytes_are_counted_for_their_peer_by_class_whichever_way_they_take() -> None:
    with lane() as own:
        own.long([packet(1, LIGHT_BYTES), packet(2, BULK_BYTES), packet(3, BULK_BYTES)])
        assert own.alone(packet(4, BULK_BYTES))
        assert own.alone(packet(5, LIGHT_BYTES))
        expected = {"voice": 0, "normal_light": 2 * LIGHT_BYTES, "normal_bulk": 3 * BULK_BYTES, "bulk": 0}
        assert own.class_bytes() == expected


def test_the_class_bulk_is_never_light_and_counted_once_whichever_way_it_takes() -> None:
    with lane(ClassedPacker, class_by_dscp=True) as own:
        own.long([packet(1, LIGHT_BYTES, CS1), packet(2, LIGHT_BYTES, EF), packet(3, LIGHT_BYTES)])
        assert own.alone(packet(4, LIGHT_BYTES, CS1))
        assert own.alone(packet(5, BULK_BYTES))
        assert own.packer.retry(packet(6, BULK_BYTES, CS1))
        own.packer.flush()
        assert own.take("plain") == [[1], [4], [5], [6]]
        bulk = 2 * LIGHT_BYTES + BULK_BYTES
        assert own.class_bytes() == {
            "voice": LIGHT_BYTES, "normal_light": LIGHT_BYTES, "normal_bulk": BULK_BYTES, "bulk": bulk,
        }  # fmt: skip


def test_a_packet_of_the_class_bulk_that_finds_no_slot_is_counted_when_it_does() -> None:
    with lane(ClassedPacker, class_by_dscp=True) as own:
        left: list[bytes] = []
        while not left:
            own.packer.begin_burst()
            fill(own.packer.scratch_buffers(), packet(1, BULK_BYTES, CS1))
            found = own.packer.commit(BULK_BYTES + VNET_HEADER_BYTES, 0)
            left += [] if found is None else [found]
            own.packer.flush()
        sent = own.class_bytes()["bulk"]
        own.take("plain")
        own.packer.begin_burst()
        assert own.packer.retry(left[0])
        own.packer.flush()
        assert own.class_bytes()["bulk"] == sent + BULK_BYTES


def offered(own: Lane, mark: int, packets: int) -> int:
    """Bursts of a packet each; how many of them the reader has to keep."""
    kept = 0
    for number in range(packets):
        own.packer.begin_burst()
        data = packet(number, BULK_BYTES, mark)
        fill(own.packer.next_buffers() or own.packer.scratch_buffers(), data)
        kept += own.packer.commit(len(data), time.monotonic_ns()) is not None
        own.packer.flush()
    return kept


def test_the_class_bulk_beyond_its_rate_waits_and_other_bulk_does_not() -> None:
    with lane(ClassedPacker, class_by_dscp=True, bulk_rate=RATE) as own:
        taken = []
        while not own.packer.due_ns:
            assert not offered(own, CS1, 1)
            taken += own.take("plain")
        assert offered(own, 0, 1) == 0 and own.take("plain") == [[0]]
        before = own.class_bytes()["bulk"]
        assert before == len(taken) * BULK_BYTES
        assert own.packer.lone_buffers(OFFLOADS) is None

        def goes_on() -> bool:
            own.packer.acknowledge()
            return own.take("plain") == [[0]]

        eventually(goes_on, 5)
        assert own.class_bytes()["bulk"] == before + BULK_BYTES and not own.packer.due_ns
        assert offered(own, CS1, 200) == 0
        own.take("plain")
        assert own.dropped() > 0


@pytest.mark.parametrize("setting", [0, RATE])
def test_a_rate_of_the_peer_for_the_class_bulk_takes_the_place_of_that_of_all_as_it_runs(setting: int) -> None:
    with lane(ClassedPacker, class_by_dscp=True, bulk_rate=setting) as own:
        own.write_bulk_rate(RATE - setting)
        for _ in range(5 * BURST_LEAST // BULK_BYTES):
            assert offered(own, CS1, 1) == 0
            own.take("plain")
        assert bool(own.packer.due_ns) is bool(RATE - setting)
        assert (own.packer.lone_buffers(OFFLOADS) is None) is bool(RATE - setting)


def test_the_class_bulk_with_a_rate_keeps_its_order_where_no_slot_is_free() -> None:
    with lane(ClassedPacker, class_by_dscp=True, bulk_rate=1 << 30) as own:
        assert offered(own, CS1, 20) == 0  # the ring has 16 slots
        found = own.take("plain")

        def all_have_come() -> bool:
            own.packer.acknowledge()
            found.extend(own.take("plain"))
            return sum(map(len, found)) == 20

        eventually(all_have_come, 5)
        assert [number for each in found for number in each] == list(range(20))
