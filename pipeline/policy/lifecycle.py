"""The life cycle of an instance and of its workers: a pure state machine, without processes, signals or a clock.

    an event, now (CLOCK_MONOTONIC ns) -> the actions that the supervisor carries out, in this order

    start   Kind by kind, in start order, each kind when the one before it is ready. A dead worker starts again when the
            restart policy says so, a replaced worker as soon as its old process has ended.
    watch   A worker that is not ready in time, or has no heartbeat, is aborted, and killed if it still does not end.
            Time in which the supervisor itself did not run does not count.
    stop    Kind by kind, in reverse start order, so that packets that were read are still sent. A worker that has not
            ended when its drain time and its grace are over is killed. Nothing is started any more.

TRANSITIONS has every state and event of a worker, PHASES every phase of the instance. A transition that they lack is
forbidden: the supervisor and this file contradict each other, which is a LocalError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.policy.pauses import Pauses
from pipeline.policy.restart import EX_CONFIG, GiveUp, RestartPolicy

READY_NS = 10_000_000_000  # a worker that is not ready by then is hung
ABORT_NS = 1_000_000_000  # from abort, which leaves a stack in the log, to kill
GRACE_NS = 1_000_000_000  # beyond the drain time, from terminate to kill


class WorkerState(StrEnum):
    """The state of a worker, as `status` shows it."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"  # dead; it is started again when it is due
    FAILED = "failed"  # dead; the restart policy has given up


class Event(StrEnum):
    """An event in the life of a worker."""

    START = "start"
    START_FAILED = "start failed"
    READY = "ready"
    OVERDUE = "overdue"  # not ready, without a heartbeat, or still draining, for too long
    RESTART = "restart"
    TERMINATE = "terminate"
    DIED = "died"


STOPPED, STARTING, RUNNING, STOPPING, BACKOFF, FAILED = WorkerState
ALIVE = (STARTING, RUNNING, STOPPING)

# fmt: off
TRANSITIONS: dict[Event, dict[WorkerState, tuple[WorkerState, ...]]] = {
    Event.START:        {STOPPED: (STARTING,), BACKOFF: (STARTING,)},
    Event.START_FAILED: {STARTING: (STOPPED, BACKOFF)},
    Event.READY:        {STARTING: (RUNNING,), STOPPING: (STOPPING,)},
    Event.OVERDUE:      {STARTING: (STARTING,), RUNNING: (RUNNING,), STOPPING: (STOPPING,)},
    Event.RESTART:      {STARTING: (STOPPING,), RUNNING: (STOPPING,)},
    Event.TERMINATE:    {STARTING: (STOPPING,), RUNNING: (STOPPING,)},
    Event.DIED:         {STARTING: (BACKOFF, FAILED, STOPPED), RUNNING: (BACKOFF, FAILED, STOPPED),
                         STOPPING: (STOPPED, BACKOFF)},
}
# fmt: on
"""The states in which an event may find a worker, and those it may lead to; all others are forbidden."""


class Phase(StrEnum):
    """The state of the instance, as `status` shows it."""

    STARTING = "starting"
    RUNNING = "running"  # every worker runs
    DEGRADED = "degraded"  # it has run, and a worker is missing
    STOPPING = "stopping"
    STOPPED = "stopped"


PHASES: dict[Phase, tuple[Phase, ...]] = {
    Phase.STARTING: (Phase.RUNNING, Phase.STOPPING),
    Phase.RUNNING: (Phase.DEGRADED, Phase.STOPPING),
    Phase.DEGRADED: (Phase.RUNNING, Phase.STOPPING),
    Phase.STOPPING: (Phase.STOPPED,),
    Phase.STOPPED: (),
}
"""The phases that may follow a phase."""


class Start(NamedTuple):
    """Start the worker's next generation; answer with start_failed if that is impossible."""

    worker: str


class Terminate(NamedTuple):
    """Ask the worker to drain and to end."""

    worker: str


class Abort(NamedTuple):
    """End the worker, which hangs, with a stack in the log."""

    worker: str
    reason: str


class Kill(NamedTuple):
    """End the worker now."""

    worker: str


class ReportDeath(NamedTuple):
    """Log an unexpected death. `aborted`: the worker hung and was aborted for it."""

    worker: str
    status: int
    aborted: bool


class ReportStartFailed(NamedTuple):
    """Log that a process could not be made, and that this is tried again."""

    text: str


class ReportRunning(NamedTuple):
    """Log that the instance runs for the first time, and tell the service manager."""


class ReportStopping(NamedTuple):
    """Log that the instance stops and why, and tell the service manager."""

    exit_status: int
    reason: str


class ReportPause(NamedTuple):
    """Log that the supervisor itself did not run for so long."""

    missed_ns: int


