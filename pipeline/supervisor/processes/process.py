"""The process of a worker: it takes over a spare, is watched, signalled and reaped."""

from __future__ import annotations

import os
import resource

from pipeline.runtime.plan import WorkerPlan
from pipeline.supervisor.processes.spare import Spare


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as possible: a server has one for each connection, and workers inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Process:
    """The present process of a worker, if there is one."""

    def __init__(self, plan: WorkerPlan, cores: list[int]) -> None:
        self.plan = plan
        self.cores = cores  # it is pinned to them; [] for none
        self.spare: Spare | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self.spare.pid if self.spare else 0

    def adopt(self, spare: Spare) -> None:
        """This spare becomes the worker's next process, once it has its assignment."""
        self.spare = spare

    def assign(self, number: int, fds: dict[str, int]) -> None:
        """Give the adopted spare its assignment. `number`, `fds`: see Spare.assign. OSError if it is dead."""
        assert self.spare is not None, f"{self.name} has no process"
        if self.cores:
            try:
                os.sched_setaffinity(self.pid, self.cores)
            except OSError:
                pass  # it died, or the core went away: not a reason to stop the tunnel
        self.spare.assign(self.name, number, fds)

    def reap(self) -> int:
        """Wait for the end of the process. Its exit status, negative for a signal."""
        assert self.spare is not None, f"{self.name} has no process"
        status = self.spare.reap()
        self.spare = None
        return status

    def send(self, number: int) -> None:
        """Send a signal, if there is a process."""
        if self.spare is not None:
            self.spare.send(number)
