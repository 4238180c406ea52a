"""Every test leaves the machine as it found it; property tests are the same in every run.

Looked at after each test, and once more after the last: child processes, network devices and named namespaces,
routes, names in /dev/shm, files and states of instances. Rules and addresses take a command to look at, so they are
compared once. What is still vanishing gets a moment. What a process that is none of ours holds is somebody else's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from tests.support import eventually

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

VANISH_SECONDS = 3.0

SHARED_MEMORY = Path("/dev/shm")
INSTANCES = Path("/run/tunnel-supervisor")
STATES = Path("/var/lib/tunnel-supervisor")
LISTED = (SHARED_MEMORY, INSTANCES, STATES, Path("/run/netns"), Path("/sys/class/net"))

# proc(5): of a route's columns those that use changes (reference and use counts) are left out
ROUTES = (("/proc/net/route", (0, 1, 2, 6, 7)), ("/proc/net/ipv6_route", (0, 1, 2, 4, 5, 9)))


def traces() -> set[str]:
    """What a test could leave behind, one line each."""
    found = {str(directory / name) for directory in LISTED if directory.is_dir() for name in os.listdir(directory)}
    for table, columns in ROUTES:
        if os.path.exists(table):
            for line in Path(table).read_text().splitlines():
                fields = line.split()
                found.add(" ".join([table, *(fields[column] for column in columns)]))
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return found
    return found | {f"process {child.pid}" for child in psutil.Process().children()}


def left(before: set[str]) -> list[str]:
    """What there is now, was not there before, and is not somebody else's."""
    return sorted(trace for trace in traces() - before if not held_by_others(Path(trace)))


def held_by_others(path: Path) -> bool:
    """True if a live process that is neither ours nor our child's maps or has locked this file."""
    if path.parent == INSTANCES:
        try:
            return others(int(path.with_suffix(".lock").read_text()))
        except (OSError, ValueError):
            return False
    if path.parent != SHARED_MEMORY:
        return False
    for process in psutil.process_iter():
        try:
            mapped = str(path) in Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue  # ended while we looked
        if mapped and others(process.pid):
            return True
    return False


def others(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return os.getpid() not in (pid, *(parent.pid for parent in process.parents()))
    except psutil.NoSuchProcess:
        return False


def expect_nothing_left(before: set[str]) -> None:
    remains: list[str] = []

    def gone() -> bool:
        remains[:] = left(before)
        return not remains

    try:
        eventually(gone, VANISH_SECONDS)
    except AssertionError:
        pytest.fail(f"left behind: {', '.join(remains)}", pytrace=False)


def rules_and_addresses() -> list[str]:
    shown = []
    for version in ("-4", "-6"):
        for what in ("rule", "address"):
            done = subprocess.run(["ip", version, "-oneline", what], capture_output=True, text=True, check=False)
            shown += [line.split(" valid_lft")[0] for line in done.stdout.splitlines()]
    return shown


@pytest.fixture(scope="session", autouse=True)
def the_whole_run_leaves_no_trace() -> Iterator[None]:
    before, configured = traces(), rules_and_addresses()
    yield
    expect_nothing_left(before)
    assert rules_and_addresses() == configured


@pytest.fixture(autouse=True)
def a_test_leaves_no_trace() -> Iterator[None]:
    before = traces()
    yield
    expect_nothing_left(before)