Action = (
    Start | Terminate | Abort | Kill | ReportDeath | ReportStartFailed | ReportRunning | ReportStopping | ReportPause
)


class Limits(NamedTuple):
    """The part of the configuration that decides; a reload replaces it."""

    heartbeat_ns: int  # a running worker whose oldest heartbeat is older hangs
    drain_ns: int  # how long a stopping worker may take to send what is left
    policy: RestartPolicy


@dataclass(slots=True)
class Worker:
    """One worker over all its generations."""

    name: str
    kind: str
    state: WorkerState = STOPPED
    restarts: int = 0
    deaths: int = 0  # of these, those that nobody has asked for
    due_ns: int = 0  # in BACKOFF: when it is started again
    started_ns: int = 0
    ready_ns: int = 0
    alive_ns: int = 0  # its last heartbeat; later, if the supervisor did not run meanwhile
    terminated_ns: int = 0
    aborted_ns: int | None = None

    def move(self, event: Event, to: WorkerState) -> None:
        if to not in TRANSITIONS[event].get(self.state, ()):
            raise LocalError(f"{self.name}: {event} leads from {self.state} to {to}, which is forbidden")
        self.state = to

    def forgive(self, missed: int, now: int) -> None:
        """Begin every time that is measured so much later."""
        self.started_ns = min(now, self.started_ns + missed)
        self.ready_ns = min(now, self.ready_ns + missed)
        self.alive_ns = min(now, self.alive_ns + missed)
        self.terminated_ns = min(now, self.terminated_ns + missed)
        if self.aborted_ns is not None:
            self.aborted_ns = min(now, self.aborted_ns + missed)


