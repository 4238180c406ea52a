"""A port: an advance that kicks the next stage, and members that are kicked only for slots that concern them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.runtime.plan import StagePosition
from pipeline.runtime.port import Port, any_ready
from pipeline.shm import doorbell, layout, ring, segment
from pipeline.shm.doorbell import Doorbell

SLOTS = 16


class Sleeper:
    """A duty that sleeps all the time: each kick is left in its semaphore."""

    def __init__(self) -> None:
        self.name = f"/tunnel@porttest@{secrets.token_hex(4)}@bell"
        doorbell.create(self.name)
        self.bell = Doorbell(self.name, memoryview(bytearray(b"\1" + bytes(7))).cast("Q"), owner=False)

    @property
    def kicks(self) -> int:
        return self.bell._semaphore.value

    def close(self) -> None:
        self.bell.close()
        doorbell.unlink(self.name)


class Stage0:
    """The port of stage 0, with an ordinary member behind it and a rarely kicked one."""

    def __init__(self) -> None:
        self.ring = ring.create(f"/tunnel@porttest@{secrets.token_hex(4)}@ring", 3, SLOTS, layout.PAGE)
        self.often, self.rarely = Sleeper(), Sleeper()
        position = StagePosition(0, 0, [1, 2], True, [], [])
        self.port = Port(self.ring, position, 0, [self.often.bell], [self.rarely.bell])

    def close(self) -> None:
        self.often.close()
        self.rarely.close()
        segment.unlink(self.ring.memory.name)
        self.ring.close()


@pytest.fixture
def first() -> Iterator[Stage0]:
    with closing(Stage0()) as made:
        yield made


def test_an_advance_moves_the_cursor_and_kicks_the_ordinary_members(first: Stage0) -> None:
    first.port.advance(3)
    assert (first.ring.cursor(0), first.port.cursor, first.port.ready()) == (3, 3, SLOTS - 3)
    assert (first.often.kicks, first.rarely.kicks) == (1, 0)


def test_a_slot_that_concerns_all_kicks_all(first: Stage0) -> None:
    first.port.advance_one(True)
    assert first.ring.cursor(0) == 1
    assert (first.often.kicks, first.rarely.kicks) == (1, 1)


def test_slots_that_concern_few_kick_the_rarely_kicked_once_in_a_quarter_of_the_ring(first: Stage0) -> None:
    for _ in range(SLOTS):
        first.port.advance_one(False)
    assert first.ring.cursor(0) == SLOTS
    assert (first.often.kicks, first.rarely.kicks) == (SLOTS, 4)


def test_to_wake_ahead_kicks_without_an_advance(first: Stage0) -> None:
    first.port.wake_ahead()
    assert first.ring.cursor(0) == 0
    assert (first.often.kicks, first.rarely.kicks) == (1, 0)


def test_of_several_ports_one_with_a_ready_slot_is_enough(first: Stage0) -> None:
    full = Stage0()
    full.port.advance(SLOTS)
    try:
        assert not any_ready([full.port])()
        assert any_ready([full.port, first.port])()
        assert not any_ready([full.port, full.port])()
    finally:
        full.close()
