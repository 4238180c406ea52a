"""The rolling restart of an instance, carried out: begun by a command, driven by the supervisor's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pipeline.log import LOG
from pipeline.policy.rolling_restart import GiveUp, Prepare, Replace, RollingRestart
from pipeline.supervisor.processes.spares import Spares
from pipeline.system import task_limit


class Rolling:
    """`replace`: drain a worker, and give its place to the spare of its kind."""

    def __init__(self, spares: Spares, replace: Callable[[str], None]) -> None:
        self._spares = spares
        self._replace = replace
        self._restart: RollingRestart | None = None
        self._error = ""  # why the last one gave up

    @property
    def is_under_way(self) -> bool:
        return self._restart is not None

    def begin(self, workers: Iterable[tuple[str, str]], limit_ns: int, now: int) -> None:
        """Replace these workers, (name, kind) in this order. Spares of the old program are thrown away."""
        self._spares.discard()
        self._error = ""
        self._restart = RollingRestart(workers, limit_ns, now)

    def tick(self, is_running: bool, now: int) -> None:
        if self._restart is None:
            return
        if not self._restart.left:
            LOG.info("rolling restart: all are replaced")
            self._restart = None
            return
        _, kind = self._restart.left[0]
        if kind in self._spares.failures:
            self._give_up(self._spares.failures[kind])
            return
        match self._restart.step(is_running, self._spares.is_waiting(kind), now):
            case Prepare(kind):
                self._prepare(kind)
            case Replace(worker):
                LOG.info("rolling restart: replacing %s", worker)
                self._replace(worker)
            case GiveUp(reason):
                self._give_up(reason)

    def cancel(self) -> None:
        """The instance stops."""
        if self._restart is not None:
            self._give_up("the instance stops")

    def status(self) -> dict[str, Any]:
        """`left`: the workers that are still to be replaced; `error`: why the last restart gave up, or ""."""
        left = self._restart.left if self._restart is not None else []
        return {"left": [name for name, _ in left], "error": self._error}

    def _prepare(self, kind: str) -> None:
        try:
            self._spares.prepare(kind)
        except OSError as error:
            self._give_up(f"a process of kind {kind} cannot be started: {task_limit.explain(error)}")

    def _give_up(self, reason: str) -> None:
        assert self._restart is not None
        left = ", ".join(name for name, _ in self._restart.left)
        self._error = f"{reason}; not replaced: {left}"
        self._restart = None
        LOG.error("rolling restart given up: %s", self._error)
