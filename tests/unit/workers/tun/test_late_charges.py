"""Charges that only the tun worker sees: a real peer table, and a clock that is set by hand."""

from __future__ import annotations

from typing import cast

import pytest

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import RECORD_WORDS, TRANSIT_CHARGE
from pipeline.wire import charge
from workers.tun.late_charges import TIME_MOST, LateCharges

HANDLE, WORDS = 3, 8 * RECORD_WORDS
PACKETS, SIZE = 100, 4200
SHOWN = charge.PACKET * PACKETS + SIZE // charge.WRITE_SHARE


class _Table:
    def __init__(self) -> None:
        self.transit_numbers = [memoryview(bytearray(8 * WORDS)).cast("Q")]


class _Attachment:
    class worker:
        lane = 0

    def __init__(self) -> None:
        self.peer_table = _Table()


class Slots:
    """Slots of one peer that take as long as is said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        attachment = _Attachment()
        self._words = attachment.peer_table.transit_numbers[0]
        self._now = 1_000
        monkeypatch.setattr("time.monotonic_ns", lambda: self._now)
        self.charges = LateCharges(cast(Attachment, attachment))

    @property
    def charged(self) -> int:
        return self._words[HANDLE * RECORD_WORDS + TRANSIT_CHARGE]

    def write(self, took: int, also: int = 0) -> int:
        """What is charged for a slot whose charge `took` so much time; `also`: charged for it in another way."""
        before = self.charged
        self.charges.begin_slot(HANDLE)
        self._now += took * 6 // 5
        if also:
            self.charges.add(HANDLE, also)
        self.charges.end_slot(HANDLE, PACKETS, SIZE)
        return self.charged - before


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    return Slots(monkeypatch)


def test_a_slot_that_takes_no_longer_than_its_packets_show_costs_nothing_more(slots: Slots) -> None:
    assert slots.write(SHOWN) == 0 and slots.write(SHOWN // 2) == 0


def test_the_time_that_the_kernel_takes_beyond_that_is_charged(slots: Slots) -> None:
    assert slots.write(3 * SHOWN) == pytest.approx(2 * SHOWN, abs=2)


def test_a_slot_during_which_something_else_ran_costs_a_few_times_what_it_shows(slots: Slots) -> None:
    assert slots.write(1000 * SHOWN) == (TIME_MOST - 1) * SHOWN


def test_nothing_is_charged_twice(slots: Slots) -> None:
    assert slots.write(3 * SHOWN, also=5 * SHOWN) == 5 * SHOWN
    assert slots.write(3 * SHOWN, also=SHOWN) == pytest.approx(2 * SHOWN, abs=2)