class Lifecycle:
    """Decides what happens to the workers, which are given as (name, kind) in start order."""

    def __init__(self, workers: Iterable[tuple[str, str]], limits: Limits) -> None:
        self.limits = limits
        self.phase = Phase.STARTING
        self.exit_status = 0
        self.workers = {name: Worker(name, kind) for name, kind in workers}
        self._pauses = Pauses()

    @property
    def is_stopping(self) -> bool:
        """Nothing is started any more."""
        return self.phase in (Phase.STOPPING, Phase.STOPPED)

    # -- the clock

    def look_at_clock(self, now: int) -> list[Action]:
        """Call before events are handled. After a pause of the supervisor, every limit of time begins anew."""
        missed = self._pauses.missed(now)
        if not missed:
            return []
        for worker in self.workers.values():
            worker.forgive(missed, now)
        return [ReportPause(missed)]

    def tick(self, heartbeats: Mapping[str, int], now: int) -> list[Action]:
        """Everything that is due. `heartbeats`: the oldest one of each worker, 0 before the first."""
        if self.phase is Phase.STOPPED:
            return []
        actions = self.look_at_clock(now)  # the pause may have been a moment ago
        if self.phase is not Phase.STOPPING:
            actions += self._start_due(now)
        for worker in self.workers.values():
            worker.alive_ns = max(worker.alive_ns, heartbeats[worker.name])
            actions += self._end_overdue(worker, now)
        return actions + (self._stop_next(now) if self.phase is Phase.STOPPING else self._follow_workers())

    def _start_due(self, now: int) -> list[Action]:
        due = [w for w in self.workers.values() if w.state is BACKOFF and w.due_ns <= now]
        if self.phase is Phase.STARTING:
            waiting = next((w for w in self.workers.values() if w.state is not RUNNING), None)
            if waiting is not None:  # workers of one kind start together: of many lanes there are many
                due += [w for w in self.workers.values() if w.kind == waiting.kind and w.state is STOPPED]
        return [self._start(worker, now) for worker in due]

    @staticmethod
    def _start(worker: Worker, now: int) -> Action:
        worker.move(Event.START, STARTING)
        worker.started_ns = now
        worker.aborted_ns = None
        return Start(worker.name)

    def _end_overdue(self, worker: Worker, now: int) -> list[Action]:
        if self._is_kill_due(worker, now):
            worker.move(Event.OVERDUE, worker.state)
            return [Kill(worker.name)]
        reason = self._hang(worker, now)
        if not reason:
            return []
        worker.move(Event.OVERDUE, worker.state)
        worker.aborted_ns = now
        return [Abort(worker.name, reason)]

    def _is_kill_due(self, worker: Worker, now: int) -> bool:
        if worker.state in ALIVE and worker.aborted_ns is not None:
            return now - worker.aborted_ns > ABORT_NS
        return worker.state is STOPPING and now - worker.terminated_ns > self.limits.drain_ns + GRACE_NS

    def _hang(self, worker: Worker, now: int) -> str:
        """Why the worker is taken for hung, "" if it is not, or was aborted for it already."""
        if worker.aborted_ns is not None:
            return ""
        silent = now - worker.alive_ns
        if worker.state is RUNNING and silent > self.limits.heartbeat_ns:
            return f"no heartbeat for {silent / 1e9:.1f} s"
        return "not ready in time" if worker.state is STARTING and now - worker.started_ns > READY_NS else ""

    def _stop_next(self, now: int) -> list[Action]:
        alive = [worker for worker in self.workers.values() if worker.state in ALIVE]
        if not alive:
            self._enter(Phase.STOPPED)
        return [
            self._terminate(worker, now)
            for worker in alive
            if worker.kind == alive[-1].kind and worker.state is not STOPPING
        ]

    @staticmethod
    def _terminate(worker: Worker, now: int, event: Event = Event.TERMINATE) -> Action:
        worker.move(event, STOPPING)
        worker.terminated_ns = now
        return Terminate(worker.name)

    def _follow_workers(self) -> list[Action]:
        running = all(worker.state is RUNNING for worker in self.workers.values())
        before = self.phase
        if running and before is not Phase.RUNNING:
            self._enter(Phase.RUNNING)
        elif not running and before is Phase.RUNNING:
            self._enter(Phase.DEGRADED)
        return [ReportRunning()] if running and before is Phase.STARTING else []

    def _enter(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise LocalError(f"the instance goes from {self.phase} to {phase}, which is forbidden")
        self.phase = phase

    # -- a worker's news

    def start_failed(self, name: str, reason: str, now: int) -> list[Action]:
        """The worker's process could not be made. Where all have run, that may pass: it counts as an early death."""
        worker = self.workers[name]
        text = f"{name} cannot be started: {reason}"
        if self.phase in (Phase.RUNNING, Phase.DEGRADED):
            decision = self.limits.policy.died(name, 1, 0, now)
            if not isinstance(decision, GiveUp):
                worker.move(Event.START_FAILED, BACKOFF)
                worker.due_ns = decision.at_ns
                return [ReportStartFailed(text)]
        worker.move(Event.START_FAILED, STOPPED)
        return self.stop(1, text)

    def became_ready(self, name: str, now: int) -> None:
        """The worker takes part from now on, unless it is being stopped."""
        worker = self.workers[name]
        worker.move(Event.READY, RUNNING if worker.state is STARTING else worker.state)
        worker.ready_ns = worker.alive_ns = now

    def died(self, name: str, status: int, now: int) -> list[Action]:
        """The worker has ended. `status`: its exit status, negative for a signal."""
        worker = self.workers[name]
        if worker.state is STOPPING or self.is_stopping:  # one that was replaced: the restart policy does not count it
            worker.move(Event.DIED, STOPPED if self.is_stopping else BACKOFF)
            worker.due_ns = now
            return []
        lived = now - worker.ready_ns if worker.state is RUNNING else 0
        report = ReportDeath(name, status, worker.aborted_ns is not None)
        decision = self.limits.policy.died(name, status, lived, now)
        if isinstance(decision, GiveUp):
            worker.move(Event.DIED, FAILED)
            return [report, *self.stop(status if status == EX_CONFIG else 1, decision.reason)]
        worker.move(Event.DIED, BACKOFF)
        worker.due_ns = decision.at_ns
        worker.restarts += 1
        worker.deaths += 1
        return [report]

    # -- an operator's wish

    def restart(self, names: Iterable[str], now: int) -> list[Action]:
        """Replace these workers, as far as they run. While the instance stops, none is replaced."""
        if self.is_stopping:
            return []
        return [self._replace(w, now) for w in map(self.workers.__getitem__, names) if w.state is RUNNING]

    def replace_at_once(self, now: int) -> list[Action]:
        """Kill every living worker, to be started again: what they are attached to is lost."""
        if self.is_stopping:
            return []
        alive = [worker for worker in self.workers.values() if worker.state in ALIVE]
        for worker in alive:
            if worker.state is not STOPPING:
                self._replace(worker, now)
        return [Kill(worker.name) for worker in alive]

    def _replace(self, worker: Worker, now: int) -> Action:
        worker.restarts += 1
        return self._terminate(worker, now, Event.RESTART)

    def stop(self, exit_status: int, reason: str) -> list[Action]:
        """Begin to stop; once it has begun, another reason changes nothing."""
        if self.is_stopping:
            return []
        self._enter(Phase.STOPPING)
        self.exit_status = exit_status
        return [ReportStopping(exit_status, reason)]

    def stop_without_drain(self) -> list[Action]:
        """Kill every living worker, for an operator who does not want to wait for the drain."""
        return [Kill(worker.name) for worker in self.workers.values() if worker.state in ALIVE]
