"""The doorbell: a hint that carries no count, wakes who sleeps, and leaves nothing behind that would mislead."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator

import posix_ipc
import pytest

from pipeline.errors import LocalError
from pipeline.shm import doorbell
from pipeline.shm.doorbell import Doorbell
from tests.support import eventually

LONG = 20.0  # a wait that is expected to end early
SHORT = 0.02  # a wait that is expected to run out

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user id")
NOBODY = 65534


class Door:
    """A doorbell's name and word, as the board holds it, and a plain view of its semaphore."""

    def __init__(self) -> None:
        self.name = f"/tunnel@belltest@{secrets.token_hex(4)}@bell"
        doorbell.create(self.name)
        self.word = memoryview(bytearray(8)).cast("Q")
        self.semaphore = posix_ipc.Semaphore(self.name)

    def owner(self, spin_ns: int = 0) -> Doorbell:
        return Doorbell(self.name, self.word, owner=True, spin_ns=spin_ns)

    def visitor(self) -> Doorbell:
        return Doorbell(self.name, self.word, owner=False)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.semaphore.close()
    doorbell.unlink(made.name)


def never() -> bool:
    return False


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_a_kick_to_a_duty_that_is_awake_posts_nothing(door: Door) -> None:
    door.owner()
    visitor = door.visitor()
    for _ in range(3):
        visitor.kick()
    assert door.semaphore.value == 0


def test_a_kick_wakes_a_duty_that_sleeps(door: Door) -> None:
    owner, visitor = door.owner(), door.visitor()
    woken: list[bool] = []
    sleeper = in_thread(lambda: woken.append(owner.wait(never, LONG)))
    eventually(lambda: door.word[0])
    started = time.monotonic()
    visitor.kick()
    sleeper.join(LONG)
    assert woken == [True]
    assert time.monotonic() - started < LONG / 2


def test_a_wait_without_a_kick_ends_by_its_timeout(door: Door) -> None:
    started = time.monotonic()
    assert door.owner().wait(never, SHORT) is False
    assert SHORT / 2 < time.monotonic() - started < LONG / 2


def test_a_duty_that_has_work_does_not_sleep(door: Door) -> None:
    started = time.monotonic()
    assert door.owner().wait(lambda: 3, LONG) is True
    assert time.monotonic() - started < LONG / 2


def test_the_cursors_are_looked_at_only_after_the_word_says_asleep(door: Door) -> None:
    seen: list[int] = []
    door.owner().wait(lambda: seen.append(door.word[0]), SHORT)
    assert seen == [1]
    assert door.word[0] == 0


def test_a_kick_between_the_look_and_the_sleep_is_not_lost(door: Door) -> None:
    owner, visitor = door.owner(), door.visitor()

    def nothing_yet() -> bool:
        visitor.kick()
        return False

    started = time.monotonic()
    assert owner.wait(nothing_yet, LONG) is True
    assert time.monotonic() - started < LONG / 2


def test_kicks_do_not_add_up(door: Door) -> None:
    owner, visitor = door.owner(), door.visitor()

    def kicked_often() -> bool:
        for _ in range(50):
            visitor.kick()
        return False

    assert owner.wait(kicked_often, LONG) is True
    assert door.semaphore.value == 0
    assert owner.wait(never, SHORT) is False


def test_kicks_to_a_duty_that_finds_work_by_itself_are_swept_away(door: Door) -> None:
    owner, visitor = door.owner(), door.visitor()

    def kicked_and_ready() -> bool:
        visitor.kick()
        return True

    assert owner.wait(kicked_and_ready, LONG) is True
    assert door.semaphore.value == 0


def test_a_duty_that_died_asleep_leaves_its_successor_one_idle_look_at_most(door: Door) -> None:
    door.owner()
    visitor = door.visitor()
    door.word[0] = 1  # it died in its sleep
    for _ in range(7):
        visitor.kick()
    successor = door.owner()
    assert door.word[0] == 0
    visitor.kick()
    assert door.semaphore.value == 7
    assert successor.wait(never, LONG) is True
    assert door.semaphore.value == 0
    assert successor.wait(never, SHORT) is False


