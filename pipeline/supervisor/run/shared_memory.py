"""The shared memory of a run: the supervisor creates and unlinks everything here.

Names in /dev/shm can be removed while an instance runs, by a tmp cleaner or by RemoveIPC of systemd-logind if the
supervisor's user is an ordinary one. Attached workers keep their mappings, but none could be started any more.
lost_names() notices; the supervisor makes another run then, with all its workers.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pipeline.runtime.plan import Plan
from pipeline.shm import doorbell, event_log, layout, overview, peer_table, ring, scoreboard, segment

OVERVIEW_BYTES = 65536  # for the settings, the notes and the rest
OVERVIEW_BYTES_PER_LANE = 4096  # for its workers and rings; a ring names the workers of all lanes
OVERVIEW_BYTES_PER_PEER = 320

LOOK_NS = 1_000_000_000  # between two looks at the names: some thirty times stat(2)


class Kept(NamedTuple):
    """The counters and events, which go on when the shared memory is made anew."""

    counts: list[list[int]]  # all counters, by page
    events: bytes


class SharedMemory:
    """Scoreboard, peer table, rings, doorbells, overview, event log of one run. Creates all or nothing (LocalError)."""

    def __init__(self, plan: Plan) -> None:
        self._next_look_ns = 0
        self._files: dict[str, tuple[int, int] | None] = {}  # what each path of ours leads to; None: to nothing already
        self.rings: dict[str, ring.Ring] = {}
        peers = plan.peer_table
        try:
            self.scoreboard = scoreboard.create(plan.scoreboard, len(plan.workers))
            self._note(segment.path(plan.scoreboard))
            self.peer_table = peer_table.create(
                peers.segment, peers.capacity, plan.lanes, peers.status_rows, plan.settings.datagrams
            )
            self._note(segment.path(peers.segment))
            self.event_log = event_log.create(plan.event_log)
            self._note(segment.path(plan.event_log))
            self.overview = overview.create(plan.overview, _overview_place(plan))
            self._note(segment.path(plan.overview))
            for each in plan.rings:
                self.rings[each.name] = ring.create(each.segment, each.members, each.slots, each.slot_bytes)
                self._note(segment.path(each.segment))
            for worker in plan.workers:
                for name in worker.doorbells.values():
                    doorbell.create(name)
                    self._note(segment.path(f"/sem.{name[1:]}"))
        except BaseException:
            self.unlink()
            raise

    def _note(self, path: str) -> None:
        self._files[path] = _identity(path)

    def lost_names(self, now: int) -> list[str]:
        """The files that are gone, or others by now. Looks once in LOOK_NS, and finds nothing in between."""
        if now < self._next_look_ns:
            return []
        self._next_look_ns = now + LOOK_NS
        return [path for path, identity in self._files.items() if identity is None or _identity(path) != identity]

    def kept(self) -> Kept:
        """For the next memory of this instance."""
        return Kept([page.counters.tolist() for page in self.scoreboard.pages], self.event_log.contents())

    def restore(self, kept: Kept) -> None:
        """Continue an earlier memory, with the same workers. Before any of them is started."""
        for page, values in zip(self.scoreboard.pages, kept.counts, strict=True):
            for index, value in enumerate(values):
                page.counters[index] = value
        self.event_log.restore(kept.events)

    def end(self) -> None:
        """Tell observers that this memory is in use no more, and remove its names."""
        self.overview.end()
        self.unlink()

    def unlink(self) -> None:
        """Remove our names, and leave alone what another has put under one of them. Workers keep their mappings."""
        for path, identity in self._files.items():
            if identity is not None and _identity(path) == identity:
                os.unlink(path)

    def close(self) -> None:
        """Remove all names, and unmap everything: the memory is free once no worker has it mapped."""
        self.end()
        self.scoreboard.close()
        self.peer_table.close()
        self.event_log.close()
        self.overview.close()
        for each in self.rings.values():
            each.close()


def _overview_place(plan: Plan) -> int:
    """Bytes for the overview's text: what is in it of each lane and of each peer; peers beyond that are left out."""
    need = OVERVIEW_BYTES + OVERVIEW_BYTES_PER_LANE * plan.lanes**2 + OVERVIEW_BYTES_PER_PEER * plan.peer_table.capacity
    return -(-need // layout.PAGE) * layout.PAGE


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
