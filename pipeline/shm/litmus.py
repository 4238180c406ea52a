"""The litmus test: whether this machine keeps the orders that docs/memory-order.md relies on, with the fences we have.

    run(seconds)    two processes on two processors; each test of TESTS has a share of the time
    check_start()   briefly, before a start on a machine that needs fences

A test has two sides, which do not wait for each other. They store numbers that only grow, and load those of the other
side. So each round of one side meets some round of the other, and what it must have seen can be told. The loads and
stores are those of the data path, items of "Q" views, and the fences are its fences.

A machine that orders too little fails within some million rounds as a rule. No number of rounds proves that it never
will. *Bare* rounds are without a fence: where some of them have failed, the test can see what a fence prevents.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.shm import layout, memory_order
from pipeline.shm.doorbell import FENCE_PAIR
from pipeline.shm.ring import Ring, StageView
from pipeline.shm.segment import Segment

START_SECONDS = 0.5  # of the test at a start
WAIT_SECONDS = 30.0  # for the other process, on a machine that is busy with other things
ROUNDS_BETWEEN_LOOKS = 256  # at the clock

Words = memoryview
"""Of the test, which both sides have mapped. Zeros at first."""

Counts = tuple[int, int]
"""Rounds in which the order could be told, and those of them in which it was wrong."""


class Outcome(NamedTuple):
    name: str
    rounds: int
    failures: int


class Run(NamedTuple):
    fenced: list[Outcome]  # none may have a failure
    bare: list[Outcome]  # of tests with a fence that is something on this machine
    pairs: list[tuple[int, int]]  # of processors; empty: there is only one, and nothing was tested
    seconds: float


# -- the sides: a store that is to come first, in one process, and the process that looks for it


LINE = layout.CURSOR_STRIDE // 8  # words: what stands so far apart is in different cache lines
_FLAG = 0
_PLACES = [LINE * line for line in range(1, 65)]


def _rounds(deadline_ns: int) -> Iterator[range]:
    """Numbers of rounds from 1 on, a stretch at a time, until the time is over."""
    first = 1
    while time.monotonic_ns() < deadline_ns:
        yield range(first, first + ROUNDS_BETWEEN_LOOKS)
        first += ROUNDS_BETWEEN_LOOKS


def _store_message(words: Words, deadline_ns: int, is_fenced: bool) -> None:
    """Data, fence, flag: as a cursor after its slot."""
    places, mask, fence = _PLACES, len(_PLACES) - 1, _fence(is_fenced)
    for numbers in _rounds(deadline_ns):
        for number in numbers:
            words[places[number & mask]] = number
            fence()
            words[_FLAG] = number


def _load_message(words: Words, deadline_ns: int, is_fenced: bool) -> Counts:
    """Flag, fence, data: which is that of the flag, or later."""
    places, mask, fence = _PLACES, len(_PLACES) - 1, _fence(is_fenced)
    told = failures = seen = 0
    for numbers in _rounds(deadline_ns):
        for _ in numbers:
            number = words[_FLAG]
            fence()
            failures += words[places[number & mask]] < number
            told += number != seen
            seen = number
    return told, failures


def _store_version(words: Words, deadline_ns: int, is_fenced: bool) -> None:
    """Odd version, fence, data, fence, even version: as routes and keys."""
    places, fence = _PLACES[:4], _fence(is_fenced)
    version = 0
    for numbers in _rounds(deadline_ns):
        for _ in numbers:
            words[_FLAG] = version + 1
            fence()
            version += 2
            for place in places:
                words[place] = version
            fence()
            words[_FLAG] = version
            for _ in places:
                pass  # a reader needs a moment without a writer


def _load_version(words: Words, deadline_ns: int, is_fenced: bool) -> Counts:
    """Version, fence, data, fence, version: if it was even, and is still there, the data are of that version."""
    first, second, third, fourth = _PLACES[:4]
    fence = _fence(is_fenced)
    told = failures = 0
    for numbers in _rounds(deadline_ns):
        for _ in numbers:
            version = words[_FLAG]
            fence()
            found = words[fourth], words[third], words[second], words[first]
            fence()
            if not version & 1 and words[_FLAG] == version:
                told += 1
                failures += found != (version, version, version, version)
    return told, failures


_RING = 2, 4, layout.CACHE_LINE  # members, slots, bytes of a slot
_LAST = layout.CACHE_LINE // 8 - 1


@contextmanager
def _slots(memory: Segment) -> Iterator[tuple[Ring, list[memoryview]]]:
    """A ring in the memory of the test, and the words of its slots."""
    ring = Ring(memory, *_RING)
    slots = [slot.cast("Q") for slot in ring.slots]
    try:
        yield ring, slots
    finally:
        for view in (*slots, *ring.slots, ring.cursors):
            view.release()


def _fill_ring(memory: Segment, deadline_ns: int) -> None:
    """Stage 0 of a ring. A slot that it fills too early shows the last stage a later number."""
    number = 0
    with _slots(memory) as (ring, slots):
        view = StageView(ring, 0, [1], first=True)
        for numbers in _rounds(deadline_ns):
            for _ in numbers:
                if view.ready():
                    number += 1
                    slot = slots[view.index()]
                    slot[_LAST] = slot[0] = number
                    view.advance(1)


def _empty_ring(memory: Segment, deadline_ns: int) -> Counts:
    """The last stage."""
    number = failures = 0
    with _slots(memory) as (ring, slots):
        view = StageView(ring, 1, [0])
        for numbers in _rounds(deadline_ns):
            for _ in numbers:
                if view.ready():
                    number += 1
                    slot = slots[view.index()]
                    failures += slot[_LAST] != number or slot[0] != number
                    view.advance(1)
    return number, failures


BATCH = 50_000  # rounds, until what both have seen is compared
_SLEEPER, _KICKER, _SLEEPER_MEETS, _KICKER_MEETS, _CONTESTED = (LINE * line for line in range(5))
_SEEN = _CONTESTED + LINE


def _sleep(words: Words, deadline_ns: int, is_fenced: bool) -> None:
    """Own flag, fence, the other's flag: as a doorbell. It leaves what it has seen in the memory, a batch at a time."""
    seen = array("Q", bytes(8 * BATCH))
    for base in range(0, sys.maxsize, BATCH):
        if not _meet(words, _SLEEPER_MEETS, _KICKER_MEETS, deadline_ns):
            return
        _store_and_load(words, _SLEEPER, _KICKER, base, seen, is_fenced)
        words[_SEEN : _SEEN + BATCH] = memoryview(seen)
        if not _meet(words, _SLEEPER_MEETS, _KICKER_MEETS, deadline_ns):
            return


