"""The process of a bridge: started where there is a plan for it, and again whenever it has ended.

    use(plan, loss)       the plan from now on; another one ends the process
    tick(now, listening)  what is due: a start, the end of a process that hangs

It is never given up, for without it some or all connections cannot be made. One that has lived for STABLE_NS is started
again at once.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable

from pipeline.bridge.plan import BridgePlan, WebSocketPlan, to_text
from pipeline.events import Record
from pipeline.policy.backoff import Backoff
from pipeline.supervisor.processes.companion import Companion
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.system import task_limit

SECOND = 1_000_000_000
STABLE_NS = 10 * SECOND
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0  # seconds


class BridgeProcess:
    """`notes`: what is wrong with it, for the status. `reports`: the last ones of the process."""

    def __init__(self, selector: selectors.BaseSelector, precedence: Precedence, record: Record) -> None:
        self._precedence = precedence
        self._record = record
        self._companion = Companion("bridge", "pipeline.bridge", selector, self)
        self._plan: BridgePlan | WebSocketPlan | None = None
        self._loss = ""  # without it, in words
        self._backoff = Backoff(BACKOFF_MIN, BACKOFF_MAX)
        self._next_ns = self._started_ns = 0
        self.notes: list[str] = []
        self.reports = b""

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._companion.pid

    def use(self, plan: BridgePlan | WebSocketPlan | None, loss: str) -> None:
        """Connections through a process that is replaced end."""
        self._loss = loss
        if plan != self._plan:
            self._plan = plan
            self.end()
            self._backoff.reset()
            self._next_ns = 0

    def tick(self, now: int, listening: Callable[[], socket.socket | None]) -> None:
        """`listening`: gives the socket on which the process accepts; None: not now."""
        self._companion.tick(now)
        if self._plan is None or self.pid or now < self._next_ns:
            return
        listener = listening()
        if listener is not None:
            self._start(self._plan, listener, now)

    def end(self) -> None:
        """Leave no process."""
        self._companion.end()
        self.notes, self.reports = [], b""

    def _start(self, plan: BridgePlan | WebSocketPlan, listener: socket.socket, now: int) -> None:
        try:
            pid = self._companion.start(listener, to_text(plan), now)
        except OSError as error:
            self._note_death(f"its process cannot be started: {task_limit.explain(error)}", now)
            return
        self._precedence.set_worker(pid)
        self._started_ns = now

    def on_sign(self, reports: bytes, now: int) -> None:
        self.notes, self.reports = [], reports
        if now - self._started_ns > STABLE_NS:
            self._backoff.reset()

    def on_died(self, reason: str, status: int, now: int) -> None:
        self._note_death(reason, now)

    def _note_death(self, reason: str, now: int) -> None:
        self._next_ns = now + int(self._backoff.next_delay() * SECOND)
        self.notes, self.reports = [f"{self._loss}: the bridge has died: {reason}"], b""
        self._record("bridge-died", "", reason)
