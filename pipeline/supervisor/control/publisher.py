"""The publisher of the overview: what the supervisor knows, for observers, whenever it has changed.

    tick(now)        look a few times a second, and soon after an event
    publish_now()    before the answer to a command is sent: who has it and looks sees what the command has changed
    status()         the snapshot of this moment, for the command socket

It is cheap: it gathers what changes slowly, compares, and writes only if something differs. No secret is in the
overview: the plan has none, and neither have the facts.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from pipeline.events import Event
from pipeline.observe import snapshot
from pipeline.observe.overview_text import compose
from pipeline.observe.process_stat import CpuMeter, read_process
from pipeline.runtime.assignment import FORMAT
from pipeline.supervisor.control.gathered_peers import GatheredPeers
from pipeline.supervisor.control.instance_facts import InstanceFacts
from pipeline.supervisor.run.run import Run
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.version import VERSION

INTERVAL_NS = 250_000_000  # between two looks at what changes slowly
SHARE = 50  # looks that events bring take at most one part in so many of the supervisor's time


class Publisher:
    """`use` comes with each new memory and plan. The peers stand last, and those that find no room are counted."""

    def __init__(self, run: Run, facts: InstanceFacts, peers: GatheredPeers) -> None:
        self._run = run
        self._facts = facts
        self._peers = peers
        self._meter = CpuMeter()
        self._fixed = _fixed()
        self._published: tuple[dict[str, Any], object, int] | None = None
        self._due_ns = 0
        self._has_news = False  # an event came after the last look
        self._rested_ns = 0  # before that, no event brings a look

    def use(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._published = None
        self._due_ns = 0

    def handle(self, event: Event) -> None:
        """A subscriber of the events. `up` is published at once: a service manager tells others."""
        self._has_news = True
        if event.kind.name == "up":
            self.publish_now()

    def tick(self, now: int) -> None:
        self._memory.overview.beat(now)
        if now >= self._due_ns or (self._has_news and now >= self._rested_ns):
            self._due_ns = now + INTERVAL_NS
            self._publish(now)

    def publish_now(self) -> None:
        now = time.monotonic_ns()
        self._memory.overview.beat(now)
        self._publish(now, at_once=True)

    def status(self) -> dict[str, Any]:
        self.publish_now()
        peers = [json.loads(row) for row in self._peers.rows]
        about = self._facts.gather() | self._fixed | {"peers": peers, "peers_left_out": 0}
        return snapshot.build(about, self._run.plan, self._memory, self._meter, time.monotonic_ns())

    def _publish(self, now: int, at_once: bool = False) -> None:
        """Write the overview if it differs from the one before."""
        began = time.monotonic_ns()
        self._has_news = False
        self._peers.gather(now, at_once)
        facts = self._facts.gather()
        current = facts, self._run.plan, self._peers.version
        if current != self._published:
            self._published = current
            overview = self._memory.overview
            overview.publish(compose(self._fixed | facts, self._run.plan.to_json(), self._peers.rows, overview.room))
        self._rested_ns = now + SHARE * (time.monotonic_ns() - began)


def _fixed() -> dict[str, Any]:
    """The part that never changes: which process this is, and how others have to read what it writes."""
    own = read_process(os.getpid())
    return {
        "format": FORMAT.decode(),
        "version": VERSION,
        "pid": os.getpid(),
        "began": own.began if own else 0,
    }
