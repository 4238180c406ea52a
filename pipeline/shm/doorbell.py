"""The wake-up hint of one duty: a POSIX semaphore and a *sleeping* word on the board.

    the duty that waits             whoever has advanced a cursor before it
    wait(ready, timeout)            kick()

No count, no data, no truth: cursors are the truth. A kick posts only if the duty sleeps.

Ordering. The sleeper stores `sleeping` and then loads the cursors; the kicker stores its cursor and
then loads `sleeping`. Each store must be visible before its load, and x86-64 does not promise that
(store buffer). Taking an uncontended lock is a locked read-modify-write instruction, a full barrier
on x86-64: `_FENCE` stands between store and load on both sides. Should a wake-up be lost all the
same (the kicker killed in between), the wait ends by its timeout and looks again: one period.

posix_ipc, hidden here: a timeout raises BusyError, a signal raises SignalError, timeouts run on the
wall clock. So no wait is longer than its period, and nothing about liveness rests on one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import posix_ipc

from pipeline.errors import LocalError

_FENCE = threading.Lock()
_acquire, _release = _FENCE.acquire, _FENCE.release  # half the price of a with statement

SPIN_NS = 50_000
"""Idle strategy "spin-then-block": longer than a wake-up through the kernel (some 30 us)."""

WAKE_AHEAD_NS = 100_000
"""How long a duty that was kicked looks for the work that the kick announced."""

SPIN_FOREVER_NS = 1 << 62
"""Idle strategy "spin": the wait ends by its timeout alone; the duty's core is its own."""

IDLE_SPIN_NS = {"block": 0, "spin-then-block": SPIN_NS, "spin": SPIN_FOREVER_NS}


def create(name: str) -> None:
    """Make the semaphore. LocalError if the name is taken or /dev/shm is full."""
    try:
        posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    except (posix_ipc.Error, OSError) as error:
        raise LocalError(f"doorbell {name}: cannot be created: {error}") from None


def unlink(name: str) -> None:
    """Remove the name; no error when it is gone already."""
    try:
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError:
        pass


class Doorbell:
    """Attached to the semaphore `name` and the word `sleeping` (a one-element "Q" view).

    `owner` is the duty that waits; it alone writes the word. `spin_ns`: how long it looks before it sleeps.
    """

    def __init__(self, name: str, sleeping: memoryview, owner: bool, spin_ns: int = 0) -> None:
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.ExistentialError:
            raise LocalError(f"doorbell {name}: expected, not there; something removed it") from None
        except posix_ipc.PermissionsError:
            raise LocalError(f"doorbell {name}: belongs to another user; run as the supervisor's") from None
        self._sleeping = sleeping
        if owner:
            self._sleeping[0] = 0  # a predecessor may have died asleep
        self._spin_ns = spin_ns

    def kick(self) -> None:
        """Wake the duty if it sleeps: after a cursor was advanced, or ahead of it (Port.herald)."""
        _acquire()
        _release()
        if self._sleeping[0]:
            self._semaphore.release()

    def wait(self, ready: Callable[[], int], timeout: float) -> bool:
        """Wait until `ready()` is true, a kick, or `timeout` seconds; the caller looks at its cursors again."""
        if self._spin_ns:
            until = time.monotonic_ns() + min(self._spin_ns, int(timeout * 1e9))
            while time.monotonic_ns() < until:
                if ready():
                    return True
                time.sleep(0)  # lets the other duty of this process have the interpreter
            timeout = max(0.0, timeout - self._spin_ns / 1e9)
        self._sleeping[0] = 1
        _acquire()
        _release()
        try:
            if ready():
                return True
            self._semaphore.acquire(timeout)
            until = time.monotonic_ns() + WAKE_AHEAD_NS
            while not ready() and time.monotonic_ns() < until:
                pass  # kicked ahead of the work: see Port.herald
            return True
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        finally:
            self._sleeping[0] = 0
            while self._semaphore.value:
                self._semaphore.acquire(0)

    def close(self) -> None:
        self._semaphore.close()
