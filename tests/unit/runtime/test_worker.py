"""The loop of a duty, and its end, with duties that do as they are told."""

from __future__ import annotations

import itertools
from typing import cast

import pytest

from pipeline.runtime import worker
from pipeline.runtime.port import Port
from pipeline.runtime.worker import DONE, NOTHING, Stop, loop

LONG_SECONDS = 60.0


class ScriptedDuty:
    """Finds work so many times; `asked`: how often it was asked whether it has drained."""

    def __init__(self, name: str, busy: float, stop: Stop) -> None:
        self.name = name
        self.steps = itertools.count(1)
        self.taken = self.asked = 0
        self._busy = busy
        self._stop = stop

    def work(self) -> int:
        self.taken = next(self.steps)
        if self.taken == 10:  # a while after the end of the other duty
            self._stop.outbound_ended = True
        assert self.taken < 1000, "the duty does not end"
        return DONE if self.taken <= self._busy else NOTHING

    def wait(self, seconds: float) -> None:
        """Something to do arrives at once."""

    def drained(self) -> bool:
        self.asked += 1
        return True


def run(name: str, busy: float) -> ScriptedDuty:
    stop = Stop()
    stop.request(LONG_SECONDS)
    duty = ScriptedDuty(name, busy, stop)
    loop(duty, memoryview(bytearray(8)).cast("Q"), stop)
    return duty


def test_an_inbound_duty_that_always_has_something_to_do_ends_with_the_outbound_duty() -> None:
    assert run("inbound", busy=float("inf")).taken == 10


def test_an_outbound_duty_first_does_all_that_there_is_to_do() -> None:
    assert run("outbound", busy=25).taken == 26


def test_a_duty_that_has_nothing_to_do_and_has_drained_ends() -> None:
    duty = run("inbound", busy=3)
    assert duty.taken == 4 and duty.asked == 1


class CountedPort:
    """How often its cursor was put right."""

    count = 0

    def put_right(self) -> None:
        self.count += 1


@pytest.mark.parametrize(("interval_ns", "expected"), [(worker.LOOK_NS, 1), (0, 26)])
def test_the_cursors_of_a_duty_are_put_right_at_its_start_and_then_once_in_an_interval(
    monkeypatch: pytest.MonkeyPatch, interval_ns: int, expected: int
) -> None:
    monkeypatch.setattr(worker, "LOOK_NS", interval_ns)
    monkeypatch.setattr(worker.time, "monotonic_ns", lambda: 1)
    stop, port = Stop(), CountedPort()
    stop.request(LONG_SECONDS)
    loop(ScriptedDuty("outbound", 25, stop), memoryview(bytearray(8)).cast("Q"), stop, [cast("Port", port)])
    assert port.count == expected
