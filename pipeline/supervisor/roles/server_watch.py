"""Looks whether a client is connected to its server, and records what changes as an event, with the reason.

connected         the first connection stands
reconnected       all connections had ended for less than a moment
lost              none has stood for a moment
server-changed    the connections lead to another address than before
server-trouble    attempts to reach the server fail: once for each reason, until there is a connection
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.events import Event
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.control.events import Events

LOST_NS = 1_000_000_000
SAID_MAX = 16  # reasons that are remembered: a server may give another one each time
UNKNOWN = "all connections have ended"
WORKER_NS = 5_000_000_000  # so long the death of a tcp worker explains that its connections have ended


class ServerWatch:
    """`since_ns`: when the present time with connections began; 0 without one.

    `before`: the watch of an earlier memory, which this one continues.
    """

    def __init__(self, table: PeerTable, events: Events, before: ServerWatch | None = None) -> None:
        self._table = table
        self._events = events
        self._count: int = before._count if before is not None else 0
        self._hosts: set[str] = before._hosts if before is not None else set()
        self._gone_ns = 0  # since when there is no connection, if there was one before; 0: it was said
        self._reason = ""
        self._worker = ("", 0)  # the last tcp worker that died, and about when
        self._now = 0
        self._said: set[str] = set()
        self.since_ns: int = before.since_ns if before is not None else 0

    def note(self, event: Event) -> None:
        """A subscriber: a worker's death ends connections."""
        if event.kind.name == "worker-died" and event.subject.startswith("tcp"):
            self._worker = event.subject, self._now

    def trouble(self, reasons: Iterable[str], failed: bool, host: str) -> None:
        """Why not all connections stand, as the workers report it. `failed`: attempts have failed."""
        for reason in reasons:
            self._reason = reason
            if failed and not self._count and reason not in self._said:
                if len(self._said) >= SAID_MAX:
                    self._said.clear()
                self._said.add(reason)
                self._events.record("server-trouble", host, reason)

    def tick(self, now: int) -> None:
        self._now = now
        count = self._table.established_count(0)
        if count and not self._count:
            self._connected(now)
        elif not count and self._count:
            self._gone_ns = now
            self._reason = ""
        elif not count and self._gone_ns and now - self._gone_ns >= LOST_NS:
            self._events.record("lost", text=self._why(now))
            self._gone_ns = self.since_ns = 0
        elif count > self._count:
            self._compare(self._present_hosts())
        self._count = count

    def _connected(self, now: int) -> None:
        hosts = self._present_hosts()
        where = ", ".join(sorted(hosts)) or "the server"
        if self._gone_ns:
            seconds = (now - self._gone_ns) / 1e9
            self._events.record("reconnected", text=f"to {where}, after {seconds:.1f} s: {self._why(now)}")
            self._gone_ns = 0
        else:
            self._events.record("connected", text=f"to {where}")
            self.since_ns = now
        self._said.clear()
        self._compare(hosts)

    def _compare(self, hosts: set[str]) -> None:
        if hosts and self._hosts and not hosts & self._hosts:
            self._events.record("server-changed", text=f"now {_listed(hosts)}, before {_listed(self._hosts)}")
        self._hosts = hosts or self._hosts

    def _why(self, now: int) -> str:
        worker, died_ns = self._worker
        if worker and now - died_ns < WORKER_NS:
            return f"{worker} died"
        return self._reason or UNKNOWN

    def _present_hosts(self) -> set[str]:
        return {
            row.address.rpartition(":")[0].strip("[]")
            for lane in range(len(self._table.links))
            for row in self._table.connections(lane)
            if row.state == "established"
        }


def _listed(hosts: Iterable[str]) -> str:
    return ", ".join(sorted(hosts))
