"""Signals as events of a selector: none is lost in a storm of others, and a storm is one event."""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Iterator

import pytest

from pipeline.supervisor.control.signals import Signals

HANGUP, FIRST, SECOND = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2


class Loop:
    def __init__(self) -> None:
        self.handled: list[int] = []
        self.selector = selectors.DefaultSelector()
        self.signals = Signals((HANGUP, FIRST, SECOND), (HANGUP,), self.handled.append, self.selector)

    def serve(self) -> None:
        while events := self.selector.select(0):
            for key, _ in events:
                key.data()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.signals.close()
    made.selector.close()


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_signals_are_handled_in_the_loop_in_their_order(loop: Loop) -> None:
    send(FIRST, SECOND, FIRST)
    assert loop.handled == []
    loop.serve()
    assert loop.handled == [FIRST, SECOND, FIRST]


def test_a_storm_of_a_merged_signal_is_one_event_and_hides_no_other(loop: Loop) -> None:
    """A thousand bytes do not fit into the buffer of the wake-up descriptor."""
    send(*[HANGUP] * 1000, FIRST, *[HANGUP] * 1000)
    loop.serve()
    assert loop.handled == [HANGUP, FIRST]
    send(HANGUP)
    loop.serve()
    assert loop.handled == [HANGUP, FIRST, HANGUP]


def test_the_handlers_and_the_descriptor_of_before_are_back_after_the_end() -> None:
    before = {number: signal.getsignal(number) for number in (HANGUP, FIRST, SECOND)}
    loop = Loop()
    loop.signals.close()
    assert not loop.selector.get_map()
    loop.selector.close()
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(-1) == -1
