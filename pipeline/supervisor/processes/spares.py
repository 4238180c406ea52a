"""The spares of an instance: at most one of each kind, started in calm moments, taken when a worker is needed.

A spare is as old as its code: `discard()` throws all away before workers are replaced for a new program on disk.
"""

from __future__ import annotations

import selectors
import signal
from collections.abc import Iterable
from typing import Any

from pipeline.log import LOG
from pipeline.policy.spare_schedule import SpareSchedule
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.processes.spare import Spare, SpareState
from pipeline.system import task_limit


class Spares:
    """`enabled`: spares are kept; else each is made when it is needed. `mode`: server or client."""

    def __init__(
        self,
        kinds: Iterable[str],
        mode: str,
        enabled: bool,
        selector: selectors.BaseSelector,
        precedence: Precedence,
    ) -> None:
        self._enabled = enabled
        self._mode = mode
        self._selector = selector
        self._schedule = SpareSchedule(dict.fromkeys(kinds))
        self._spares: dict[str, Spare] = {}
        self._ticked_ns = 0
        self.failures: dict[str, str] = {}  # by kind: why the last spare that prepare() started is no more
        self._precedence = precedence

    def tick(self, calm: bool, now: int) -> None:
        """Start the spare that is due. `calm`: every worker runs."""
        self._ticked_ns = now
        if not self._enabled:
            return
        importing = any(spare.state is SpareState.IMPORTING for spare in self._spares.values())
        kind = self._schedule.next_due(self._spares, importing, calm, now)
        if kind is None:
            return
        try:
            self.prepare(kind, after_workers=True)
        except OSError as error:
            LOG.warning("a spare of kind %s cannot be started: %s", kind, task_limit.explain(error))
            self._schedule.failed(kind, now)

    def enable(self, enabled: bool) -> None:
        """Keep spares from now on, or keep none."""
        self._enabled = enabled
        if not enabled:
            self.discard()

    def prepare(self, kind: str, after_workers: bool = False) -> None:
        """Start a spare of this kind, unless there is one. `after_workers`: it waits for its core. OSError."""
        if kind in self._spares:
            return
        self.failures.pop(kind, None)
        spare = Spare(kind, self._mode)
        if after_workers:
            self._precedence.set_spare(spare.pid)
        else:
            self._precedence.set_worker(spare.pid)
        self._spares[kind] = spare
        self._selector.register(spare.pidfd, selectors.EVENT_READ, lambda: self._died(spare))
        self._selector.register(spare.channel, selectors.EVENT_READ, lambda: self._read_news(spare))

    def is_waiting(self, kind: str) -> bool:
        """Whether a spare of this kind has imported everything."""
        return kind in self._spares and self._spares[kind].state is SpareState.WAITING

    def take(self, kind: str) -> Spare:
        """The spare of this kind, or a new one; the caller watches it from now on. OSError if none can be made."""
        spare = self._spares.pop(kind, None)
        if spare is not None and spare.is_dead:
            self._end(spare)
            spare = None
        if spare is None:
            spare = Spare(kind, self._mode)
        else:
            self._forget(spare)
            self._schedule.succeeded(kind)
        self._precedence.set_worker(spare.pid)
        return spare

    def discard(self) -> None:
        """End all spares."""
        self.failures.clear()
        while self._spares:
            _, spare = self._spares.popitem()
            self._end(spare)

    def rows(self) -> list[dict[str, Any]]:
        """For the status: kind, pid and state of each."""
        return [{"kind": spare.kind, "pid": spare.pid, "state": spare.state} for spare in self._spares.values()]

    # -- news of a spare

    def _read_news(self, spare: Spare) -> None:
        state = spare.read_news()
        if state is None:
            self._selector.unregister(spare.channel)  # it has died: _died comes next
        elif state is SpareState.FOREIGN:
            self._fail(spare, "the program on disk was replaced by one that does not fit this run: start it anew")

    def _died(self, spare: Spare) -> None:
        self._fail(spare, f"a spare of kind {spare.kind} has died")

    def _fail(self, spare: Spare, reason: str) -> None:
        LOG.warning("%s", reason)
        self.failures[spare.kind] = reason
        self._schedule.failed(spare.kind, self._ticked_ns)
        del self._spares[spare.kind]
        self._end(spare)

    def _end(self, spare: Spare) -> None:
        self._forget(spare)
        spare.send(signal.SIGKILL)
        spare.reap()

    def _forget(self, spare: Spare) -> None:
        self._selector.unregister(spare.pidfd)
        if spare.channel in self._selector.get_map():
            self._selector.unregister(spare.channel)
