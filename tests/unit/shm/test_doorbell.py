"""The doorbell: a hint that carries no count, wakes a duty that sleeps, and leaves nothing that would mislead."""

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


class Bell:
    """A doorbell's name and sleeping flag, as the scoreboard holds it, and a plain view of its semaphore."""

    def __init__(self) -> None:
        self.name = f"/tunnel@belltest@{secrets.token_hex(4)}@bell"
        doorbell.create(self.name)
        self.flag = memoryview(bytearray(8)).cast("Q")
        self.semaphore = posix_ipc.Semaphore(self.name)

    def owner(self, spin_ns: int = 0) -> Doorbell:
        return Doorbell(self.name, self.flag, owner=True, spin_ns=spin_ns)

    def kicker(self) -> Doorbell:
        return Doorbell(self.name, self.flag, owner=False)


@pytest.fixture
def bell() -> Iterator[Bell]:
    made = Bell()
    yield made
    made.semaphore.close()
    doorbell.unlink(made.name)


def never() -> bool:
    return False


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_a_kick_to_a_duty_that_is_awake_posts_nothing(bell: Bell) -> None:
    bell.owner()
    kicker = bell.kicker()
    for _ in range(3):
        kicker.kick()
    assert bell.semaphore.value == 0


def test_a_kick_wakes_a_duty_that_sleeps(bell: Bell) -> None:
    owner, kicker = bell.owner(), bell.kicker()
    woken: list[bool] = []
    sleeper = in_thread(lambda: woken.append(owner.wait(never, LONG)))
    eventually(lambda: bell.flag[0])
    started = time.monotonic()
    kicker.kick()
    sleeper.join(LONG)
    assert woken == [True]
    assert time.monotonic() - started < LONG / 2


def test_a_wait_without_a_kick_ends_by_its_timeout(bell: Bell) -> None:
    started = time.monotonic()
    assert bell.owner().wait(never, SHORT) is False
    assert SHORT / 2 < time.monotonic() - started < LONG / 2


