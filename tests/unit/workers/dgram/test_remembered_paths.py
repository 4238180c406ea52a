"""A successor finds the open paths of its predecessor, and none that was written by half."""

from __future__ import annotations

from typing import cast

from pipeline.policy.carrier_order import Kind
from pipeline.sealing.datagram_memory import DatagramMemory
from workers.dgram.remembered_paths import ENTRIES, Remembered, RememberedPaths

PLACE_BYTES = DatagramMemory.ADDRESS_BYTES - 8


def path(lane: int, ancillary: tuple[int, int, bytes] | None = None, kind: Kind = Kind.UDP) -> Remembered:
    return Remembered(lane, 1452, bytes([lane]) * 16, 4000 + lane, 3, ancillary, kind)


def test_paths_are_found_as_they_were() -> None:
    place = memoryview(bytearray(PLACE_BYTES))
    paths = [path(1, (0, 8, bytes(range(12)))), path(31, (41, 50, bytes(range(20))), Kind.FAKE_TCP)]
    RememberedPaths(place).replace(paths)
    assert list(RememberedPaths(place)) == paths
    RememberedPaths(place).replace(paths[1:])
    assert list(RememberedPaths(place)) == paths[1:]
    RememberedPaths(place).replace([])
    assert list(RememberedPaths(place)) == []


def test_an_entry_of_a_kind_that_a_later_program_has_is_passed_over() -> None:
    place = memoryview(bytearray(PLACE_BYTES))
    RememberedPaths(place).replace([path(1)])
    place[0] = 99
    assert list(RememberedPaths(place)) == []


def test_there_is_room_for_the_first_of_them() -> None:
    place = memoryview(bytearray(PLACE_BYTES))
    paths = [path(lane) for lane in range(5)]
    RememberedPaths(place).replace(paths)
    assert list(RememberedPaths(place)) == paths[:ENTRIES]


class Torn(Exception):
    """The process is killed here."""


class KilledWriter:
    """A place whose writer is killed before the store with this number."""

    def __init__(self, place: memoryview, left: int) -> None:
        self.place, self.left = place, left

    def __setitem__(self, key: int | slice, value: int | bytes) -> None:
        if not self.left:
            raise Torn
        self.left -= 1
        self.place[key] = value  # type: ignore[assignment]


def test_after_a_kill_at_any_store_each_entry_is_whole_or_not_there() -> None:
    before, after = [path(1), path(2)], [path(3), path(4)]
    stores = 0
    while True:
        place = memoryview(bytearray(PLACE_BYTES))
        RememberedPaths(place).replace(before)
        try:
            RememberedPaths(cast("memoryview", KilledWriter(place, stores))).replace(after)
        except Torn:
            assert all(each in before + after for each in RememberedPaths(place))
            stores += 1
            continue
        break
    assert stores == 3 * ENTRIES
