"""Kicks of a group: the members that a slot concerns are woken, the others sleep on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import closing

import pytest

from pipeline.fec import shard
from pipeline.runtime import group_port
from pipeline.runtime.group_port import GroupPort
from pipeline.runtime.plan import StagePosition
from pipeline.shm import layout, ring, segment
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.slot import write_header, write_run, write_run_count
from pipeline.wire import framing
from tests.harness.run import Run
from tests.unit.runtime.test_port import Sleeper

SLOTS = 16
GROUP = 3
NOBODY = 0xFFFF

Concerns = Callable[[memoryview], Collection[int]]


class Group:
    """The port of stage 0 before a group of three and three that few slots concern; all sleep."""

    def __init__(self) -> None:
        self.ring = ring.create(f"/tunnel@grouptest@{secrets.token_hex(4)}@ring", 1 + 2 * GROUP, SLOTS, layout.PAGE)
        self.often, self.rarely = ([Sleeper() for _ in range(GROUP)] for _ in range(2))
        position = StagePosition(0, 0, list(range(1, 1 + 2 * GROUP)), True, [], [])
        self.port = GroupPort(
            self.ring,
            position,
            0,
            [each.bell for each in self.often],
            [each.bell for each in self.rarely],
            lambda port: None,
            *self.concerns(),
        )

    def concerns(self) -> tuple[Concerns, Concerns]:
        return group_port.senders, lambda slot: group_port.decoders(slot, False, GROUP)

    def fill(self, *consumers: int, runs: tuple[int, ...] = ()) -> None:
        """The next slots are for these, or one slot has runs for those."""
        for ahead, consumer in enumerate(consumers):
            write_header(self.port.slot(ahead), 64, 0, consumer, FIRST_PEER_HANDLE)
        for row, consumer in enumerate(runs):
            write_run(self.port.slot(), layout.SLOT_RUN_TABLE_AT + layout.RUN_ROW_BYTES * row, consumer, 0, 1, 0, 64, 0)
        if runs:
            write_run_count(self.port.slot(), len(runs), 0, 0)

    def kicks(self) -> list[int]:
        return [each.kicks for each in self.often]

    def rare_kicks(self) -> list[int]:
        return [each.kicks for each in self.rarely]

    def close(self) -> None:
        for each in (*self.often, *self.rarely):
            each.close()
        segment.unlink(self.ring.memory.name)
        self.ring.close()


@pytest.fixture
def group() -> Iterator[Group]:
    with closing(Group()) as made:
        yield made


def test_a_slot_kicks_its_consumer_alone(group: Group) -> None:
    group.fill(1)
    group.port.advance(1)
    assert (group.kicks(), group.rare_kicks()) == ([0, 1, 0], [0, 0, 0])
    assert group.ring.cursor(0) == 1


def test_slots_that_are_handed_on_together_kick_each_consumer_once(group: Group) -> None:
    group.fill(2, 0, 2)
    group.port.advance(3)
    assert group.kicks() == [1, 0, 1]


def test_a_slot_with_runs_kicks_those_that_send_them(group: Group) -> None:
    group.fill(1, runs=(0, 2, 2))
    group.port.advance(1)
    assert group.kicks() == [1, 0, 1]


@pytest.mark.parametrize("consumer", [NOBODY, GROUP, 1 << 40])
def test_a_slot_of_nobody_kicks_nobody(group: Group, consumer: int) -> None:
    group.fill(consumer)
    group.port.advance(1)
    assert group.kicks() == [0, 0, 0]


def test_the_others_move_on_once_in_a_quarter_of_the_ring(group: Group) -> None:
    for _ in range(SLOTS // 4):
        assert group.kicks()[0] == 0
        group.fill(1)
        group.port.advance(1)
    assert group.kicks() == [1, 5, 1]
    assert group.rare_kicks() == [1, 1, 1]


def test_those_are_woken_ahead_that_got_the_last_slot_and_at_first_all(group: Group) -> None:
    group.port.wake_ahead()
    assert group.kicks() == [1, 1, 1]
    group.fill(2)
    group.port.advance(1)
    group.port.wake_ahead()
    assert group.kicks() == [1, 1, 3]


def runs_of(*lanes: int) -> bytes:
    return b"".join(
        shard.RUN.pack(shard.RUN_BYTES - 4, framing.RUN, shard.stream(7, lane, framing.BULK), 0, 2, 1, 0, 1, 8, 0)
        for lane in lanes
    )


@pytest.mark.parametrize(("peer", "expected"), [(0, [1, 0, 1]), (1, [1, 1, 0])])
def test_an_inbound_slot_with_runs_kicks_the_fec_workers_of_their_lanes(
    group: Group, peer: int, expected: list[int]
) -> None:
    slot = group.port.slot()
    data = framing.KEEPALIVE_FRAME + runs_of(0, 2)
    slot[64 : 64 + len(data)] = data
    write_header(slot, 64, len(data), 1, FIRST_PEER_HANDLE | peer)
    group.port.advance_one(True)
    assert (group.kicks(), group.rare_kicks()) == ([0, 1, 0], expected)


def test_an_inbound_slot_without_runs_kicks_no_fec_worker(group: Group) -> None:
    group.fill(1)
    group.port.advance_one(False)
    assert group.rare_kicks() == [0, 0, 0]


class Inbound(Group):
    """The same before three tun workers and three fec workers."""

    def __init__(self, sealed: bool) -> None:
        self._sealed = sealed
        super().__init__()

    def concerns(self) -> tuple[Concerns, Concerns]:
        writers, decoders = group_port.writers, group_port.decoders
        return lambda slot: writers(slot, self._sealed, GROUP), lambda slot: decoders(slot, self._sealed, GROUP)

    def bring(self, consumer: int, traffic_class: int, *frames: bytes, peer: int = 0) -> None:
        data = b"".join(frames)
        slot = self.port.slot()
        slot[64 : 64 + len(data)] = data
        write_header(slot, 64, len(data), consumer, FIRST_PEER_HANDLE | peer, traffic_class)
        self.port.advance_one(True)


BLOCK = framing.frame(framing.BLOCK, bytes(2))
PADDING = framing.frame(framing.PADDING, bytes(5))


def copy(lane: int, sealed: bool, m: int = 1) -> bytes:
    """A copy of a block; sealed, with m = 0, a block that travels once."""
    stream = 5 << 8 | lane << 3 | 3 if sealed else shard.stream(5, lane, framing.LIGHT) | shard.COPIES
    pack = shard.SEALED_RUN.pack if sealed else shard.RUN.pack
    return pack(shard.RUN_BYTES - 4, framing.RUN, stream, 0, 1, m, 0, 1, 8, 0, *([0] if sealed else []))


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize(
    ("frames", "peer", "expected"),
    [
        ("b", 0, [0, 1, 0]),  # a block: for the lane of the connection
        ("2", 0, [0, 0, 1]),  # a copy: for the lane of its stream
        ("2", 1, [1, 0, 0]),  # turned by the index of the peer
        ("02p", 0, [1, 0, 1]),
        ("0b", 0, [1, 1, 0]),
        ("p", 0, [0, 0, 0]),
    ],
)
def test_a_light_slot_kicks_the_tun_workers_of_the_lanes_of_its_runs_and_no_fec_worker(
    sealed: bool, frames: str, peer: int, expected: list[int]
) -> None:
    made = {"b": BLOCK, "p": PADDING} | {str(lane): copy(lane, sealed) for lane in range(GROUP)}
    with closing(Inbound(sealed)) as group:
        group.bring(1, framing.LIGHT, *(made[frame] for frame in frames), peer=peer)
        assert (group.kicks(), group.rare_kicks()) == (expected, [0, 0, 0])


@pytest.mark.parametrize(("m", "expected"), [(0, [0, 0, 0]), (1, [0, 0, 1])])
def test_a_sealed_block_among_bulk_is_for_the_lane_of_the_connection_and_a_copy_for_the_fec_worker_of_its_stream(
    m: int, expected: list[int]
) -> None:
    with closing(Inbound(sealed=True)) as group:
        group.bring(1, framing.BULK, copy(2, True, m))
        assert (group.kicks(), group.rare_kicks()) == ([0, 1, 0], expected)


def test_an_arrived_slot_kicks_the_tun_workers_of_its_lanes_as_an_inbound_one_does() -> None:
    with closing(Run(carrier="auto", slots=16)) as run:
        (port,) = run.attach("dgram-1").ports("inbound", "arrived")
        for worker in run.plan.workers_of_kind("tun"):
            run.memory.scoreboard.pages[worker.page].sleeping("inbound")[0] = 1
        slot, data = port.slot(), copy(2, sealed=False)
        slot[64 : 64 + len(data)] = data
        write_header(slot, 64, len(data), 1, FIRST_PEER_HANDLE, framing.LIGHT)
        port.advance(1)
        assert [bell._semaphore.value for bell in port._after] == [0, 0, 1]


def test_outbound_slots_kick_a_dgram_worker_by_its_place_behind_the_tcp_workers() -> None:
    with closing(Run(carrier="auto", slots=16)) as run:
        (port,) = run.attach("tun-0").ports("outbound", "plain")
        members = [*run.plan.workers_of_kind("tcp"), *run.plan.workers_of_kind("dgram")]
        for worker in members:
            run.memory.scoreboard.pages[worker.page].sleeping("outbound")[0] = 1
        write_header(port.slot(), 64, 0, 3 + 1, FIRST_PEER_HANDLE)
        port.advance(1)
        assert [bell._semaphore.value for bell in port._after] == [0, 0, 0, 0, 1, 0]