def test_a_visitor_never_touches_the_word(door: Door) -> None:
    door.word[0] = 1
    visitor = door.visitor()
    visitor.kick()
    assert door.word[0] == 1


def test_a_signal_ends_a_wait_and_its_handler_has_run(door: Door) -> None:
    owner = door.owner()
    handled: list[int] = []
    main = threading.get_ident()
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:

        def disturb() -> None:
            eventually(lambda: door.word[0])
            while not handled:
                signal.pthread_kill(main, signal.SIGUSR1)
                threading.Event().wait(SHORT)

        disturber = in_thread(disturb)
        started = time.monotonic()
        assert owner.wait(never, LONG) is False
        assert time.monotonic() - started < LONG / 2
        assert handled
        disturber.join(LONG)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert door.word[0] == 0


def test_a_duty_that_spins_finds_work_without_going_to_sleep(door: Door) -> None:
    owner = door.owner(doorbell.IDLE_SPIN_NS["spin"])
    words: list[int] = []

    def ready_at_the_fifth_look() -> bool:
        words.append(door.word[0])
        return len(words) == 5

    assert owner.wait(ready_at_the_fifth_look, LONG) is True
    assert words == [0] * 5


def test_a_duty_that_only_spins_stops_at_its_timeout(door: Door) -> None:
    started = time.monotonic()
    assert door.owner(doorbell.IDLE_SPIN_NS["spin"]).wait(never, SHORT) is False
    assert SHORT / 2 < time.monotonic() - started < LONG / 2


def test_a_duty_that_spins_first_sleeps_afterwards_and_can_be_woken(door: Door) -> None:
    owner, visitor = door.owner(doorbell.IDLE_SPIN_NS["spin-then-block"]), door.visitor()
    woken: list[bool] = []
    sleeper = in_thread(lambda: woken.append(owner.wait(never, LONG)))
    eventually(lambda: door.word[0])
    visitor.kick()
    sleeper.join(LONG)
    assert woken == [True]


def test_every_idle_strategy_has_its_time_of_looking() -> None:
    assert doorbell.IDLE_SPIN_NS["block"] == 0
    assert doorbell.IDLE_SPIN_NS["block"] < doorbell.IDLE_SPIN_NS["spin-then-block"] < doorbell.IDLE_SPIN_NS["spin"]


def test_two_duties_that_kick_each_other_never_wait_for_a_timeout(door: Door) -> None:
    """A thousand turns: one lost wake-up each would take LONG each."""
    turns = 1000
    other = Door()
    try:
        turn = [0, 0]

        def play(me: int, own: Doorbell, theirs: Doorbell) -> None:
            for number in range(turns):
                while turn[1 - me] < number + me:
                    own.wait(lambda: turn[1 - me] >= number + me, LONG)
                turn[me] = number + 1
                theirs.kick()

        started = time.monotonic()
        second = in_thread(lambda: play(1, other.owner(), door.visitor()))
        play(0, door.owner(), other.visitor())
        second.join(LONG)
        assert turn == [turns, turns]
        assert time.monotonic() - started < LONG / 2
    finally:
        other.semaphore.close()
        doorbell.unlink(other.name)


def test_a_doorbell_that_is_gone_is_refused(door: Door) -> None:
    doorbell.unlink(door.name)
    with pytest.raises(LocalError, match=f"{door.name}: expected, not there; something removed it"):
        door.visitor()


def test_a_name_that_is_taken_is_refused(door: Door) -> None:
    with pytest.raises(LocalError, match=f"{door.name}: cannot be created"):
        doorbell.create(door.name)


def test_removing_a_name_twice_is_no_error(door: Door) -> None:
    doorbell.unlink(door.name)
    doorbell.unlink(door.name)


@ROOT_ONLY
def test_a_doorbell_of_another_user_is_refused_in_words(door: Door) -> None:
    os.seteuid(NOBODY)
    try:
        with pytest.raises(LocalError, match=door.name):
            door.visitor()
    finally:
        os.seteuid(0)
