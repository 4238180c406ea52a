"""A glance: the numbers of an instance that move, added up, without a row for each peer and connection.

    take(about, plan, memory, now)      the glance at `now`
    rates(before, after)                every counter per second, by worker
    SegmentTotals                       what the kernel has sent, and sent again, from glance to glance

It costs a fraction of a snapshot where there are thousands of peers. The exporter makes its history out of glances.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from pipeline.counters import COUNTERS
from pipeline.observe.snapshot import Memory, counters_of, running_senders
from pipeline.runtime.plan import Plan
from pipeline.shm.connection_status import ConnectionColumns
from pipeline.wire import framing

LEAST_NS = 1_000_000  # between two glances, for a rate

Counters = dict[str, int]

_RESENT = ConnectionColumns._fields.index("resent_segments")
_SENT = ConnectionColumns._fields.index("sent_segments")


class Glance(NamedTuple):
    """`workers`: the counters of each, by name. `connections`: by tcp worker, the established ones."""

    taken_ns: int
    workers: dict[str, Counters]
    peers_connected: int
    connections: dict[str, ConnectionColumns]

    def totals(self) -> Counters:
        """Every counter, added up over the workers."""
        totals = dict.fromkeys((each.name for each in COUNTERS), 0)
        for counters in self.workers.values():
            for name, value in counters.items():
                totals[name] += value
        return totals

    def round_trips(self) -> tuple[float, float]:
        """The median and the longest of the connections, in seconds; NaN without one."""
        found = [rtt for rtt in chain.from_iterable(each.rtts_us for each in self.connections.values()) if rtt]
        return (statistics.median(found) / 1e6, max(found) / 1e6) if found else (math.nan, math.nan)

    def established(self, traffic_class: int) -> int:
        """Connections of a class."""
        return sum(each.traffic_classes.count(traffic_class) for each in self.connections.values())

    @property
    def established_in_all(self) -> int:
        return self.established(framing.BULK) + self.established(framing.LIGHT)


def take(about: Mapping[str, Any], plan: Plan, memory: Memory, now: int) -> Glance:
    """The glance at `now` (CLOCK_MONOTONIC ns)."""
    peers = memory.peer_table
    return Glance(
        now,
        {each.name: counters_of(each.kind, memory.scoreboard.pages[each.page]) for each in plan.workers},
        sum(count > 0 for count in peers.established_counts()),
        {each.name: peers.connection_columns(each.lane) for each in running_senders(about, plan)},
    )


def rates(before: Glance | None, after: Glance) -> dict[str, dict[str, float]]:
    """Every counter of every worker, per second. Nothing without an earlier glance; 0 of a counter that was reset."""
    if before is None or after.taken_ns - before.taken_ns < LEAST_NS:
        return {}
    seconds = (after.taken_ns - before.taken_ns) / 1e9
    return {
        worker: {
            name: max(0, value - before.workers.get(worker, counters).get(name, value)) / seconds
            for name, value in counters.items()
        }
        for worker, counters in after.workers.items()
    }


class SegmentTotals:
    """TCP segments, added up over all connections: numbers that only grow. They begin at 0 with the first glance.

    The kernel counts for each connection, and its count goes with the connection. Here what a connection adds from one
    glance to the next is added to the total; what it adds after its last glance is lost.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.resent = 0
        self._before: Mapping[str, ConnectionColumns] | None = None

    def add(self, connections: Mapping[str, ConnectionColumns]) -> None:
        """The connections of the next glance, by worker. Those of the first one count from then on."""
        if self._before is not None:
            for worker, found in connections.items():
                before = self._before.get(worker)
                self.sent += _growth(before, found, _SENT)
                self.resent += _growth(before, found, _RESENT)
        self._before = connections


def _growth(before: ConnectionColumns | None, after: ConnectionColumns, column: int) -> int:
    """The sum of what each connection has added to a column; the serial tells them apart."""
    now = after[column]
    if before is None:
        return sum(now)
    if before.serials == after.serials:
        return sum(max(0, value - then) for then, value in zip(before[column], now, strict=True))
    known = dict(zip(before.serials, before[column], strict=True))
    return sum(max(0, value - known.get(serial, 0)) for serial, value in zip(after.serials, now, strict=True))