def _kick(words: Words, deadline_ns: int, is_fenced: bool) -> Counts:
    """The other side. Of two rounds, one of each side, at most one may have missed the store of the other."""
    told = failures = 0
    seen = array("Q", bytes(8 * BATCH))
    for base in range(0, sys.maxsize, BATCH):
        if not _meet(words, _KICKER_MEETS, _SLEEPER_MEETS, deadline_ns):
            break
        _store_and_load(words, _KICKER, _SLEEPER, base, seen, is_fenced)
        if not _meet(words, _KICKER_MEETS, _SLEEPER_MEETS, deadline_ns):
            break
        theirs = words[_SEEN : _SEEN + BATCH].tolist()
        for index, number in enumerate(seen):
            missed = max(number - base, 0)  # the index of their first round whose store this one has missed
            if missed < BATCH:
                told += 1
                failures += theirs[missed] < base + index + 1
    return told, failures


def _store_and_load(words: Words, own: int, other: int, base: int, seen: array[int], is_fenced: bool) -> None:
    """A round's number is base + index + 1. The store is behind one to a line that the other side has: so it waits."""
    acquire, release = FENCE_PAIR
    if not is_fenced:
        for index in range(BATCH):
            words[_CONTESTED] = index
            words[own] = base + index + 1
            seen[index] = words[other]
        return
    for index in range(BATCH):
        words[_CONTESTED] = index
        words[own] = base + index + 1
        acquire()
        release()
        seen[index] = words[other]


def _meet(words: Words, own: int, other: int, deadline_ns: int) -> bool:
    """Both sides are here, or False: the time is over."""
    memory_order.fence()
    words[own] += 1
    while words[other] < words[own]:
        if time.monotonic_ns() >= deadline_ns:
            return False
    memory_order.fence()
    return True


def _fence(is_fenced: bool) -> Callable[[], object]:
    return memory_order.fence if is_fenced else memory_order.nothing


# -- the tests


class Test(NamedTuple):
    """`is_bare`: it is also made without its fence, which is something on this machine."""

    name: str
    other: Callable[[Segment, int, bool], None]  # in the other process
    here: Callable[[Segment, int, bool], Counts]
    is_bare: bool


def _with_words(
    other: Callable[[Words, int, bool], None], here: Callable[[Words, int, bool], Counts]
) -> tuple[Callable[[Segment, int, bool], None], Callable[[Segment, int, bool], Counts]]:
    def other_side(memory: Segment, deadline_ns: int, is_fenced: bool) -> None:
        with memory.cut_words(layout.MAP_PAGE, TEST_WORDS) as words:
            other(words, deadline_ns, is_fenced)

    def this_side(memory: Segment, deadline_ns: int, is_fenced: bool) -> Counts:
        with memory.cut_words(layout.MAP_PAGE, TEST_WORDS) as words:
            return here(words, deadline_ns, is_fenced)

    return other_side, this_side


TESTS = (
    Test("cursor after slot", *_with_words(_store_message, _load_message), memory_order.REORDERS),
    Test("ring", lambda m, until, _: _fill_ring(m, until), lambda m, until, _: _empty_ring(m, until), False),
    Test("version around data", *_with_words(_store_version, _load_version), memory_order.REORDERS),
    Test("flag before look", *_with_words(_sleep, _kick), True),
)
TURNS = [(test, is_fenced) for test in TESTS for is_fenced in ((True, False) if test.is_bare else (True,))]

