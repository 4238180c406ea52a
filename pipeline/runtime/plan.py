"""The plan: what a run consists of, as data. Made by `topology`, carried out by the supervisor, read by
workers.

A worker gets it as JSON through a file descriptor and finds its place in it by its name. This module imports
neither msgspec nor numpy, because a worker that starts quickly is a short gap in the traffic.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class WorkerPlan(NamedTuple):
    """A process: `kind` is tun, fec or tcp; `page` its page on the board; `doorbells` one name per duty."""

    name: str
    kind: str
    lane: int
    page: int
    doorbells: dict[str, str]


class StageMember(NamedTuple):
    """One visitor of a ring: a duty of a worker."""

    worker: str
    duty: str


class RingPlan(NamedTuple):
    """A ring: `stages` in the order in which a slot passes them, each one member or a group of them."""

    name: str
    segment: str
    kind: str
    lane: int
    slots: int
    slot_bytes: int
    stages: list[list[StageMember]]

    @property
    def members(self) -> int:
        return sum(len(stage) for stage in self.stages)

    def place(self, member: StageMember) -> StagePosition | None:
        """Where this member stands, or None if it does not visit this ring."""
        number = 0
        for index, stage in enumerate(self.stages):
            for position, candidate in enumerate(stage):
                if candidate == member:
                    return StagePosition(
                        number + position,
                        position,
                        self._numbers(index - 1),
                        index == 0,
                        self.stages[(index + 1) % len(self.stages)],
                    )
            number += len(stage)
        return None

    def _numbers(self, stage: int) -> list[int]:
        stage %= len(self.stages)
        first = sum(len(s) for s in self.stages[:stage])
        return list(range(first, first + len(self.stages[stage])))


class StagePosition(NamedTuple):
    """A member's place: its number in the ring, its position in its stage, the member numbers before it, and
    whom it kicks after it has advanced."""

    number: int
    position: int
    before: list[int]
    first: bool
    after: list[StageMember]


class PeerTablePlan(NamedTuple):
    """The peers segment: how many peers can be connected, and how many connections a tcp worker can have."""

    segment: str
    capacity: int
    rows: int


class Plan(NamedTuple):
    """One run of one instance. `workers` stand in start order; they are stopped in reverse."""

    name: str
    run_id: str
    mode: str
    lanes: int
    scoreboard: str
    peers: PeerTablePlan
    workers: list[WorkerPlan]
    rings: list[RingPlan]
    settings: dict

    def worker(self, name: str) -> WorkerPlan:
        return next(w for w in self.workers if w.name == name)

    def of_kind(self, kind: str) -> list[WorkerPlan]:
        return [w for w in self.workers if w.kind == kind]

    def to_json(self) -> str:
        return json.dumps(self)  # named tuples become arrays; from_json puts the names back

    @classmethod
    def from_json(cls, text: str) -> Plan:
        plan = cls(*json.loads(text))
        return plan._replace(
            peers=PeerTablePlan(*plan.peers),
            workers=[WorkerPlan(*w) for w in plan.workers],
            rings=[_ring(r) for r in plan.rings],
        )


def _ring(fields: list) -> RingPlan:
    ring = RingPlan(*fields)
    return ring._replace(stages=[[StageMember(*m) for m in stage] for stage in ring.stages])
