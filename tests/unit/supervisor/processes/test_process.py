"""The process of a worker: it takes over a spare, is pinned, signalled and reaped."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable

import pytest

from pipeline.runtime.plan import WorkerPlan
from pipeline.supervisor.processes.process import Process, raise_descriptor_limit
from pipeline.supervisor.processes.spare import Spare

TUN = WorkerPlan("tun-0", "tun", 0, 0, {})


@pytest.fixture
def running(interpreter: Callable[[str], None]) -> Callable[..., Process]:
    """Makes a worker's process that does nothing."""
    interpreter("exec sleep 60")

    def make(*cores: int) -> Process:
        process = Process(TUN, list(cores))
        process.adopt(Spare("tun", "client"))
        process.assign(1, {"plan": 0})
        return process

    return make


def end(process: Process) -> int:
    process.send(signal.SIGKILL)
    return process.reap()


def test_a_killed_process_is_reaped_with_the_signal_that_ended_it(running: Callable[..., Process]) -> None:
    process = running()
    assert process.pid
    assert end(process) == -signal.SIGKILL
    assert process.pid == 0


def test_a_process_that_ends_by_itself_is_reaped_with_its_exit_status(interpreter: Callable[[str], None]) -> None:
    interpreter("exit 5")
    process = Process(TUN, [])
    process.adopt(Spare("tun", "client"))
    assert process.reap() == 5


def test_a_process_is_pinned_to_its_cores_when_it_becomes_a_worker(running: Callable[..., Process]) -> None:
    core = min(os.sched_getaffinity(0))
    process = running(core)
    try:
        assert os.sched_getaffinity(process.pid) == {core}
    finally:
        end(process)


def test_a_core_that_is_not_there_does_not_keep_a_process_from_running(running: Callable[..., Process]) -> None:
    process = running(4095)
    assert process.pid
    end(process)


def test_a_process_that_was_reaped_gets_no_signal(running: Callable[..., Process]) -> None:
    process = running()
    end(process)
    process.send(signal.SIGKILL)
    assert process.pid == 0


def test_a_reaped_process_has_a_successor(running: Callable[..., Process]) -> None:
    process = running()
    end(process)
    process.adopt(Spare("tun", "client"))
    assert process.pid
    assert end(process) == -signal.SIGKILL


def test_the_limit_of_descriptors_is_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