# the first page has the turns, the memory of the tests follows
_TURN, _BEGIN_NS, _PRESENT, _ENDED = 0, 1, LINE, LINE + 1  # words; the last two are the other side's
TEST_WORDS = max(_SEEN + BATCH, _PLACES[-1] + 1, (layout.ring_bytes(*_RING) - layout.MAP_PAGE) // 8)
MEMORY_BYTES = layout.MAP_PAGE + 8 * TEST_WORDS


def check_start() -> None:
    """LocalError if this machine does not keep the order of some rounds.

    A machine on which it cannot be tested now, with one processor or without memory for a process, is none of those.
    """
    try:
        made = run(START_SECONDS)
    except (LocalError, OSError):
        return
    failed = [outcome for outcome in made.fenced if outcome.failures]
    if failed:
        raise LocalError(
            f"this machine does not keep the order of loads and stores, in spite of fences: {describe(failed)}. "
            "Report it, with `tunnel-supervisor doctor --litmus`"
        )


def describe(outcomes: Iterable[Outcome]) -> str:
    """The rounds and failures of each, for people."""
    return ", ".join(f"{each.name}: {each.failures} of {each.rounds} rounds" for each in outcomes)


def run(seconds: float, processors: Sequence[int] | None = None) -> Run:
    """LocalError if the other process ends or hangs. `processors`: by default all that this process may use."""
    allowed = os.sched_getaffinity(0)
    pairs = choose_pairs(sorted(allowed) if processors is None else processors)
    counts = [(0, 0)] * len(TURNS)
    began = time.monotonic()
    try:
        for pair in pairs:
            for turn, (rounds, failures) in enumerate(_run_pair(pair, int(seconds * 1e9 / len(pairs) / len(TURNS)))):
                counts[turn] = counts[turn][0] + rounds, counts[turn][1] + failures
    finally:
        os.sched_setaffinity(0, allowed)
    outcomes = [(is_fenced, Outcome(test.name, *counts[turn])) for turn, (test, is_fenced) in enumerate(TURNS)]
    fenced, bare = ([each for is_fenced, each in outcomes if is_fenced is wanted] for wanted in (True, False))
    return Run(fenced, bare, pairs, time.monotonic() - began)


def choose_pairs(processors: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours may share a core; the first and the last are most often of different kinds, clusters or sockets."""
    if len(processors) < 2:
        return []
    return sorted({(processors[0], processors[1]), (processors[0], processors[-1])})


def _run_pair(pair: tuple[int, int], share_ns: int) -> list[Counts]:
    """The counts of all turns, each of `share_ns`."""
    fd = os.memfd_create("litmus", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, MEMORY_BYTES)
        with closing(Segment("litmus", fd, MEMORY_BYTES)) as memory:
            words = [sys.executable, "-I", "-m", "pipeline.shm.litmus", *map(str, (fd, share_ns, pair[1]))]
            other = subprocess.Popen(words, pass_fds=[fd], stdin=subprocess.DEVNULL)
            try:
                os.sched_setaffinity(0, {pair[0]})
                _await(other, lambda: memory.words[_PRESENT] > 0)
                return [_take_turn(memory, number, share_ns, other) for number in range(1, len(TURNS) + 1)]
            finally:
                other.kill()
                other.wait()
    finally:
        os.close(fd)


def _take_turn(memory: Segment, number: int, share_ns: int, other: subprocess.Popen[bytes]) -> Counts:
    test, is_fenced = TURNS[number - 1]
    memory.view[layout.MAP_PAGE :] = bytes(MEMORY_BYTES - layout.MAP_PAGE)
    memory.words[_BEGIN_NS] = begin_ns = time.monotonic_ns()
    memory_order.fence()
    memory.words[_TURN] = number
    counts = test.here(memory, begin_ns + share_ns, is_fenced)
    _await(other, lambda: memory.words[_ENDED] >= number)
    memory_order.fence()
    return counts


def _await(other: subprocess.Popen[bytes], has_come: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not has_come():
        has_ended = other.poll() is not None
        if has_come():  # and ended by itself behind that
            return
        if has_ended or time.monotonic() > until:
            raise LocalError("the litmus test: its other process has ended, or hangs. Try again on a quieter machine")
        time.sleep(0.001)


def _other_side(fd: int, share_ns: int, processor: int) -> None:
    parent = os.getppid()
    with suppress(OSError):  # the processor may have been taken away: then the test sees less
        os.sched_setaffinity(0, {processor})
    with closing(Segment("litmus", fd, MEMORY_BYTES)) as memory:
        memory.words[_PRESENT] = 1
        for number, (test, is_fenced) in enumerate(TURNS, 1):
            while memory.words[_TURN] < number:
                if os.getppid() != parent:
                    return
            memory_order.fence()
            test.other(memory, memory.words[_BEGIN_NS] + share_ns, is_fenced)
            memory_order.fence()
            memory.words[_ENDED] = number


if __name__ == "__main__":
    _other_side(*map(int, sys.argv[1:]))
