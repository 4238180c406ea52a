"""What every worker process is: attached to shared memory, two duties, a heartbeat each, one way out.

A duty has one small step and one way to wait; the loop, the signals and the exit are written here, once:

    work() -> int        do what can be done now without blocking: NOTHING, DONE, or MORE if there may be more
    wait(seconds)        wait for more, on exactly one thing
    drained() -> bool    asked when the worker stops and work() found nothing: may the duty end?

Each duty runs in a thread of its own and can as well be stepped by a test. Signals are blocked in every thread
and taken by sigtimedwait in the main one: no handler ever runs, no system call is interrupted. An exception in
a duty ends the process: its successor goes on at the same cursors.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Protocol

from pipeline.errors import SupervisorGone
from pipeline.log import LOG
from pipeline.runtime import privileges
from pipeline.runtime.plan import Plan, StageMember
from pipeline.runtime.port import Port
from pipeline.shm import doorbell, peer_table, ring, scoreboard

PERIOD = 0.02
"""Longest wait of a duty, in seconds: what a lost wake-up costs."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_DUTY_FAILED = 70  # EX_SOFTWARE


NOTHING, DONE, MORE = range(3)


class Duty(Protocol):
    """One of a worker's two threads."""

    name: str

    def work(self) -> int: ...

    def wait(self, seconds: float) -> None: ...

    def drained(self) -> bool: ...


class Stop:
    """Whether the worker is to stop, and until when (CLOCK_MONOTONIC ns) it may drain."""

    def __init__(self) -> None:
        self.requested = False
        self.deadline_ns = 0

    def request(self, drain_seconds: float) -> None:
        self.deadline_ns = time.monotonic_ns() + int(drain_seconds * 1e9)
        self.requested = True


class Attachment:
    """A worker's hold on the shared memory of a plan: the board, its page, its ports, its doorbells."""

    def __init__(self, plan: Plan, worker: str) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.me = plan.worker(worker)
        self.scoreboard = scoreboard.attach(plan.scoreboard, len(plan.workers))
        self.page = self.scoreboard.pages[self.me.page]
        self.peers = peer_table.attach(plan.peers.segment, plan.peers.capacity, plan.lanes, plan.peers.rows)
        self._rings: list[ring.Ring] = []
        self._doorbells: list[doorbell.Doorbell] = []
        self.doorbells = {duty: self._doorbell(StageMember(worker, duty), owner=True) for duty in self.me.doorbells}
        self.stop = Stop()

    def _doorbell(self, member: StageMember, owner: bool = False) -> doorbell.Doorbell:
        target = self.plan.worker(member.worker)
        spin_ns = doorbell.IDLE_SPIN_NS[self.settings["idle"]] if owner else 0
        bell = doorbell.Doorbell(
            target.doorbells[member.duty], self.scoreboard.pages[target.page].sleeping(member.duty), owner, spin_ns
        )
        self._doorbells.append(bell)
        return bell

    def ports(self, duty: str, kind: str) -> list[Port]:
        """This worker's ports in the rings of one kind, by lane."""
        found = []
        for plan in self.plan.rings:
            place = plan.place(StageMember(self.me.name, duty))
            if plan.kind == kind and place is not None:
                attached = ring.attach(plan.segment, plan.members, plan.slots, plan.slot_bytes)
                self._rings.append(attached)
                takes_runs = [
                    member
                    for member in place.after
                    if (plan.kind, self.plan.worker(member.worker).kind) == ("inbound", "fec")
                ]
                found.append(
                    Port(
                        attached,
                        place,
                        plan.lane,
                        [self._doorbell(m) for m in place.after if m not in takes_runs],
                        [self._doorbell(m) for m in takes_runs],
                    )
                )
        return found

    def close(self) -> None:
        """Let go of everything; the duties must not run any more."""
        for bell in self._doorbells:
            bell.close()
        for attached in self._rings:
            attached.close()
        self.peers.close()
        self.scoreboard.close()


def loop(duty: Duty, heartbeat: memoryview, stop: Stop) -> None:
    """A duty's life: beat, work, wait. Returns when the worker stops and the duty has drained."""
    while True:
        now = time.monotonic_ns()
        heartbeat[0] = now
        found = duty.work()
        if stop.requested and ((not found and duty.drained()) or now > stop.deadline_ns):
            return
        if found is not MORE:
            duty.wait(PERIOD)


def bind_to_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent's spawning thread ends. Call from the main thread.

    Again after any change of credentials: it clears what was asked.
    """
    privileges.prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before we asked


def run(attachment: Attachment, duties: list[Duty], ready_fd: int, parent: int) -> int:
    """Run the duties until a stop signal. Returns the exit status."""
    stop = attachment.stop
    threads = [
        threading.Thread(
            target=_guard, args=(duty, attachment.page.heartbeat(duty.name), stop), name=duty.name, daemon=True
        )
        for duty in duties
    ]
    for thread in threads:
        thread.start()
    os.write(ready_fd, b"R")
    os.close(ready_fd)
    while not _stop_signal() and os.getppid() == parent:
        pass
    stop.request(attachment.settings["drain_timeout"])
    for thread in threads:
        thread.join()
    return 0


def _stop_signal() -> bool:
    """Wait a second for a stop signal.

    CPython's sigtimedwait, interrupted (SIGSTOP, SIGCONT) until its time has passed, returns a struct that nobody
    has filled in, instead of None.
    """
    found = signal.sigtimedwait(STOP_SIGNALS, 1.0)
    return found is not None and found.si_signo in STOP_SIGNALS


def _guard(duty: Duty, heartbeat: memoryview, stop: Stop) -> None:
    try:
        loop(duty, heartbeat, stop)
    except SupervisorGone as error:
        LOG.info("ending: %s", error)
        os._exit(EXIT_DUTY_FAILED)
    except BaseException:
        LOG.critical("the %s duty failed", duty.name, exc_info=True)
        os._exit(EXIT_DUTY_FAILED)  # with the cursors as they are; the supervisor starts a successor


def prepare() -> None:
    """First thing in a worker process: signals blocked, nothing new to be gained, a stack trace on SIGABRT."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    privileges.restrict()
    faulthandler.enable(sys.__stderr__ or 2)
