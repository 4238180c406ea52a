"""A machine of its own for a process that runs tests, and tests that run alone.

The process gets its own mounts of the places where instances keep names, and its own network namespace. So its leak
check (tests/conftest.py) sees the names, devices and routes of its own tests only. Other processes of this run
(`pytest -n 2`), other runs and tunnels in use may be there at the same time.

A test with the mark `alone` measures time or throughput. It waits until the tests of this run beside it have ended, and
none begins before it has ended. A turnstile in front of the room lets no later test overtake one that waits.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.lab.namespace import CLONE_NEWNET, LIBC

CLONE_NEWNS = 0x00020000  # linux/sched.h
SHARED_MEMORY = "/dev/shm"
PRIVATE_PLACES = (SHARED_MEMORY, "/run", "/var/lib")
ROOM_PARTS = ("turnstile", "room")


def enter_own_machine() -> bool:
    """Give the calling thread, and all threads and processes that it starts, their own mounts and network. False, and
    nothing is changed, without the right to do so."""
    if LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        return False
    _run("mount", "--make-rprivate", "/")
    for place in PRIVATE_PLACES:
        _run("mount", "-t", "tmpfs", "-o", "mode=1777" if place == SHARED_MEMORY else "mode=0755", "tests", place)
    _run("mount", "-t", "sysfs", "tests", "/sys")  # shows the devices of the namespace in which it is mounted
    _run("ip", "link", "set", "lo", "up")
    return True


class Room:
    """Where the tests of one run are: several share it, or one has it alone."""

    def __init__(self, run: str) -> None:
        self._turnstile, self._room = (
            os.open(_path(run, part), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for part in ROOM_PARTS
        )

    @contextmanager
    def occupied(self, alone: bool) -> Iterator[None]:
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)


def remove_room(run: str) -> None:
    for part in ROOM_PARTS:
        _path(run, part).unlink(missing_ok=True)


def _path(run: str, part: str) -> Path:
    return Path(tempfile.gettempdir(), f"tests-{run}-{part}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
