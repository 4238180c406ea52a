"""The common part of all workers: attachment to shared memory, duties with a heartbeat each, one way to end.

A duty has one small step and one way to wait. The loop, the signals and the exit are here, once:

    work() -> int        do what can be done now without blocking: NOTHING, DONE, or MORE if there may be more
    wait(seconds)        wait for more, on exactly one thing
    drained() -> bool    asked when the worker stops: may the duty end?

Each duty runs in a thread of its own; a test can step it as well. Signals are blocked in every thread, and the main
thread receives them by sigtimedwait: no handler ever runs, and no system call is interrupted. An exception in a duty
ends the process; its successor continues at the process's cursors.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from pipeline import log
from pipeline.counters import ID
from pipeline.errors import LocalError, SupervisorGone
from pipeline.log import LOG
from pipeline.runtime import group_port, privileges
from pipeline.runtime.assignment import report_ready
from pipeline.runtime.group_port import GroupPort
from pipeline.runtime.plan import Plan, RingPlan, StageMember, StagePosition
from pipeline.runtime.port import Port
from pipeline.shm import doorbell, peer_table, ring, scoreboard
from pipeline.system import task_limit

PERIOD = 0.02
"""Longest wait of a duty, in seconds: the price of a lost wake-up."""

SWITCH_SECONDS = 0.0005
"""How long one duty may compute while the other waits for the interpreter. With Python's 5 ms, a flood that costs only
computing delays each system call of the other duty by as much."""

LOOK_NS = 100_000_000
"""Between two looks at the own cursors. A ring that looks full to its filler stands still until then."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_DUTY_FAILED = 70  # EX_SOFTWARE, sysexits.h

NOTHING, DONE, MORE = range(3)
"""Results of work(): there was no work; all work is done; work was done, and perhaps there is more."""


class Duty(Protocol):
    """One of a worker's threads."""

    name: str

    def work(self) -> int: ...

    def wait(self, seconds: float) -> None: ...

    def drained(self) -> bool: ...


class Stop:
    """Whether the worker is to stop, and until when (CLOCK_MONOTONIC ns) it may drain."""

    def __init__(self) -> None:
        self.requested = False
        self.deadline_ns = 0
        self.outbound_ended = False

    def request(self, drain_seconds: float) -> None:
        self.deadline_ns = time.monotonic_ns() + int(drain_seconds * 1e9)
        self.requested = True


class Attachment:
    """A worker's mappings of the shared memory of a plan: scoreboard, own page, peer table, rings, doorbells."""

    def __init__(self, plan: Plan, name: str, process: int = 0) -> None:
        self.plan = plan
        self.process = process  # the number of this process: no other worker process of the supervisor has it
        self.settings = plan.settings
        self.worker = plan.worker(name)
        self.scoreboard = scoreboard.attach(plan.scoreboard, len(plan.workers), self.worker.page)
        self.page = self.scoreboard.pages[self.worker.page]
        peers = plan.peer_table
        writer = self.worker.kind, self.worker.lane, self.worker.duties
        self.peer_table = peer_table.attach(
            peers.segment, peers.capacity, plan.lanes, peers.status_rows, writer, plan.settings.datagrams
        )
        for words in (self.page.counters, *self.peer_table.written_by(*writer)):
            _clear_impossible(words)
        self._rings: list[ring.Ring] = []
        self._doorbells: list[doorbell.Doorbell] = []
        self._ports: dict[str, list[Port]] = {duty: [] for duty in self.worker.doorbells}
        self.doorbells = {duty: self._doorbell(StageMember(name, duty), owner=True) for duty in self.worker.doorbells}
        self.stop = Stop()
        self.stop.outbound_ended = "outbound" not in self.worker.duties

    def _doorbell(self, member: StageMember, owner: bool = False) -> doorbell.Doorbell:
        target = self.plan.worker(member.worker)
        spin_ns = doorbell.IDLE_SPIN_NS[self.settings.idle] if owner else 0
        bell = doorbell.Doorbell(
            target.doorbells[member.duty], self.scoreboard.pages[target.page].sleeping(member.duty), owner, spin_ns
        )
        self._doorbells.append(bell)
        return bell

    def ports(self, duty: str, kind: str) -> list[Port]:
        """The ports of a duty of this worker in the rings of one kind, by lane."""
        found = []
        member = StageMember(self.worker.name, duty)
        for planned in self.plan.rings:
            position = planned.position_of(member)
            if planned.kind == kind and position is not None:
                only_reads = planned.only_reads(member)
                attached = ring.attach(
                    planned.segment, planned.members, planned.slots, planned.slot_bytes, only_reads=only_reads
                )
                self._rings.append(attached)
                after = [self._doorbell(each) for each in position.after]
                rarely = [self._doorbell(each) for each in position.after_rarely]
                found.append(self._port(planned, attached, position, after, rarely, duty))
        self._ports[duty] += found
        return found

    def _port(
        self,
        planned: RingPlan,
        attached: ring.Ring,
        position: StagePosition,
        after: list[doorbell.Doorbell],
        rarely: list[doorbell.Doorbell],
        duty: str,
    ) -> Port:
        on_mended = partial(self._count_mended, duty)
        if len(after) == 1:
            return Port(attached, position, planned.lane, after, rarely, on_mended)
        writers, decoders = (
            partial(concerns, sealed=self.settings.seals, lanes=self.plan.lanes)
            for concerns in (group_port.writers, group_port.decoders)
        )
        concerned = writers if planned.kind in group_port.FROM_THE_NETWORK else group_port.senders
        return GroupPort(attached, position, planned.lane, after, rarely, on_mended, concerned, decoders)

    def ports_of(self, duty: str) -> list[Port]:
        """All ports that a duty has got so far."""
        return self._ports[duty]

    def _count_mended(self, duty: str, port: Port) -> None:
        """Count it, and log it each time that there are twice as many of the port's."""
        self.page.counters[ID[f"{self.worker.kind}.rings_{duty}_mended"]] += 1
        if not port.mended & (port.mended - 1):
            LOG.error("ring %s: its cursors were overwritten; slots are skipped", port.ring.memory.name)

    def close(self) -> None:
        """Unmap everything. The duties must not run any more."""
        for bell in self._doorbells:
            bell.close()
        for attached in self._rings:
            attached.close()
        self.peer_table.close()
        self.scoreboard.close()


