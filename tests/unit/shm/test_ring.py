"""The ring: slots that a member may touch, cursors that wrap, successors that continue, foreign memory refused."""

from __future__ import annotations

import ast
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LocalError
from pipeline.shm import layout, memory_order, ring, segment
from pipeline.shm.ring import Ring, StageView
from tests.harness.factory import factory
from tests.support import ROOT

SLOTS = 4
SLOT_BYTES = layout.PAGE
NEAR_WRAP = (1 << 64) - 3

STARTS = pytest.mark.parametrize("start", [0, (1 << 32) - 2, NEAR_WRAP], ids=["zero", "near-2^32", "near-2^64"])

Make = Callable[..., Ring]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes rings of SLOTS slots; they are closed and unlinked after the test."""

    def create(members: int, slots: int = SLOTS, cursor: int = 0) -> Ring:
        return ring.create(fresh_name(), members, slots, SLOT_BYTES, cursor)

    with factory(create, dispose) as make_ring:
        yield make_ring


def fresh_name() -> str:
    return f"/tunnel@ringtest@{secrets.token_hex(4)}@ring"


def dispose(each: Ring) -> None:
    name = each.memory.name
    each.close()
    segment.unlink(name)


def stages(attached: Ring, groups: list[int]) -> list[list[StageView]]:
    """The members of consecutive stages with so many members each."""
    numbers = [list(range(sum(groups[:i]), sum(groups[: i + 1]))) for i in range(len(groups))]
    return [
        [StageView(attached, member, numbers[i - 1], first=i == 0) for member in group]
        for i, group in enumerate(numbers)
    ]


@STARTS
def test_a_fresh_ring_offers_every_slot_to_its_first_stage_and_none_to_the_others(make: Make, start: int) -> None:
    (first,), (second,), group = stages(make(4, cursor=start), [1, 1, 2])
    assert [stage.ready() for stage in (first, second, *group)] == [SLOTS, 0, 0, 0]


@STARTS
def test_slots_that_a_stage_hands_on_are_ready_for_the_next_stage(make: Make, start: int) -> None:
    (first,), (second,), (third,) = stages(make(3, cursor=start), [1, 1, 1])
    first.advance(3)
    assert (first.ready(), second.ready(), third.ready()) == (1, 3, 0)
    second.advance(2)
    assert (first.ready(), second.ready(), third.ready()) == (1, 1, 2)
    third.advance(1)
    assert (first.ready(), second.ready(), third.ready()) == (2, 1, 1)


@STARTS
def test_the_first_stage_stops_one_lap_ahead_of_the_slowest_last_member(make: Make, start: int) -> None:
    (first,), (quick, slow) = stages(make(3, cursor=start), [1, 2])
    first.advance(SLOTS)
    quick.advance(SLOTS)
    assert first.ready() == 0
    slow.advance(1)
    assert first.ready() == 1


@STARTS
def test_members_of_a_group_see_every_slot_without_waiting_for_each_other(make: Make, start: int) -> None:
    (first,), (one, other) = stages(make(3, cursor=start), [1, 2])
    first.advance(2)
    one.advance(2)
    assert (one.ready(), other.ready()) == (0, 2)


@STARTS
def test_a_stage_behind_a_group_waits_for_its_slowest_member(make: Make, start: int) -> None:
    (first,), (quick, slow), (last,) = stages(make(4, cursor=start), [1, 2, 1])
    first.advance(3)
    quick.advance(3)
    assert last.ready() == 0
    slow.advance(2)
    assert last.ready() == 2


@STARTS
def test_every_stage_visits_all_slots_in_one_order(make: Make, start: int) -> None:
    attached = make(2, cursor=start)
    (first,), (second,) = stages(attached, [1, 1])
    for number in range(3 * SLOTS):
        first.slot()[:8] = number.to_bytes(8, "little")
        assert first.slot() is attached.slots[(start + number) % SLOTS]
        first.advance(1)
        assert second.slot() is first.slots[(start + number) % SLOTS]
        assert second.index() == (start + number) % SLOTS
        assert int.from_bytes(second.slot()[:8], "little") == number
        second.advance(1)
    assert second.cursor == (start + 3 * SLOTS) % (1 << 64)


def test_a_burst_is_addressed_from_the_first_ready_slot_on(make: Make) -> None:
    attached = make(2, cursor=NEAR_WRAP)
    (first,), (second,) = stages(attached, [1, 1])
    for i in range(SLOTS):
        first.slot(i)[0] = i
    first.advance(SLOTS)
    assert [second.slot(i)[0] for i in range(SLOTS)] == list(range(SLOTS))
    assert [second.index(i) for i in range(SLOTS)] == [(NEAR_WRAP + i) % SLOTS for i in range(SLOTS)]


@STARTS
def test_a_successor_continues_at_the_cursor(make: Make, start: int) -> None:
    attached = make(2, cursor=start)
    (first,), (second,) = stages(attached, [1, 1])
    first.advance(3)
    second.advance(1)
    second.slot()  # in hand, and its holder is gone now
    other = ring.attach(attached.memory.name, 2, SLOTS, SLOT_BYTES)
    successor = StageView(other, 1, [0])
    assert successor.cursor == (start + 1) % (1 << 64)
    assert successor.ready() == 2
    other.close()


def test_bytes_written_by_one_attachment_are_read_by_another(make: Make) -> None:
    attached = make(2)
    other = ring.attach(attached.memory.name, 2, SLOTS, SLOT_BYTES)
    attached.slots[2][:5] = b"hello"
    attached.memory.words[(layout.RING_CURSORS_AT + layout.CURSOR_STRIDE) // 8] = 7
    assert bytes(other.slots[2][:5]) == b"hello"
    assert [other.cursor(member) for member in range(2)] == [0, 7]
    other.close()


@st.composite
def journeys(draw: st.DrawFn) -> tuple[int, int, list[int], list[tuple[int, int]]]:
    groups = [1, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]
    slots = draw(st.sampled_from([1, 2, 4, 8]))
    start = draw(st.one_of(st.integers(0, (1 << 64) - 1), st.integers(NEAR_WRAP - 8, (1 << 64) - 1)))
    moves = draw(st.lists(st.tuples(st.integers(0, sum(groups) - 1), st.integers(0, 8)), max_size=60))
    return slots, start, groups, moves


@given(journeys())
def test_any_order_of_moves_passes_every_slot_through_every_stage_exactly_once(
    journey: tuple[int, int, list[int], list[tuple[int, int]]],
) -> None:
    slots, start, groups, moves = journey
    attached = ring.create(fresh_name(), sum(groups), slots, SLOT_BYTES, start)
    try:
        rows = stages(attached, groups)
        members = [member for row in rows for member in row]
        row_of = {member.member: number for number, row in enumerate(rows) for member in row}
        done = [0] * len(members)
        for number, count in moves:
            stage = members[number]
            before = [done[member.member] for member in rows[row_of[number] - 1]]
            allowed = min(before) - done[number] + (slots if number == 0 else 0)
            assert stage.ready() == allowed
            for i in range(min(count, allowed)):
                if number == 0:
                    stage.slot(i)[:8] = (done[0] + i).to_bytes(8, "little")
                assert int.from_bytes(stage.slot(i)[:8], "little") == done[number] + i
            stage.advance(min(count, allowed))
            done[number] += min(count, allowed)
            assert attached.cursor(number) == (start + done[number]) % (1 << 64)
    finally:
        dispose(attached)


@pytest.mark.parametrize("member", [0, 1, 2])
@pytest.mark.parametrize("value", [1000, 5, (1 << 64) - 1, 1 << 63])
def test_a_ring_with_an_overwritten_cursor_skips_slots_and_works_again(make: Make, member: int, value: int) -> None:
    """Wherever the members stand, and whichever of them looks first."""
    attached = make(3)
    views = [stage for group in stages(attached, [1, 1, 1]) for stage in group]
    views[0].advance(3)
    views[1].advance(2)
    views[2].advance(1)
    attached.cursors[layout.CURSOR_STRIDE * member // 8] = value
    for _ in range(2 * len(views)):
        for view in views:
            assert 0 <= view.ready() <= SLOTS
            view.advance(view.ready())
    moved = [view.cursor for view in views]
    for _ in range(3 * SLOTS):
        for view in views:
            view.advance(min(1, view.ready()))
    assert min(view.cursor - before for view, before in zip(views, moved, strict=True)) >= 2 * SLOTS
    mended = sum(view.mended for view in views)
    for view in views:
        view.ready()
    assert sum(view.mended for view in views) == mended


def test_a_member_without_work_whose_cursor_was_set_back_holds_up_the_ring_until_it_puts_that_right(make: Make) -> None:
    attached = make(2)
    (first,), (second,) = stages(attached, [1, 1])
    first.advance(SLOTS)
    second.advance(SLOTS)
    attached.cursors[layout.CURSOR_STRIDE // 8] = 0
    assert (first.ready(), second.ready()) == (0, 0)
    second.put_right()
    assert (first.ready(), attached.cursor(1)) == (SLOTS, SLOTS)


def test_a_stage_has_at_most_a_whole_ring_ready_and_more_is_a_contradiction_that_is_counted(make: Make) -> None:
    attached = make(2)
    (_,), (second,) = stages(attached, [1, 1])
    attached.cursors[0] = SLOTS
    assert (second.ready(), second.mended) == (SLOTS, 0)
    attached.cursors[0] = SLOTS + 1
    assert (second.ready(), second.mended) == (0, 1)
    assert (second.ready(), second.mended, second.cursor) == (0, 1, SLOTS + 1)


@pytest.mark.parametrize("slots", [-4, 0, 3, 6, 1023])
def test_a_capacity_that_is_no_power_of_two_is_refused_and_nothing_is_made(slots: int) -> None:
    with pytest.raises(LocalError, match=f"slots must be a power of two, got {slots}"):
        ring.create(fresh_name(), 2, slots, SLOT_BYTES)


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (layout.MAGIC_AT, "magic"),
        (layout.VERSION_AT, "layout version"),
        (layout.RING_SLOTS_AT, "slots"),
        (layout.RING_SLOT_BYTES_AT, "slot bytes"),
        (layout.RING_MEMBERS_AT, "members"),
    ],
)
def test_a_segment_whose_header_differs_is_refused_with_what_was_expected_and_found(
    make: Make, at: int, what: str
) -> None:
    attached = make(2)
    expected = attached.memory.words[at // 8]
    attached.memory.words[at // 8] = 99
    with pytest.raises(LocalError, match=f"{attached.memory.name}: {what}: expected {expected}, found 99"):
        ring.attach(attached.memory.name, 2, SLOTS, SLOT_BYTES)


@pytest.mark.parametrize(
    ("members", "slots", "slot_bytes"), [(2, 8, SLOT_BYTES), (2, SLOTS, 2 * SLOT_BYTES), (1000, SLOTS, SLOT_BYTES)]
)
def test_a_ring_of_another_size_is_refused(make: Make, members: int, slots: int, slot_bytes: int) -> None:
    with pytest.raises(LocalError, match=r"expected .* bytes, has"):
        ring.attach(make(2).memory.name, members, slots, slot_bytes)


def test_a_ring_of_as_many_bytes_but_another_shape_is_refused(make: Make) -> None:
    with pytest.raises(LocalError, match="slots: expected 2, found 4"):
        ring.attach(make(2).memory.name, 2, SLOTS // 2, 2 * SLOT_BYTES)


def test_a_machine_that_is_refused_neither_makes_a_ring_nor_attaches_to_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = make(2)
    monkeypatch.setattr(memory_order, "find_refusal", lambda: "this machine is too small")
    for way in (ring.attach, ring.create):
        with pytest.raises(LocalError, match=f"ring {attached.memory.name}: this machine is too small"):
            way(attached.memory.name, 2, SLOTS, SLOT_BYTES)


def test_no_two_cursors_share_a_pair_of_cache_lines_and_slots_begin_on_a_page() -> None:
    assert layout.CURSOR_STRIDE >= 2 * layout.CACHE_LINE
    assert layout.RING_CURSORS_AT % layout.CURSOR_STRIDE == 0
    for members in range(1, 200):
        first = layout.ring_slots_at(members)
        assert first % layout.MAP_PAGE == 0
        assert first >= layout.RING_CURSORS_AT + members * layout.CURSOR_STRIDE


READER = """
import sys
from pipeline.shm import ring
attached = ring.attach(sys.argv[1], 2, 4, 4096)
print("ready", flush=True)
seen = set()
while attached.cursor(1) == 0:
    seen.add(attached.cursor(0))
