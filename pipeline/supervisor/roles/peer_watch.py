"""Looks which peers of a server are connected, and records each that joins or leaves as an event.

The peer table says how many connections each peer has. Why the last one has ended, its tcp worker reports
(EndReport). A peer whose connections are back within a moment has not left: a worker was replaced, or the path changed.
So it does not join again, unless it is another start of the client, or the server itself had ended its session.

All connections of a tcp worker end with it, and all its peers dial at once. They have a longer moment, so that the end
of one worker is one event and not two for each peer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.events import Event
from pipeline.peers.peer_status import PresentSession
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.control.events import Events

LOOK_NS = 250_000_000  # between two looks
LEFT_NS = 1_000_000_000  # without a connection, after which a peer has left
WORKER_NS = 5_000_000_000  # so long the end of a tcp worker explains that its peers are away
OF_WORKERS = {"worker-died": "died", "worker-restarted": "was replaced"}
"""Events of a tcp worker that end connections, and the words for a reason."""

REASON_LENGTH_MAX = 200
REASONS_MAX = 4096  # that are kept until their peer has left
UNKNOWN = "all its connections have ended"
NEWER = "its session was replaced by another one"

NAMELESS = "-"  # the name of a peer of the original program that has no address yet

NameSession = Callable[[int], PresentSession | None]
"""By index: the session of the peer there; None without a session."""


@dataclass(slots=True)
class _Present:
    """A peer that has joined."""

    handle: int
    name: str
    number: int  # of its session, as the client gives it; 0: it gives none
    gone_ns: int = 0  # since when it has no connection; 0: it has one
    why: str = ""  # it has none, if a tcp worker ended meanwhile


class PeerWatch:
    def __init__(self, table: PeerTable, events: Events, name_session: NameSession) -> None:
        self._table = table
        self._events = events
        self._name = name_session
        self._present: dict[int, _Present] = {}  # by index
        self._reasons: dict[int, str] = {}  # by peer handle
        self._ended_here: set[int] = set()  # peer handles whose sessions the server itself has ended
        self._due_ns = 0
        self._worker, self._worker_ns = "", -WORKER_NS  # what has happened to a tcp worker at last, and about when
        self._now = 0

    def note(self, event: Event) -> None:
        """A subscriber: a worker's death ends connections."""
        if event.kind.name not in OF_WORKERS or not event.subject.startswith("tcp"):
            return
        if not self._has_lost_worker:  # the first of both says why
            self._worker = f"{event.subject} {OF_WORKERS[event.kind.name]}"
        self._worker_ns = self._now

    def ended(self, peer_handle: object, reason: object) -> None:
        """A worker's report: the last connection of this peer has ended there. ValueError if it is none.

        Of a session that the server itself has ended, the server's reason stays.
        """
        if type(peer_handle) is not int or type(reason) is not str:
            raise ValueError(f"end of {peer_handle!r}: {reason!r}")
        if len(self._reasons) >= REASONS_MAX:
            self._reasons.clear()
            self._ended_here.clear()
        if peer_handle not in self._ended_here:
            self._reasons[peer_handle] = reason[:REASON_LENGTH_MAX]

    def session_ended(self, peer: int, reason: str) -> None:
        """The server has ended the session of this index, and has recorded why."""
        present = self._present.get(peer)
        if present is not None:
            self._reasons[present.handle] = reason
            self._ended_here.add(present.handle)

    def tick(self, now: int) -> None:
        self._now = now
        if now < self._due_ns:
            return
        self._due_ns = now + LOOK_NS
        handles = self._table.handles()
        connected = {peer for peer, count in enumerate(self._table.established_counts()) if count}
        for peer in self._present.keys() - connected:
            self._look_at_absent(peer, handles[peer], now)
        new = [peer for peer in connected if not self._is_present(peer, handles[peer])]
        hosts = self._hosts() if new else {}
        for peer in new:
            self._look_at_new(peer, handles[peer], hosts.get(peer, ""))

    def leave_all(self, reason: str) -> None:
        """The connections of all end."""
        for peer in list(self._present):
            self._left(peer, reason)

    def _is_present(self, peer: int, handle: int) -> bool:
        present = self._present.get(peer)
        if present is None or present.handle != handle:
            return False
        present.gone_ns, present.why = 0, ""
        return True

    def _hosts(self) -> dict[int, str]:
        """Where the peers are connected from."""
        rows = (row for lane in range(len(self._table.links)) for row in self._table.connections(lane))
        return {row.peer: row.address.rpartition(":")[0] for row in rows if row.state == "established"}

    def _look_at_new(self, peer: int, handle: int, host: str) -> None:
        found = self._name(peer)
        if found is None:
            return  # connections of a session that has ended: they end as well
        present = self._present.get(peer)
        name = found.name if found.name != NAMELESS else host
        about = ", ".join(filter(None, (found.addresses, f"from {host}" if host else "")))
        goes_on = present is not None and self._goes_on(present, found)
        if present is not None and present.name != name:
            self._left(peer, NEWER)
        elif present is not None:
            self._ended_here.discard(present.handle)
            about += f", again: {self._reasons.pop(present.handle, present.why or UNKNOWN)}"
        self._reasons.pop(handle, None)
        self._present[peer] = _Present(handle, name, found.number)
        if not goes_on:
            self._events.record("peer-joined", name, about)

    def _goes_on(self, present: _Present, found: PresentSession) -> bool:
        """Whether the peer has only made its connections anew: it is the same start of the client."""
        is_same = 0 < present.number == found.number and present.name == found.name
        return is_same and present.handle not in self._ended_here

    def _look_at_absent(self, peer: int, handle: int, now: int) -> None:
        present = self._present[peer]
        if not present.gone_ns:
            present.gone_ns = now
        if self._has_lost_worker and present.handle not in self._reasons:
            present.why = self._worker
        found = self._name(peer) if handle != present.handle else None
        is_another = handle != present.handle and not (found is not None and self._goes_on(present, found))
        if is_another or now - present.gone_ns >= (WORKER_NS if present.why else LEFT_NS):
            self._left(peer, present.why or UNKNOWN)

    @property
    def _has_lost_worker(self) -> bool:
        return self._now - self._worker_ns < WORKER_NS

    def _left(self, peer: int, otherwise: str) -> None:
        present = self._present.pop(peer)
        self._ended_here.discard(present.handle)
        self._events.record("peer-left", present.name, self._reasons.pop(present.handle, otherwise))
