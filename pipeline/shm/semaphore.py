"""A POSIX semaphore by its name: posix_ipc makes it, names it and posts it; the wait is sem_clockwait(3).

posix_ipc itself waits until a time of the wall clock. When that clock is set back by an hour, a wait of 20 ms lasts an
hour. sem_clockwait waits until a time of CLOCK_MONOTONIC, which is never set. glibc has it since 2.30, of August 2019.
Opened twice in one process, a name is one mapping: posix_ipc posts the very semaphore that libc waits for.

musl has no sem_clockwait and needs none: it gives the kernel the length of a wait and not its end.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import posix_ipc

from pipeline.errors import LocalError

_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.sem_open.restype = ctypes.c_void_p
_libc.sem_open.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.sem_close.argtypes = (ctypes.c_void_p,)

_sem_clockwait: Any = getattr(ctypes.CDLL(None), "sem_clockwait", None)
"""Its errno is not read, and its arguments are made once, with their types: both would cost with each wait."""

_CLOCK_MONOTONIC = ctypes.c_int(time.CLOCK_MONOTONIC)

SECOND_NS = 1_000_000_000
CLEAR_MAX = 1000  # more than are ever posted between two waits; a worker that runs amok can post any number

POST_ERRORS = (ValueError, OSError, posix_ipc.Error)
"""Of release(): the semaphore has the highest value that it can have, or was overwritten."""


def create(name: str) -> None:
    """Create the semaphore. LocalError if the name is in use or /dev/shm is full."""
    try:
        posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    except (posix_ipc.Error, OSError) as error:
        raise LocalError(f"doorbell {name}: cannot be created: {error}") from None


def unlink(name: str) -> None:
    """Remove the name. No error if it is gone already."""
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError:
        pass


class Semaphore(posix_ipc.Semaphore):  # type: ignore[misc]  # it has no types
    """The semaphore that has this name. `release()` adds one to it, `value` tells how many there are.

    One thread at a time may wait.
    """

    def __init__(self, name: str) -> None:
        try:
            super().__init__(name)
        except posix_ipc.ExistentialError:
            raise LocalError(f"doorbell {name}: expected, not found: it was removed") from None
        except posix_ipc.PermissionsError:
            raise LocalError(f"doorbell {name}: belongs to another user; run as the supervisor's user") from None
        self._address = ctypes.c_void_p(_libc.sem_open(name.encode(), 0))
        if not self._address:
            super().close()
            raise LocalError(f"doorbell {name}: sem_open: {os.strerror(ctypes.get_errno())}")
        self._until = (ctypes.c_int64 * 2)()  # struct timespec: seconds, nanoseconds
        self._until_at = ctypes.c_void_p(ctypes.addressof(self._until))
        if _sem_clockwait is None:
            self.wait = self._wait_by_length  # type: ignore[method-assign]

    def wait(self, seconds: float) -> bool:
        """Take one, or wait for one so long. False if the time has passed, or a signal handler has run."""
        self._until[0], self._until[1] = divmod(time.monotonic_ns() + int(seconds * SECOND_NS), SECOND_NS)
        taken: bool = _sem_clockwait(self._address, _CLOCK_MONOTONIC, self._until_at) == 0
        return taken

    def _wait_by_length(self, seconds: float) -> bool:
        try:
            self.acquire(seconds)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def clear(self) -> None:
        """Take those that are there, without waiting; at most CLEAR_MAX."""
        try:
            for _ in range(CLEAR_MAX):
                self.acquire(0)
        except posix_ipc.BusyError:
            pass  # that was the last one

    def close(self) -> None:
        _libc.sem_close(self._address)
        super().close()