print(*sorted(seen))
"""


def test_another_process_never_sees_a_cursor_half_stored(make: Make) -> None:
    low, high = (1 << 63) - 1, (1 << 64) - 1
    attached = make(2, cursor=low)
    attached.memory.words[(layout.RING_CURSORS_AT + layout.CURSOR_STRIDE) // 8] = 0
    stage = StageView(attached, 0, [1], first=True)
    with subprocess.Popen(
        [sys.executable, "-c", READER, attached.memory.name], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout.readline() == "ready\n"
        for _ in range(100_000):
            stage.advance(1 << 63)
        attached.memory.words[(layout.RING_CURSORS_AT + layout.CURSOR_STRIDE) // 8] = 1
        seen = {int(value) for value in reader.stdout.read().split()}
    assert seen <= {low, high}
    assert reader.returncode == 0


@pytest.mark.parametrize("module", ["shm/ring", "shm/doorbell", "shm/segment", "runtime/port", "runtime/worker"])
def test_nothing_that_publishes_packs_into_shared_memory(module: str) -> None:
    tree = ast.parse((ROOT / "pipeline" / f"{module}.py").read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "pack_into"]


def test_closing_unmaps_the_memory(make: Make) -> None:
    attached = ring.attach(make(2).memory.name, 2, SLOTS, SLOT_BYTES)

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(os.path.basename(attached.memory.name))

    before = mapped()
    attached.close()
    assert mapped() == before - 2  # the whole, to read, and what can be written
