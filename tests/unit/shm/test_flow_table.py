"""The flow table: what one lane writes, all lanes find; and the refusals beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pipeline.policy.flow_times import CLOSING, NEW, OPEN, Kept
from pipeline.shm import flow_table
from pipeline.shm.flow_table import NOTES, ROWS, WAYS, FlowTable, Note, Refusals

SECRET = b"s" * 32
NOW = 1000


@pytest.fixture
def fd() -> Iterator[int]:
    made = flow_table.create(2)
    yield made
    os.close(made)


def test_a_flow_is_known_in_every_lane_until_its_time_ends(fd: int) -> None:
    one, two = (FlowTable(fd, 2, lane, SECRET) for lane in (0, 1))
    one.put(b"flow", Kept(OPEN, 60), NOW)
    for table in (one, two):
        assert table.find(b"flow", NOW + 20) == Kept(OPEN, 40)
        assert table.find(b"flow", NOW + 60) is None and table.find(b"other", NOW) is None


def test_the_own_lane_counts_first(fd: int) -> None:
    one, two = (FlowTable(fd, 2, lane, SECRET) for lane in (0, 1))
    one.put(b"flow", Kept(NEW, 60), NOW)
    two.put(b"flow", Kept(CLOSING, 10), NOW)
    assert one.find(b"flow", NOW).state == NEW and two.find(b"flow", NOW).state == CLOSING


def test_a_successor_finds_what_its_predecessor_has_written(fd: int) -> None:
    FlowTable(fd, 2, 0, SECRET).put(b"flow", Kept(OPEN, 60), NOW)
    assert FlowTable(fd, 2, 0, SECRET).find(b"flow", NOW) == Kept(OPEN, 60)


def test_a_flow_that_is_put_again_takes_its_own_place(fd: int) -> None:
    table = FlowTable(fd, 2, 0, SECRET)
    for seconds in (60, 5):
        table.put(b"flow", Kept(OPEN, seconds), NOW)
    assert table.find(b"flow", NOW).seconds == 5
    assert sum(word != 0 for word in table._words) == 1


def test_in_a_full_table_those_whose_time_ends_first_give_way(fd: int) -> None:
    table = FlowTable(fd, 2, 0, SECRET)
    for number in range(3 * ROWS * WAYS):
        table.put(b"short%d" % number, Kept(NEW, 30), NOW)
    table.put(b"long", Kept(OPEN, 432_000), NOW)
    for number in range(20_000):
        table.put(b"more%d" % number, Kept(NEW, 30), NOW)
    assert table.find(b"long", NOW) == Kept(OPEN, 432_000)
    assert table.find(b"more19999", NOW) == Kept(NEW, 30)


def test_time_may_wrap(fd: int) -> None:
    table, late = FlowTable(fd, 2, 0, SECRET), (1 << 26) - 5
    table.put(b"flow", Kept(OPEN, 60), late)
    assert table.find(b"flow", late + 10) == Kept(OPEN, 50) and table.find(b"flow", late + 61) is None


def test_another_secret_finds_nothing(fd: int) -> None:
    FlowTable(fd, 2, 0, SECRET).put(b"flow", Kept(OPEN, 60), NOW)
    assert FlowTable(fd, 2, 0, b"t" * 32).find(b"flow", NOW) is None


def test_refusals_are_counted_by_peer_and_noted(fd: int) -> None:
    refusals = Refusals(fd, 2)
    note = Note(5 << 12 | 3, 6, 443, bytes([10, 0, 0, 3]))
    for lane in (0, 1):
        table = FlowTable(fd, 2, lane, SECRET)
        table.count_refused(note.peer_handle)
        table.note(note._replace(port=443 + lane))
    assert refusals.counts(3) == 2 and refusals.counts(4) == 0
    assert list(refusals.take_notes()) == [note, note._replace(port=444)]
    assert list(refusals.take_notes()) == []
    refusals.close()


def test_of_many_notes_the_last_ones_are_kept(fd: int) -> None:
    refusals, table = Refusals(fd, 2), FlowTable(fd, 2, 0, SECRET)
    for port in range(3 * NOTES):
        table.note(Note(1, 17, port, bytes(16)))
    assert [note.port for note in refusals.take_notes()] == list(range(2 * NOTES + 1, 3 * NOTES))
    refusals.close()
