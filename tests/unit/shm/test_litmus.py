"""The litmus test: two processes that meet, tests that can fail, and a machine that is left as it was."""

from __future__ import annotations

import os
import sys
from array import array

import pytest

from pipeline.errors import LocalError
from pipeline.shm import layout, litmus
from pipeline.shm.litmus import Outcome, Run
from tests.harness.plain_memory import PlainMemory

SEVERAL = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or "tests.harness.other_machine" in sys.modules,
    reason="needs two processors, and another process that takes the machine for this one",
)
TIME = 1 << 62
SECONDS = 0.4


@SEVERAL
def test_two_processes_find_no_round_out_of_order_here_and_leave_the_machine_as_it_was() -> None:
    affinity, threads = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
    found = litmus.run(SECONDS)
    assert [each.name for each in found.fenced] == [test.name for test in litmus.TESTS]
    assert not any(each.failures for each in found.fenced)
    assert sum(each.rounds for each in found.fenced) > 0
    assert found.pairs and found.seconds >= SECONDS
    assert (os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))) == (affinity, threads)


@SEVERAL
def test_a_check_before_a_start_is_silent_where_all_is_in_order() -> None:
    litmus.check_start()


def test_with_one_processor_nothing_is_tested() -> None:
    found = litmus.run(SECONDS, [0])
    assert found.pairs == [] and not any(each.rounds for each in found.fenced)


@pytest.mark.parametrize(
    ("processors", "expected"),
    [([], []), ([3], []), ([0, 1], [(0, 1)]), ([0, 1, 2, 3], [(0, 1), (0, 3)]), ([2, 5, 9], [(2, 5), (2, 9)])],
    ids=str,
)
def test_neighbours_are_tested_and_the_processors_that_lie_farthest_apart(
    processors: list[int], expected: list[tuple[int, int]]
) -> None:
    assert litmus.choose_pairs(processors) == expected


def test_a_check_before_a_start_that_fails_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Run([Outcome("ring", 1000, 0), Outcome("flag before look", 500, 2)], [], [(0, 1)], 0.5)
    monkeypatch.setattr(litmus, "run", lambda seconds: made)
    with pytest.raises(LocalError, match=r"in spite of fences: flag before look: 2 of 500 rounds\. Report it"):
        litmus.check_start()


def test_another_process_that_does_not_come_ends_the_test_and_prevents_no_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(LocalError, match="its other process has ended"):
        litmus.run(SECONDS, [0, 0])
    litmus.check_start()


# -- each test fails on a memory as a machine would show it that orders too little


class Scripted:
    """Words whose loads of one place follow a script, as if another process had stored meanwhile."""

    def __init__(self, script: dict[int, list[int]]) -> None:
        self._script = script
        self._left = {place: iter(values) for place, values in script.items()}

    def __getitem__(self, place: int) -> int:
        return next(self._left[place], self._script[place][-1]) if place in self._script else 0


@pytest.fixture(autouse=True)
def one_stretch_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litmus, "_rounds", lambda deadline_ns: iter([range(1, 4)]))


def test_a_flag_that_is_seen_before_its_data_is_a_failure() -> None:
    data = litmus._PLACES[2]
    assert litmus._load_message(Scripted({0: [2], data: [2]}), TIME, True) == (1, 0)
    assert litmus._load_message(Scripted({0: [2], data: [1]}), TIME, True) == (1, 3)


def test_data_of_another_version_than_the_one_around_them_are_a_failure() -> None:
    whole = {place: [4] for place in litmus._PLACES[:4]}
    assert litmus._load_version(Scripted(whole | {0: [4]}), TIME, True) == (3, 0)
    assert litmus._load_version(Scripted(whole | {0: [4], litmus._PLACES[3]: [2]}), TIME, True) == (3, 3)
    assert litmus._load_version(Scripted(whole | {0: [5]}), TIME, True) == (0, 0)  # it is being written


@pytest.mark.parametrize("word", [0, litmus._LAST])
def test_a_slot_that_is_not_whole_when_its_cursor_is_seen_is_a_failure(word: int) -> None:
    memory = PlainMemory(layout.ring_bytes(*litmus._RING))
    slots_at = layout.ring_slots_at(litmus._RING[0]) // 8
    for number in range(3):
        for each in (0, litmus._LAST):
            memory.words[slots_at + number * layout.CACHE_LINE // 8 + each] = number + 1
    memory.words[layout.RING_CURSORS_AT // 8] = 3
    assert litmus._empty_ring(memory, TIME) == (3, 0)
    memory.words[(layout.RING_CURSORS_AT + layout.CURSOR_STRIDE) // 8] = 0
    memory.words[slots_at + layout.CACHE_LINE // 8 + word] = 6  # of the next lap: it was filled too early
    assert litmus._empty_ring(memory, TIME) == (3, 1)


def test_two_rounds_that_have_missed_each_other_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litmus, "BATCH", 3)
    met = iter([True, True, False])
    monkeypatch.setattr(litmus, "_meet", lambda *arguments: next(met))
    ours, theirs = [0, 1, 3], [1, 2, 3]

    def see(words: object, own: int, other: int, base: int, seen: array[int], is_fenced: bool) -> None:
        seen[:] = array("Q", ours)

    monkeypatch.setattr(litmus, "_store_and_load", see)
    words = memoryview(bytearray(8 * (litmus._SEEN + 3))).cast("Q")
    words[litmus._SEEN :] = memoryview(array("Q", theirs))
    assert litmus._kick(words, TIME, True) == (2, 0)
    words[litmus._SEEN] = 0  # their first round has not seen our first one, which has not seen it either
    met = iter([True, True, False])
    assert litmus._kick(words, TIME, True) == (2, 1)
