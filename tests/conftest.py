"""Every test leaves the machine as it found it; property tests are the same in every run; marks by folder.

The leak check runs after each test, and once more after the last. It looks at child processes, network devices and
named namespaces, routes, names in /dev/shm, files and states of instances. Rules and addresses take a command to look
at, so they are compared once. A leftover gets a moment to vanish. A file that another's process holds is not ours.

Run by root, tests have a machine of their own (tests/harness/own_machine.py): several processes may run them at once.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from pipeline.policy.machine import made_of
from pipeline.system import inherited
from tests.harness.own_machine import Room, enter_own_machine, remove_room
from tests.support import ROOT, eventually

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

MARKS_BY_FOLDER = {"netns": "netns", "process": "process", "unit/tools": "tools"}
ROOM = pytest.StashKey[Room]()

VANISH_SECONDS = 3.0
TEMPORARY_LENGTH_MAX = 30
"""A path of a socket has at most 107 bytes (unix(7)); pytest and names of tests need the rest."""

SHARED_MEMORY = Path("/dev/shm")
INSTANCES = Path("/run/tunnel-supervisor")
STATES = Path("/var/lib/tunnel-supervisor")
LISTED = (SHARED_MEMORY, INSTANCES, STATES, Path("/run/netns"), Path("/sys/class/net"))

# proc(5): of a route's columns those that use changes (reference and use counts) are left out
ROUTES = (("/proc/net/route", (0, 1, 2, 6, 7)), ("/proc/net/ipv6_route", (0, 1, 2, 4, 5, 9)))


DESCRIPTORS_MANY = 256
TWO_CORES = made_of(1, 1, 2)


@pytest.fixture(autouse=True)
def _few_descriptors() -> None:
    """Rings and sockets in circles of objects stay open until they are collected: a thousand would be too many for the
    select() of a tool that a later test starts."""
    if len(os.listdir("/proc/self/fd")) > DESCRIPTORS_MANY:
        gc.collect()


@pytest.fixture(autouse=True, scope="session")
def _two_cores() -> Iterator[None]:
    """`lanes` and `split_workers` that say "auto" are the same in every run, however many cores there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.config.lanes.this_machine", lambda: TWO_CORES)
        yield


def traces() -> set[str]:
    """Things that a test could leave behind, one line each."""
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


def left(before: set[str], look: Callable[[], set[str]]) -> list[str]:
    """The traces that are there now, were not there before, and are not another's."""
    return sorted(trace for trace in look() - before if not held_by_others(Path(trace)))


def descriptors() -> set[str]:
    """Of this process, each with what it is open on. Mappings of shared memory last as long as a fixture's value, and
    libraries keep files of theirs open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith((f"{SHARED_MEMORY}/", sys.prefix)):
                found.add(f"descriptor {name} of {target}")
    return found


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


def expect_nothing_left(before: set[str], look: Callable[[], set[str]] = traces) -> None:
    remains: list[str] = []

    def gone() -> bool:
        remains[:] = left(before, look)
        if remains:
            gc.collect()  # a cycle may hold what is to vanish
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


# -- a machine of its own, marks


def pytest_configure(config: pytest.Config) -> None:
    inherited.use_usual_signals()
    os.umask(0o022)
    if len(tempfile.gettempdir()) > TEMPORARY_LENGTH_MAX:
        tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts commands in the background without it
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses", None):
        has_own = enter_own_machine()
        if is_worker and not has_own:
            raise pytest.UsageError("tests in several processes need root; run them with --numprocesses 0")
    if is_worker:
        config.stash[ROOM] = Room(os.environ["PYTEST_XDIST_TESTRUNUID"])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    manager = session.config.pluginmanager.get_plugin("dsession")
    if manager is not None:
        remove_room(manager.nodemanager.testrunuid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parent.as_posix()
        mark = MARKS_BY_FOLDER.get(folder)
        if mark:
            item.add_marker(mark)
        if mark == "netns" and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="network namespaces need root"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around the test with its fixtures, and around its time-out too: waiting for the room is not the test's time."""
    room = item.config.stash.get(ROOM, None)
    if room is None:
        return (yield)
    with room.occupied(alone=item.get_closest_marker("alone") is not None):
        return (yield)


# -- leaks


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


@pytest.fixture(autouse=True)
def a_test_closes_what_it_has_opened(request: pytest.FixtureRequest) -> Iterator[None]:
    """A lab of tests/netns grows while they use it."""
    before = descriptors()
    yield
    if not request.node.get_closest_marker("netns"):
        expect_nothing_left(before, descriptors)
