"""The doorbell of one duty: a POSIX semaphore, and a *sleeping* flag on the scoreboard.

    wait(ready, timeout)    the duty itself, when it has no work
    kick()                  a duty that has advanced its cursor: wakes the waiting duty if it sleeps

A doorbell is a hint. It carries no count, no data and no truth: cursors are the truth.

Ordering. The sleeper stores the flag and then loads the cursors; the kicker stores its cursor and then loads the flag.
Each store must be visible before the load that follows it, and no machine promises that (store buffer). On x86-64,
taking an uncontended lock is a locked read-modify-write instruction, which is a full barrier: `_FENCE` stands between
store and load on both sides. Elsewhere a lock is less than that, and `memory_order.fence` takes its place. A wake-up
can still be lost, if the kicker is killed in between. Then the wait ends by its timeout, one period later, and the
cursors are read again.

Waits run on CLOCK_MONOTONIC (`semaphore`). No wait is longer than its period, and liveness never depends on a wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipeline.shm import memory_order
from pipeline.shm.semaphore import POST_ERRORS, Semaphore, create, unlink

__all__ = ["Doorbell", "create", "unlink"]

_FENCE = threading.Lock()
FENCE_PAIR: tuple[Callable[[], object], Callable[[], object]] = (
    (memory_order.fence, memory_order.nothing) if memory_order.REORDERS else (_FENCE.acquire, _FENCE.release)
)
"""Called one after the other, they are a fence between a store and a load: half the price of a with statement."""

_acquire, _release = FENCE_PAIR

SPIN_NS = 50_000
"""Idle strategy "spin-then-block": longer than a wake-up through the kernel (some 30 us)."""

WAKE_AHEAD_NS = 20_000
"""How long a duty that was kicked polls for the work that the kick announced.

Not for longer: the kernel may have woken it on the processor of the one that is about to hand on the work, which stands
still meanwhile. The processor of a duty that sleeps again is awake for a while, so the next kick finds it quickly.
"""

SPIN_FOREVER_NS = 1 << 62
"""Idle strategy "spin": the wait ends by its timeout alone; the duty needs a core of its own."""

IDLE_SPIN_NS = {"block": 0, "spin-then-block": SPIN_NS, "spin": SPIN_FOREVER_NS}


class Doorbell:
    """Attached to the semaphore `name` and the flag `sleeping` (a one-element "Q" view).

    `owner`: this is the duty that waits; it alone writes the flag. `spin_ns`: how long it polls before it sleeps.
    """

    def __init__(self, name: str, sleeping: memoryview, owner: bool, spin_ns: int = 0) -> None:
        self._semaphore = Semaphore(name)
        self._post = self._semaphore.release
        self._sleeping = sleeping
        if owner:
            self._sleeping[0] = 0  # a predecessor may have died in its sleep
        self._spin_ns = spin_ns

    def kick(self) -> None:
        """Wake the duty if it sleeps: after a cursor was advanced, or ahead of that (Port.wake_ahead)."""
        _acquire()
        _release()
        if self._sleeping[0]:
            try:
                self._post()
            except POST_ERRORS:
                pass  # a worker that runs amok has posted it: the duty wakes by its timeout

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
            if not self._semaphore.wait(timeout):
                return False
            until = time.monotonic_ns() + WAKE_AHEAD_NS
            while not ready() and time.monotonic_ns() < until:
                pass  # kicked ahead of the work: see Port.wake_ahead
            return True
        finally:
            self._sleeping[0] = 0
            if self._semaphore.value:  # most often there is nothing
                self._semaphore.clear()

    def close(self) -> None:
        self._semaphore.close()
