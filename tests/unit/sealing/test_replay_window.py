"""The windows against replays: what a set of numbers would say, after a kill at any store, and at a bounded cost."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sealing.kinds import LANES_MAX, stream
from pipeline.sealing.replay_window import KINDS, RECORD_BYTES, WINDOW, ReplayWindows
from tests.harness.sealed_lane import handle

PEER = handle(7)
U32 = 1 << 32
STORES_MOST = 8 * WINDOW // 64
"""Words that one block may cost: a few times all bits of a window."""

KIND = 2


def memory(peers: int = 1) -> bytearray:
    return bytearray(ReplayWindows.bytes_of(peers))


class Killed(Exception):
    """The worker has died behind a store."""


class Dying:
    """Windows whose worker dies behind the `last` store of eight bytes or less. -1: it does not."""

    def __init__(self, data: bytearray, last: int = -1) -> None:
        self.stores = 0
        self._last = last
        self.windows = ReplayWindows(memoryview(data))
        for name in ("_bytes", "_words"):
            setattr(self.windows, name, cast("memoryview", _Stores(getattr(self.windows, name), self._stored)))

    def _stored(self) -> None:
        if self.stores == self._last:
            raise Killed
        self.stores += 1


class _Stores:
    def __init__(self, view: memoryview, stored: Any) -> None:
        self._view, self._stored = view, stored

    def __getitem__(self, at: Any) -> Any:
        found = self._view[at]
        return bytes(found) if isinstance(found, memoryview) else found

    def __setitem__(self, at: Any, value: Any) -> None:
        if isinstance(at, slice):
            for begin in range(0, len(value), 8):
                self._stored()
                self._view[at.start + begin : min(at.start + begin + 8, at.stop)] = value[begin : begin + 8]
        else:
            self._stored()
            self._view[at] = value


class Model:
    """What the document says of one lane and kind: windows of the latest process and of the one before it, as sets."""

    def __init__(self) -> None:
        self.tops: dict[int, int] = {}
        self.opened: dict[int, set[int]] = {}

    def may_open(self, process: int, number: int) -> bool:
        if process not in self.tops:
            return not self.tops or process > max(self.tops)
        behind = (self.tops[process] - number) % U32
        return behind > U32 // 2 or (behind < WINDOW and number not in self.opened[process])

    def mark(self, process: int, number: int) -> None:
        if process not in self.tops:
            for old in sorted(self.tops)[:-1]:
                del self.tops[old], self.opened[old]
            self.tops[process], self.opened[process] = number, set()
        if (number - self.tops[process]) % U32 < U32 // 2:
            self.tops[process] = number
        top = self.tops[process]
        self.opened[process] = {each for each in self.opened[process] if (top - each) % U32 < WINDOW} | {number}


starts = st.sampled_from([0, 5, WINDOW - 3, U32 - 20, U32 // 2 - 9])
moves = st.one_of(
    st.integers(-20, 20),
    st.integers(-WINDOW - 5, WINDOW + 5),
    st.sampled_from([WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 1 << 26, 1 - WINDOW, -WINDOW, -1 - WINDOW]),
)
"""How far a block is from the one before it. All moves of a test are below 2^31: nobody has a key for so long."""

far = st.one_of(moves, st.sampled_from([U32 // 2 - 1, U32 // 2, U32 // 2 + 1]))
blocks = st.lists(st.tuples(st.sampled_from([3, 3, 3, 4, 4, 9]), far), max_size=40)


@settings(max_examples=300)
@given(starts, blocks, st.booleans())
def test_the_windows_say_what_sets_of_numbers_would_say(
    start: int, steps: list[tuple[int, int]], is_replaced: bool
) -> None:
    data, model, number = memory(), Model(), start
    windows = ReplayWindows(memoryview(data))
    for process, move in steps:
        number = (number + move) % U32
        if is_replaced:
            windows = ReplayWindows(memoryview(data))  # nothing is kept but the memory
        each = stream(process, 0, KIND)
        for near in (number - 1, number, number + 1):
            assert windows.may_open(PEER, each, near % U32) == model.may_open(process, near % U32)
        if windows.may_open(PEER, each, number):
            windows.mark(PEER, each, number)
            model.mark(process, number)
            assert not windows.may_open(PEER, each, number)


@settings(max_examples=400)
@given(starts, st.lists(st.tuples(st.sampled_from([3, 3, 3, 4, 5]), moves, st.integers(-1, 500)), max_size=20))
def test_nothing_that_was_opened_is_new_again_after_a_kill_at_any_store(
    start: int, steps: list[tuple[int, int, int]]
) -> None:
    data, number = memory(), start
    opened: set[tuple[int, int]] = set()
    for process, move, last in steps:
        number = (number + move) % U32
        each = stream(process, 0, KIND)
        dying = Dying(data, last)
        if dying.windows.may_open(PEER, each, number):
            assert (process, number) not in opened
            try:
                dying.windows.mark(PEER, each, number)
            except Killed:
                pass  # no packet of it has gone on: it may count as opened, or not
            else:
                opened.add((process, number))
        fresh = ReplayWindows(memoryview(data))
        for known, before in opened:
            assert not fresh.may_open(PEER, stream(known, 0, KIND), before)


@pytest.mark.parametrize("process", [3, 4])
@pytest.mark.parametrize("jump", [1, 9, WINDOW // 2, WINDOW, 5 * WINDOW])
def test_a_kill_at_each_store_of_one_block_leaves_all_before_it_opened_and_later_ones_new(
    jump: int, process: int
) -> None:
    clean = memory()
    windows = ReplayWindows(memoryview(clean))
    old = stream(3, 0, KIND)
    numbers = [number for number in range(100, 100 + WINDOW // 2) if number % 3]
    for number in numbers:
        windows.mark(PEER, old, number)
    at = numbers[-1] + jump
    counted = Dying(bytearray(clean))
    counted.windows.mark(PEER, stream(process, 0, KIND), at)
    for last in range(counted.stores):
        data = bytearray(clean)
        with pytest.raises(Killed):
            Dying(data, last).windows.mark(PEER, stream(process, 0, KIND), at)
        successor = ReplayWindows(memoryview(data))
        assert not any(successor.may_open(PEER, old, number) for number in numbers)
        assert successor.may_open(PEER, stream(process, 0, KIND), at + 1)  # and the traffic goes on


def test_each_peer_lane_and_kind_has_a_window_of_its_own() -> None:
    data = memory(2)
    windows = ReplayWindows(memoryview(data))
    places = [
        (handle(7, peer), stream(3, lane, kind))
        for peer in range(2)
        for lane in (0, 1, LANES_MAX - 1)
        for kind in (0, 5)
    ]
    for turn, (peer_handle, each) in enumerate(places):
        assert all(windows.may_open(*place, 5) == (place not in places[:turn]) for place in places)
        windows.mark(peer_handle, each, 5)
    assert len(data) == 2 * KINDS * RECORD_BYTES


def test_a_window_of_an_earlier_session_says_nothing_about_the_next_one_and_ends_with_its_first_block() -> None:
    data = memory()
    windows = ReplayWindows(memoryview(data))
    each = stream(3, 0, KIND)
    windows.mark(PEER, each, 5)
    assert windows.may_open(handle(8), each, 5)
    windows.mark(handle(8), each, 5)
    assert not windows.may_open(handle(8), each, 5)
    assert windows.may_open(handle(8), each, 4)
    assert not windows.may_open(handle(8), stream(2, 0, KIND), 9)


def test_a_sender_that_was_started_again_numbers_its_processes_from_the_first_one_on() -> None:
    windows = ReplayWindows(memoryview(memory()))
    windows.mark(PEER, stream(30, 0, KIND), 5000)
    windows.mark(PEER, stream(31, 0, KIND), 5000)
    for number in range(3):
        assert windows.may_open(handle(8), stream(3, 0, KIND), number)
        windows.mark(handle(8), stream(3, 0, KIND), number)
        assert not windows.may_open(handle(8), stream(3, 0, KIND), number)
    assert not windows.may_open(handle(8), stream(2, 0, KIND), 9)
    assert windows.may_open(handle(8), stream(4, 0, KIND), 0)


@pytest.mark.parametrize("jump", [1, WINDOW - 1, WINDOW, WINDOW + 7, U32 // 2 - 1])
def test_a_hostile_jump_costs_no_more_than_to_clear_a_window(jump: int) -> None:
    data = memory()
    windows = ReplayWindows(memoryview(data))
    windows.mark(PEER, stream(3, 0, KIND), 10)
    for process in (3, 4):
        counted = Dying(data)
        counted.windows.mark(PEER, stream(process, 0, KIND), 10 + jump)
        assert counted.stores <= STORES_MOST


def test_only_the_pages_of_windows_in_use_are_touched() -> None:
    data = memory(3)
    ReplayWindows(memoryview(data)).mark(handle(7, 1), stream(3, 2, KIND), 1 << 31)
    touched = {at // RECORD_BYTES for at, value in enumerate(data) if value}
    assert touched == {KINDS + 2 * 8 + KIND}


def test_a_copy_knows_what_was_opened_and_goes_its_own_way() -> None:
    data = memory()
    windows = ReplayWindows(memoryview(data))
    here = stream(3, 0, KIND)
    for number in (5, 6, 9):
        assert windows.may_open(PEER, here, number)
        windows.mark(PEER, here, number)
    copied = windows.copy()
    before = bytes(data)
    assert [copied.may_open(PEER, here, number) for number in (5, 6, 7, 9, 10)] == [False, False, True, False, True]
    copied.mark(PEER, here, 7)
    assert not copied.may_open(PEER, here, 7) and windows.may_open(PEER, here, 7) and bytes(data) == before
