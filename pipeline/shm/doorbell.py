"""The doorbell of one duty: a POSIX semaphore, and a *sleeping* flag on the scoreboard.

    wait(ready, timeout)    the duty itself, when it has no work
    kick()                  a duty that has advanced its cursor: wakes the waiting duty if it sleeps

A doorbell is a hint. It carries no count, no data and no truth: cursors are the truth.

Ordering. The sleeper stores the flag and then loads the cursors; the kicker stores its cursor and then loads the flag.
Each store must be visible before the load that follows it, and x86-64 does not promise that (store buffer). Taking an
uncontended lock is a locked read-modify-write instruction, which is a full barrier on x86-64: `_FENCE` stands between
store and load on both sides. A wake-up can still be lost, if the kicker is killed in between. Then the wait ends by its
timeout, one period later, and the cursors are read again.

The peculiarities of posix_ipc stay in this file. A timeout raises BusyError, a signal raises SignalError, and timeouts
run on the wall clock. So no wait is longer than its period, and liveness never depends on a wait.
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
"""How long a duty that was kicked polls for the work that the kick announced."""

SPIN_FOREVER_NS = 1 << 62
"""Idle strategy "spin": the wait ends by its timeout alone; the duty needs a core of its own."""

IDLE_SPIN_NS = {"block": 0, "spin-then-block": SPIN_NS, "spin": SPIN_FOREVER_NS}


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


class Doorbell:
    """Attached to the semaphore `name` and the flag `sleeping` (a one-element "Q" view).

    `owner`: this is the duty that waits; it alone writes the flag. `spin_ns`: how long it polls before it sleeps.
    """

    def __init__(self, name: str, sleeping: memoryview, owner: bool, spin_ns: int = 0) -> None:
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.ExistentialError:
            raise LocalError(f"doorbell {name}: expected, not found: it was removed") from None
        except posix_ipc.PermissionsError:
            raise LocalError(f"doorbell {name}: belongs to another user; run as the supervisor's user") from None
        self._sleeping = sleeping
        if owner:
            self._sleeping[0] = 0  # a predecessor may have died in its sleep
        self._spin_ns = spin_ns

    def kick(self) -> None:
        """Wake the duty if it sleeps: after a cursor was advanced, or ahead of that (Port.wake_ahead)."""
        _acquire()
        _release()
        if self._sleeping[0]:
            self._semaphore.release()

    def wait(self, ready: Callable[[], int], timeout: float) -> bool:
        """Wait for `ready()`, for a kick, or for `timeout` seconds. True for the first two."""
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
                pass  # kicked ahead of the work: see Port.wake_ahead
            return True
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        finally:
            self._sleeping[0] = 0
            while self._semaphore.value:
                self._semaphore.acquire(0)

    def close(self) -> None:
        self._semaphore.close()
