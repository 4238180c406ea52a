"""The events of workers: deaths, hangs, failed starts, and each successor with the reason why one was needed."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from pipeline.events import Record
from pipeline.log import LOG
from pipeline.policy.lifecycle import Abort, ReportDeath, ReportStartFailed

ON_REQUEST = "replaced on request"


class WorkerEvents:
    def __init__(self, record: Record) -> None:
        self._record = record
        self._was_ready: set[str] = set()
        self._reasons: dict[str, str] = {}  # by worker: why its successor is needed

    def hung(self, action: Abort) -> None:
        self._record("worker-hung", action.worker, action.reason)
        self._reasons[action.worker] = f"its predecessor hung ({action.reason})"

    def died(self, action: ReportDeath) -> None:
        text = _describe(action.status, action.aborted)
        self._record("worker-died", action.worker, text)
        self._reasons.setdefault(action.worker, f"its predecessor died ({text})")

    def start_failed(self, action: ReportStartFailed) -> None:
        self._record("worker-start-failed", "", action.text)

    def expect(self, workers: Iterable[str], reason: str) -> None:
        """These workers are replaced for this reason."""
        self._reasons.update(dict.fromkeys(workers, reason))

    def ready(self, worker: str, pid: int) -> None:
        """The worker takes part from now on. Its first start is a line of the log alone."""
        reason = self._reasons.pop(worker, ON_REQUEST)
        if worker in self._was_ready:
            self._record("worker-restarted", worker, f"pid {pid}, {reason}")
        else:
            self._was_ready.add(worker)
            LOG.info("%s ready: pid %d", worker, pid)


def _describe(exit_status: int, aborted: bool) -> str:
    if exit_status >= 0:
        return f"exit status {exit_status}"
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:  # a real-time signal has no name there
        name = f"signal {-exit_status}"
    return name + (" (out of memory?)" if -exit_status == signal.SIGKILL and not aborted else "")