def test_without_sem_clockwait_a_doorbell_waits_by_a_length(bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with musl."""
    monkeypatch.setattr("pipeline.shm.semaphore._sem_clockwait", None)
    owner, kicker = bell.owner(), bell.kicker()
    assert owner.wait(never, SHORT) is False

    def nothing_yet() -> bool:
        kicker.kick()
        return False

    assert owner.wait(nothing_yet, LONG) is True


def test_a_duty_that_has_work_does_not_sleep(bell: Bell) -> None:
    started = time.monotonic()
    assert bell.owner().wait(lambda: 3, LONG) is True
    assert time.monotonic() - started < LONG / 2


def test_the_cursors_are_read_only_after_the_flag_says_asleep(bell: Bell) -> None:
    seen: list[int] = []

    def look() -> int:
        seen.append(bell.flag[0])
        return 0

    bell.owner().wait(look, SHORT)
    assert seen == [1]
    assert bell.flag[0] == 0


def test_a_kick_between_the_check_and_the_sleep_is_not_lost(bell: Bell) -> None:
    owner, kicker = bell.owner(), bell.kicker()

    def nothing_yet() -> bool:
        kicker.kick()
        return False

    started = time.monotonic()
    assert owner.wait(nothing_yet, LONG) is True
    assert time.monotonic() - started < LONG / 2


def test_kicks_do_not_add_up(bell: Bell) -> None:
    owner, kicker = bell.owner(), bell.kicker()

    def kicked_often() -> bool:
        for _ in range(50):
            kicker.kick()
        return False

    assert owner.wait(kicked_often, LONG) is True
    assert bell.semaphore.value == 0
    assert owner.wait(never, SHORT) is False


def test_kicks_to_a_duty_that_finds_work_by_itself_are_swept_away(bell: Bell) -> None:
    owner, kicker = bell.owner(), bell.kicker()

    def kicked_and_ready() -> bool:
        kicker.kick()
        return True

    assert owner.wait(kicked_and_ready, LONG) is True
    assert bell.semaphore.value == 0


def test_a_duty_that_died_asleep_costs_its_successor_one_idle_turn_at_most(bell: Bell) -> None:
    bell.owner()
    kicker = bell.kicker()
    bell.flag[0] = 1  # it died in its sleep
    for _ in range(7):
        kicker.kick()
    successor = bell.owner()
    assert bell.flag[0] == 0
    kicker.kick()
    assert bell.semaphore.value == 7
    assert successor.wait(never, LONG) is True
    assert bell.semaphore.value == 0
    assert successor.wait(never, SHORT) is False


def test_a_kicker_never_writes_the_flag(bell: Bell) -> None:
    bell.flag[0] = 1
    kicker = bell.kicker()
    kicker.kick()
    assert bell.flag[0] == 1


def test_a_signal_ends_a_wait_and_its_handler_has_run(bell: Bell) -> None:
    owner = bell.owner()
    handled: list[int] = []
    main = threading.get_ident()
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:

        def disturb() -> None:
            eventually(lambda: bell.flag[0])
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
    assert bell.flag[0] == 0


def test_a_duty_that_spins_finds_work_without_going_to_sleep(bell: Bell) -> None:
    owner = bell.owner(doorbell.IDLE_SPIN_NS["spin"])
    words: list[int] = []

    def ready_at_the_fifth_look() -> bool:
        words.append(bell.flag[0])
        return len(words) == 5

    assert owner.wait(ready_at_the_fifth_look, LONG) is True
    assert words == [0] * 5


def test_a_duty_that_only_spins_stops_at_its_timeout(bell: Bell) -> None:
    started = time.monotonic()
    assert bell.owner(doorbell.IDLE_SPIN_NS["spin"]).wait(never, SHORT) is False
    assert SHORT / 2 < time.monotonic() - started < LONG / 2


def test_a_duty_that_spins_first_sleeps_afterwards_and_can_be_woken(bell: Bell) -> None:
    owner, kicker = bell.owner(doorbell.IDLE_SPIN_NS["spin-then-block"]), bell.kicker()
    woken: list[bool] = []
    sleeper = in_thread(lambda: woken.append(owner.wait(never, LONG)))
    eventually(lambda: bell.flag[0])
    kicker.kick()
    sleeper.join(LONG)
    assert woken == [True]


def test_every_idle_strategy_has_its_time_of_polling() -> None:
    assert doorbell.IDLE_SPIN_NS["block"] == 0
    assert doorbell.IDLE_SPIN_NS["block"] < doorbell.IDLE_SPIN_NS["spin-then-block"] < doorbell.IDLE_SPIN_NS["spin"]


def test_two_duties_that_kick_each_other_never_wait_for_a_timeout(bell: Bell) -> None:
    """A thousand turns: one lost wake-up each would take LONG each."""
    turns = 1000
    other = Bell()
    try:
        turn = [0, 0]

        def play(me: int, own: Doorbell, theirs: Doorbell) -> None:
            for number in range(turns):
                while turn[1 - me] < number + me:
                    own.wait(lambda: turn[1 - me] >= number + me, LONG)
                turn[me] = number + 1
                theirs.kick()

        started = time.monotonic()
        second = in_thread(lambda: play(1, other.owner(), bell.kicker()))
        play(0, bell.owner(), other.kicker())
        second.join(LONG)
        assert turn == [turns, turns]
        assert time.monotonic() - started < LONG / 2
    finally:
        other.semaphore.close()
        doorbell.unlink(other.name)


def test_a_doorbell_that_is_gone_is_refused(bell: Bell) -> None:
    doorbell.unlink(bell.name)
    with pytest.raises(LocalError, match=f"{bell.name}: expected, not found: it was removed"):
        bell.kicker()


def test_a_name_that_is_in_use_is_refused(bell: Bell) -> None:
    with pytest.raises(LocalError, match=f"{bell.name}: cannot be created"):
        doorbell.create(bell.name)


def test_removing_a_name_twice_is_no_error(bell: Bell) -> None:
    doorbell.unlink(bell.name)
    doorbell.unlink(bell.name)


@ROOT_ONLY
def test_a_doorbell_of_another_user_is_refused_in_words(bell: Bell) -> None:
    os.seteuid(NOBODY)
    try:
        with pytest.raises(LocalError, match=bell.name):
            bell.kicker()
    finally:
        os.seteuid(0)
