"""An observer of one instance over its life: it attaches, builds snapshots, and attaches anew when it has to.

    snapshot()      the snapshot of this moment; NotRunning or LocalError while there is none
    outline()       the same without a row for each of a hub's peers and connections; peers() has those of the peers
    glance()        the numbers that move, added up
    read_events()   the events since the last call; the first call gives those that are still there
    read_last()     the last events of a run that has ended

An instance that makes its shared memory anew, or that was stopped and started again, is followed. See
pipeline.observe.run_view about rights.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from typing import Any

from pipeline.errors import NotRunning
from pipeline.observe import glance, run_view, snapshot
from pipeline.observe.glance import Glance
from pipeline.observe.process_stat import CpuMeter
from pipeline.observe.run_view import RunView
from pipeline.peers.peer_status import PeerStatus
from pipeline.shm.event_log import Read


class Observer:
    """`owner`: the supervisor's user, None for our own."""

    def __init__(self, name: str, owner: int | None = None) -> None:
        self.name = name
        self._owner = owner
        self._view: RunView | None = None
        self._meter = CpuMeter()
        self._supervisor = (0, 0)  # pid and begin
        self._next_event = 0

    def view(self) -> RunView:
        """The view of the present run. NotRunning or LocalError if there is none at this moment."""
        if self._view is not None and self._view.has_ended:
            self.close()
        if self._view is None:
            self._view = run_view.attach(self.name, self._owner)
        return self._view

    def snapshot(self) -> dict[str, Any]:
        view = self.view()
        return snapshot.build(view.read_overview(), view.plan, view, self._meter, time.monotonic_ns())

    def outline(self) -> dict[str, Any]:
        view = self.view()
        return snapshot.outline(view.read_overview(), view.plan, view, self._meter, time.monotonic_ns())

    def glance(self) -> Glance:
        view = self.view()
        return glance.take(view.read_overview(), view.plan, view, time.monotonic_ns())

    def peers(self, first: int | None = None, *, by_class: bool = True) -> Iterator[PeerStatus]:
        """The peers, each when it is reached; or the first few by name. `by_class`: with the bytes of each class."""
        view = self.view()
        about = view.read_overview()
        rows = about["peers"]
        if first is not None:
            rows = heapq.nsmallest(first, rows, key=lambda row: row["name"])
        now = time.monotonic_ns()
        return snapshot.peers(rows, about, view.plan, view.peer_table, now, by_class=by_class)

    @property
    def peers_known(self) -> int:
        """Peers of which the overview tells, and those that it had no room for."""
        about = self.view().read_overview()
        return len(about["peers"]) + int(about["peers_left_out"])

    def read_events(self) -> Read:
        """A supervisor that was started anew counts its events from 0."""
        view = self.view()
        supervisor = view.about["pid"], view.about["began"]
        if supervisor != self._supervisor:
            self._supervisor, self._next_event = supervisor, 0
        found = view.event_log.read(self._next_event)
        self._next_event = found.next
        return found

    def read_last(self) -> Read:
        """The events since the last call that a run which has ended has left; none while it goes on."""
        if self._view is None or not self._view.has_ended:
            return Read([], 0, self._next_event)
        found = self._view.event_log.read(self._next_event)
        self._next_event = found.next
        self.close()
        return found

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None


def wait_for(name: str, owner: int | None, seconds: float) -> Observer:
    """An observer of an instance that runs, starts, or makes its shared memory anew right now.

    NotRunning or LocalError if it has nothing to show after so many seconds.
    """
    observer = Observer(name, owner)
    until = time.monotonic() + seconds
    while True:
        try:
            observer.view()
        except NotRunning:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            return observer
