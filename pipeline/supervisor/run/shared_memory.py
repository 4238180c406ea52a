"""The shared memory of a run: the supervisor creates and unlinks everything here.

Names in /dev/shm can be removed while an instance runs, by a tmp cleaner or by RemoveIPC of systemd-logind if the
supervisor's user is an ordinary one. Attached workers keep their mappings, but none could be started any more.
lost_names() notices; the supervisor makes another run then, with all its workers.
"""

from __future__ import annotations

import os

from pipeline.runtime.plan import Plan
from pipeline.shm import doorbell, peer_table, ring, scoreboard, segment

LOOK_NS = 1_000_000_000  # between two looks at the names: some thirty times stat(2)


class SharedMemory:
    """Scoreboard, peer table, rings and doorbells of one run. Creates all or nothing (LocalError)."""

    def __init__(self, plan: Plan) -> None:
        self._next_look_ns = 0
        self._files: dict[str, tuple[int, int] | None] = {}  # what each path of ours leads to; None: to nothing already
        self.rings: dict[str, ring.Ring] = {}
        peers = plan.peer_table
        try:
            self.scoreboard = scoreboard.create(plan.scoreboard, len(plan.workers))
            self._note(segment.path(plan.scoreboard))
            self.peer_table = peer_table.create(peers.segment, peers.capacity, plan.lanes, peers.status_rows)
            self._note(segment.path(peers.segment))
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

    def counts(self) -> list[list[int]]:
        """All counters, by page."""
        return [page.counters.tolist() for page in self.scoreboard.pages]

    def set_counts(self, counts: list[list[int]]) -> None:
        """Continue the counters of an earlier run with the same workers. Before any of them is started."""
        for page, values in zip(self.scoreboard.pages, counts, strict=True):
            for index, value in enumerate(values):
                page.counters[index] = value

    def unlink(self) -> None:
        """Remove our names, and leave alone what another has put under one of them. Workers keep their mappings."""
        for path, identity in self._files.items():
            if identity is not None and _identity(path) == identity:
                os.unlink(path)

    def close(self) -> None:
        """Remove all names, and unmap everything: the memory is free once no worker has it mapped."""
        self.unlink()
        self.scoreboard.close()
        self.peer_table.close()
        for each in self.rings.values():
            each.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
