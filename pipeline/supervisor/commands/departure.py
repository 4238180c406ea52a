"""The planned stop of a server: clients that have another server go there before this one stops.

    stop(exit_status, reason)    tell the clients, and stop when they have gone, or after `move_timeout`
    stop_now()                   do not wait any longer
    tick(now)                    stop, if it is time

A client says in its HELLO whether it can go elsewhere. If none of those that are connected can, the stop is at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pipeline.log import LOG
from pipeline.runtime.supervisor_channel import Goaway
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.run.run import Run


class Role(Protocol):
    """The part of a server or of a client."""

    @property
    def movers(self) -> int:
        """How many clients are connected that can go to another server."""


class Departure:
    def __init__(self, run: Run, role: Role, workforce: Workforce, tell: Callable[[Goaway], object]) -> None:
        self._run = run
        self._role = role
        self._workforce = workforce
        self._tell = tell
        self._wanted: tuple[int, str] | None = None  # exit status and reason of the stop that is to come
        self._until_ns = 0

    @property
    def is_under_way(self) -> bool:
        return self._wanted is not None

    def stop(self, exit_status: int, reason: str) -> None:
        movers, patience = self._role.movers, self._run.config.move_timeout
        if self.is_under_way or not movers or not patience or self._workforce.lifecycle.is_stopping:
            self._wanted = None
            self._workforce.stop(exit_status, reason)
            return
        LOG.info("%s: about to stop; %d client(s) that have another server go there first", reason, movers)
        self._wanted = exit_status, reason
        self._until_ns = time.monotonic_ns() + int(patience * 1e9)
        self._tell(Goaway(goaway=True))

    def stop_now(self) -> None:
        if self._wanted is not None:
            self.stop(*self._wanted)

    def tick(self, now: int) -> None:
        if self._wanted is None:
            return
        movers = self._role.movers
        if movers and now < self._until_ns:
            return
        if movers:
            LOG.warning("%d client(s) are still here after %g s", movers, self._run.config.move_timeout)
        self.stop_now()