def _clear_impossible(words: memoryview) -> None:
    """Begin anew what a predecessor that ran amok has left so high that an addition could go beyond 64 bits."""
    for index, value in enumerate(words.tolist()):
        if value >> 63:
            words[index] = 0


def loop(duty: Duty, heartbeat: memoryview, stop: Stop, ports: Sequence[Port] = ()) -> None:
    """Heartbeat, work, wait, again and again, until the worker stops and the duty has drained.

    `ports`: of the duty. Their cursors are put right ten times a second, whatever another worker has written there.

    Outbound duties end when there is nothing to do: what they have is still to be sent. Inbound duties end with them.
    Under traffic there is always something to do, and half a worker would carry packets one way; what is left in its
    rings is its successor's.
    """
    look_ns = 0
    while True:
        now = time.monotonic_ns()
        heartbeat[0] = now
        if now >= look_ns:
            look_ns = now + LOOK_NS
            for port in ports:
                port.put_right()
        found = duty.work()
        if stop.requested:
            may_end = not found or (duty.name == "inbound" and stop.outbound_ended)
            if (may_end and duty.drained()) or now > stop.deadline_ns:
                stop.outbound_ended |= duty.name == "outbound"
                return
        if found is not MORE:
            duty.wait(PERIOD)


def bind_to_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the thread that spawned it ends. Call from the main thread.

    Call it once more after any change of credentials, which makes the kernel forget.
    """
    privileges.prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died before we asked


def name_process(name: str) -> None:
    """Show the worker's name in `ps` and `top`; threads that start later inherit it."""
    text = ctypes.create_string_buffer(name.encode())
    privileges.prctl(privileges.PR_SET_NAME, ctypes.addressof(text))


def run(attachment: Attachment, duties: list[Duty], channel: int, parent: int) -> int:
    """Run the duties until a stop signal. Returns the exit status. LocalError if a duty gets no thread."""
    stop = attachment.stop
    sys.setswitchinterval(SWITCH_SECONDS)
    threads = [
        threading.Thread(
            target=_guard,
            args=(duty, attachment.page.heartbeat(duty.name), stop, attachment.ports_of(duty.name)),
            name=duty.name,
            daemon=True,
        )
        for duty in duties
    ]
    for thread in threads:
        try:
            task_limit.start(thread)
        except OSError as error:
            raise LocalError(f"a thread cannot be started: {task_limit.explain(error)}") from None
    report_ready(channel)
    while not _stop_signal() and os.getppid() == parent:
        log.tick()
    stop.request(attachment.settings.drain_timeout)
    for thread in threads:
        thread.join()
    log.finish()
    return 0


def _make_group_nice() -> None:
    """A spare is nice, and so must be the group of its session, which it has just made: see supervisor.precedence."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > 0:
        try:
            with open("/proc/self/autogroup", "w") as file:
                file.write(str(nice))
        except OSError:
            pass  # this kernel groups no processes by session


def _stop_signal() -> bool:
    """Wait a second for a stop signal.

    If CPython's sigtimedwait is interrupted (SIGSTOP, SIGCONT) until its time has passed, it returns an
    uninitialized struct instead of None.
    """
    found = signal.sigtimedwait(STOP_SIGNALS, 1.0)
    return found is not None and found.si_signo in STOP_SIGNALS


def _guard(duty: Duty, heartbeat: memoryview, stop: Stop, ports: Sequence[Port]) -> None:
    try:
        loop(duty, heartbeat, stop, ports)
    except SupervisorGone as error:
        LOG.info("worker ends: %s", error)
        log.finish()
        os._exit(EXIT_DUTY_FAILED)
    except BaseException:
        LOG.critical("%s duty failed, the supervisor starts a new worker", duty.name, exc_info=True)
        log.finish()
        os._exit(EXIT_DUTY_FAILED)  # with the cursors as they are


def prepare() -> None:
    """Block signals, renounce new privileges, have SIGABRT print a stack trace. Call first in a worker process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    privileges.restrict()
    _make_group_nice()
    faulthandler.enable(sys.__stderr__ or 2)
