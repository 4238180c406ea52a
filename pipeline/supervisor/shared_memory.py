"""The shared memory of a run: the supervisor creates and unlinks everything here."""

from __future__ import annotations

from pipeline.runtime.plan import Plan
from pipeline.shm import doorbell, peer_table, ring, scoreboard, segment


class SharedMemory:
    """Scoreboard, peer table, rings and doorbells of one run. Creates all or nothing (LocalError)."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.rings: dict[str, ring.Ring] = {}
        try:
            self.scoreboard = scoreboard.create(plan.scoreboard, len(plan.workers))
            peers = plan.peer_table
            self.peer_table = peer_table.create(peers.segment, peers.capacity, plan.lanes, peers.status_rows)
            for each in plan.rings:
                self.rings[each.name] = ring.create(each.segment, each.members, each.slots, each.slot_bytes)
            for worker in plan.workers:
                for name in worker.doorbells.values():
                    doorbell.create(name)
        except BaseException:
            self.unlink()
            raise

    def unlink(self) -> None:
        """Remove all names. Attached workers keep their mappings."""
        plan = self._plan
        for name in (plan.scoreboard, plan.peer_table.segment, *(each.segment for each in plan.rings)):
            segment.unlink(name)
        for worker in plan.workers:
            for name in worker.doorbells.values():
                doorbell.unlink(name)
