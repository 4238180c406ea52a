"""The process of a worker: what it inherits, how it is signalled and reaped, what it uses."""

from __future__ import annotations

import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.runtime.plan import WorkerPlan
from pipeline.supervisor.process import Process, raise_descriptor_limit

TUN = WorkerPlan("tun-0", "tun", 0, 0, {})
SECONDS = 20.0


@pytest.fixture
def plan_fd() -> Iterator[int]:
    """A plan that no worker can read: a worker that is started with it ends with an exit status."""
    fd = os.memfd_create("plan")
    yield fd
    os.close(fd)


@pytest.fixture
def dead(plan_fd: int) -> Process:
    """A worker process that has been started, was killed and reaped."""
    process = Process(TUN, [])
    process.spawn(plan_fd, {})
    process.send(signal.SIGKILL)
    process.reap()
    return process


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets a shell script as the interpreter that workers are started with."""

    def set_interpreter(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(path))

    return set_interpreter


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], SECONDS)[0])


def test_a_killed_process_is_reaped_with_the_signal_that_ended_it(plan_fd: int) -> None:
    process = Process(TUN, [])
    process.spawn(plan_fd, {})
    assert process.pid
    process.send(signal.SIGKILL)
    assert process.reap() == -signal.SIGKILL
    assert (process.pid, process.pidfd, process.ready_fd) == (0, -1, -1)


def test_a_process_that_ends_by_itself_is_reaped_with_its_exit_status(plan_fd: int) -> None:
    process = Process(TUN, [])
    process.spawn(plan_fd, {})
    assert readable(process.pidfd)
    assert process.reap() == 1


def test_a_process_that_ends_before_it_is_ready_is_not_taken_for_ready(plan_fd: int) -> None:
    process = Process(TUN, [])
    process.spawn(plan_fd, {})
    assert readable(process.ready_fd)
    assert not process.read_readiness()
    assert process.ready_fd == -1
    process.reap()


def test_a_process_inherits_its_descriptors_and_learns_them_as_options(
    plan_fd: int, tmp_path: Path, interpreter: Callable[[str], None]
) -> None:
    interpreter(f'echo "$@" > {tmp_path}/words; ls /proc/self/fd > {tmp_path}/fds')
    process = Process(TUN, [])
    with open(os.devnull) as file:
        process.spawn(plan_fd, {"tun-fd": file.fileno()})
        assert process.reap() == 0
        words = (tmp_path / "words").read_text().split()
        options = dict(pairwise(words))
        assert options["--tun-fd"] == str(file.fileno())
    assert (options["--plan-fd"], options["--parent"]) == (str(plan_fd), str(os.getpid()))
    assert {options[f"--{name}-fd"] for name in ("plan", "ready", "tun")} <= set((tmp_path / "fds").read_text().split())


def test_a_process_that_cannot_be_spawned_leaves_no_descriptor(plan_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Process(TUN, []).spawn(plan_fd, {})
    assert os.listdir("/proc/self/fd") == before


def test_a_process_is_pinned_to_its_cores(plan_fd: int, interpreter: Callable[[str], None]) -> None:
    interpreter("exec sleep 60")
    core = min(os.sched_getaffinity(0))
    process = Process(TUN, [core])
    process.spawn(plan_fd, {})
    try:
        assert os.sched_getaffinity(process.pid) == {core}
    finally:
        process.send(signal.SIGKILL)
        process.reap()


def test_a_core_that_is_not_there_does_not_keep_a_process_from_running(plan_fd: int) -> None:
    process = Process(TUN, [4095])
    process.spawn(plan_fd, {})
    assert process.pid
    process.send(signal.SIGKILL)
    process.reap()


def test_a_process_that_runs_uses_memory(plan_fd: int, interpreter: Callable[[str], None]) -> None:
    interpreter("exec sleep 60")
    process = Process(TUN, [])
    process.spawn(plan_fd, {})
    try:
        assert process.usage()[1] > 0
    finally:
        process.send(signal.SIGKILL)
        process.reap()


def test_a_signal_to_a_process_that_was_reaped_goes_nowhere(dead: Process) -> None:
    dead.send(signal.SIGKILL)


def test_a_process_that_was_reaped_uses_nothing(dead: Process) -> None:
    assert dead.usage() == (0.0, 0)


def test_a_reaped_process_has_a_successor(dead: Process, plan_fd: int) -> None:
    dead.spawn(plan_fd, {})
    assert dead.pid
    dead.send(signal.SIGKILL)
    assert dead.reap() == -signal.SIGKILL


def test_the_limit_of_descriptors_is_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
