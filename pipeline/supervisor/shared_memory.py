"""The shared memory of a plan: everything is created and unlinked here, by the supervisor."""

from __future__ import annotations

from pipeline.runtime.plan import Plan
from pipeline.shm import doorbell, peer_table, ring, scoreboard, segment


class SharedMemory:
    """Board, peers, rings and doorbells of one run. Creates all or nothing (LocalError)."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.rings: dict[str, ring.Ring] = {}
        try:
            self.scoreboard = scoreboard.create(plan.scoreboard, len(plan.workers))
            self.peers = peer_table.create(plan.peers.segment, plan.peers.capacity, plan.lanes, plan.peers.rows)
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
        segment.unlink(self._plan.scoreboard)
        segment.unlink(self._plan.peers.segment)
        for each in self._plan.rings:
            segment.unlink(each.segment)
        for worker in self._plan.workers:
            for name in worker.doorbells.values():
                doorbell.unlink(name)
