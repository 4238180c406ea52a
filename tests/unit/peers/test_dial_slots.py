"""The connections of one session by dial slot: the limit, and what a new one replaces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.peers.dial_slots import UNSEEN_NS, DialSlots, Place

NOW = 1_000_000_000_000
LATER = NOW + UNSEEN_NS


def nobody() -> set[Place]:
    return set()


def taken(*places: Place, now: int = NOW) -> DialSlots:
    slots = DialSlots()
    for index, place in enumerate(places):
        slots.take(index, place, now)
    return slots


A, B, C = Place(0, 1), Place(1, 1), Place(0, 2)


def test_a_connection_beyond_the_limit_has_no_room_but_one_that_replaces_another_has() -> None:
    slots = taken(A, B)
    assert not slots.has_room(2, 2, 2, nobody, LATER)
    assert slots.has_room(1, 2, 2, nobody, LATER)
    assert slots.take(1, C, LATER) == B


def test_a_connection_that_has_ended_leaves_room() -> None:
    slots = taken(A, B)
    assert slots.has_room(2, 2, 1, lambda: {A}, LATER)


def test_a_connection_that_was_admitted_a_moment_ago_counts_although_nobody_has_seen_it() -> None:
    slots = taken(A, B)
    assert not slots.has_room(2, 2, 0, nobody, LATER - 1)
    assert slots.has_room(2, 2, 0, nobody, LATER)


def test_a_number_that_a_worker_gives_again_is_of_its_successor() -> None:
    slots = taken(A, B, C)
    assert slots.take(5, A, LATER) is None  # the slot 0 is free
    assert slots.has_room(6, 4, 3, nobody, NOW)


def test_after_the_limit_was_lowered_nothing_is_let_in_that_keeps_the_number_above_it() -> None:
    slots = taken(A, B, C)
    assert not slots.has_room(2, 2, 3, nobody, LATER)
    assert slots.has_room(2, 3, 3, nobody, LATER)


Events = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), max_size=60)


@given(Events, st.integers(1, 4))
def test_never_are_there_more_than_allowed_and_a_known_slot_is_never_refused(
    events: list[tuple[int, int, bool]], most: int
) -> None:
    """Against a list of the connections that stand, of which some end unseen."""
    slots, there = DialSlots(), dict[int, Place]()
    for serial, (index, lane, ends) in enumerate(events):
        if ends:
            there.pop(index, None)
            continue
        now = NOW + serial * UNSEEN_NS
        room = slots.has_room(index, most, len(there), lambda: set(there.values()), now)
        assert room == (len(there) < most or index in there)
        if room:
            before = slots.take(index, Place(lane, serial), now)
            assert index not in there or before == there[index]
            there[index] = Place(lane, serial)
        assert len(there) <= most
