"""The spares of an instance: one of each kind, taken once, replaced when they die, gone when they are not wanted."""

from __future__ import annotations

import logging
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.policy.spare_schedule import BACKOFF_MIN
from pipeline.runtime.assignment import FORMAT
from pipeline.supervisor.processes.precedence import SPARE_NICE, Precedence
from pipeline.supervisor.processes.spare import SpareState
from pipeline.supervisor.processes.spares import Spares
from tests.support import eventually

SECOND = 1_000_000_000
WAITS = f'printf "%s" "{FORMAT.decode()}" >&"$channel"; exec sleep 60'
KINDS = ("tcp", "tun")

Make = Callable[..., "Instance"]
Serve = Callable[[selectors.BaseSelector], None]


class Instance:
    """The loop of a supervisor that has nothing but spares, at a clock that the test moves."""

    def __init__(self, serve: Serve, enabled: bool = True) -> None:
        self.serve = serve
        self.selector = selectors.DefaultSelector()
        self.spares = Spares(["tcp", "tcp", "tun"], "client", enabled, self.selector, Precedence())
        self.now = 1_000 * SECOND

    def step(self, seconds: float = 0.1, calm: bool = True) -> None:
        self.now += int(seconds * SECOND)
        self.spares.tick(calm, self.now)
        self.serve(self.selector)

    def waiting(self) -> list[str]:
        return [row["kind"] for row in self.spares.rows() if row["state"] == "waiting"]

    def until(self, condition: Callable[[], bool], step: float = 0.1) -> None:
        def holds() -> bool:
            self.step(step)
            return condition()

        eventually(holds)

    def until_waiting(self, *kinds: str) -> None:
        self.until(lambda: self.waiting() == list(kinds))

    def close(self) -> None:
        self.spares.discard()
        self.selector.close()


@pytest.fixture
def make(interpreter: Callable[[str], None], serve: Serve) -> Iterator[Make]:
    interpreter(WAITS)
    made: list[Instance] = []

    def instance(**settings: bool) -> Instance:
        made.append(Instance(serve, **settings))
        return made[-1]

    yield instance
    for each in made:
        each.close()
    assert psutil.Process().children() == []


def test_there_is_one_spare_of_each_kind_and_one_worker_takes_it(make: Make) -> None:
    instance = make()
    instance.until_waiting(*KINDS)
    pids = {row["kind"]: row["pid"] for row in instance.spares.rows()}
    taken = instance.spares.take("tcp")
    assert (taken.pid, taken.state) == (pids["tcp"], SpareState.WAITING)
    assert instance.waiting() == ["tun"]
    other = instance.spares.take("tcp")
    assert other.pid not in pids.values() and other.state is SpareState.IMPORTING
    for spare in (taken, other):
        assert spare.pidfd not in instance.selector.get_map()
        spare.send(signal.SIGKILL)
        spare.reap()
    instance.until_waiting("tun", "tcp")


def memory_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_spare_comes_after_workers_until_it_is_taken(make: Make) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may take its priority back")
    instance = make()
    instance.until_waiting(*KINDS)
    pids = [row["pid"] for row in instance.spares.rows()]
    own = memory_score(os.getpid())
    nice = max(SPARE_NICE, os.getpriority(os.PRIO_PROCESS, 0))
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [nice, nice]
    assert [memory_score(pid) for pid in pids] == [min(1000, own + 500)] * 2
    taken = instance.spares.take("tun")
    assert os.getpriority(os.PRIO_PROCESS, taken.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert memory_score(taken.pid) == own
    taken.send(signal.SIGKILL)
    taken.reap()


def test_a_spare_that_dies_is_replaced_after_a_while(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    instance = make()
    instance.until_waiting(*KINDS)
    os.kill(instance.spares.rows()[0]["pid"], signal.SIGKILL)
    instance.until(lambda: instance.waiting() == ["tun"], step=0)
    assert "a spare of kind tcp has died" in caplog.text
    died = instance.now
    instance.until_waiting("tun", "tcp")
    assert instance.now - died >= BACKOFF_MIN * SECOND


def test_a_spare_that_died_a_moment_ago_is_not_taken(make: Make) -> None:
    instance = make()
    instance.until_waiting(*KINDS)
    dead = instance.spares.rows()[0]["pid"]
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: psutil.Process(dead).status() == psutil.STATUS_ZOMBIE)
    taken = instance.spares.take("tcp")
    assert taken.pid != dead
    taken.send(signal.SIGKILL)
    taken.reap()


def test_a_spare_of_another_program_is_ended_and_said(
    make: Make, interpreter: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    interpreter('printf "format 1.00000000" >&"$channel"; exec sleep 60')
    instance = make()
    instance.until(lambda: "does not fit this run" in caplog.text)
    assert instance.waiting() == []


def test_a_spare_that_cannot_be_started_is_a_warning_and_tried_again_later(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instance = make()
    with monkeypatch.context() as broken:
        broken.setattr("sys.executable", "/nonexistent/python")
        for _ in range(30):
            instance.step()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"a spare of kind {kind} cannot be started: No such file or directory" for kind in KINDS]
    instance.step(BACKOFF_MIN)
    instance.until_waiting(*KINDS)


def test_no_spare_is_kept_where_none_is_wanted_and_a_command_gets_one_all_the_same(make: Make) -> None:
    instance = make(enabled=False)
    for _ in range(50):
        instance.step()
    assert instance.spares.rows() == []
    instance.spares.prepare("tun")
    instance.spares.prepare("tun")
    instance.until(lambda: instance.spares.is_waiting("tun"))
    assert len(instance.spares.rows()) == 1
    instance.spares.enable(True)
    instance.until_waiting("tun", "tcp")
    instance.spares.enable(False)
    assert instance.spares.rows() == [] and psutil.Process().children() == []
