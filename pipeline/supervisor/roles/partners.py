"""The partners of a client: other clients of its hub, to which it may have direct paths (docs/direct.md).

    start(table, ...)     the shared memory of this time: no partner is there
    heard(request)        a note of the hub has come
    tick(now)             where we are is told; each partner is judged; news go to the hub
    rows(now)             for `status`

A pair belongs to the session with the hub in which the hub has begun it, and ends with it. A pair that the hub forbids
ends at once. Another one that ends *leaves*: its datagrams end, and for LEAVES_NS its keys stay. So packets that no
datagram has brought there go by the hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import PeerError
from pipeline.packet.route_table import DEFAULT_ROUTES, OWN
from pipeline.peers.peer_datagrams import best_paths
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.policy.carrier_order import Kind
from pipeline.policy.direct_pairs import PARTNERS_MAX
from pipeline.policy.partner_verdict import HUB_GONE, LowestTrip, PartnerFacts, why_end
from pipeline.runtime.supervisor_channel import NoteReport, SendNote
from pipeline.sealing.session import SealedSession, session_of_pair
from pipeline.shm.datagram_secrets import DatagramServer, pack_places
from pipeline.shm.layout import (
    DATAGRAM_PATH,
    DATAGRAM_ROUND_TRIP,
    PEER_INDEX_BITS,
    PEER_INDEX_MASK,
    RECORD_WORDS,
    SERVER,
)
from pipeline.shm.peer_table import DATAGRAM_COUNTS, PeerTable
from pipeline.supervisor.control.events import Events
from pipeline.wire import notes
from pipeline.wire.notes import Here, Pair, PairState, Place, State

LOOK_NS = 250_000_000
HERE_AGAIN_NS = 60_000_000_000
"""A note may be lost, and a hub forgets."""

LEAVES_NS = 500_000_000
"""The dgram workers of both ends see within a tenth of a second that their secrets are gone."""

HUB_ENDS = "another session with the hub has begun"
REPLACED = "the hub has begun it anew"

_SENT, _LOST = (list(DATAGRAM_COUNTS).index(name) for name in ("sent_segments", "lost_segments"))

Hub = tuple[int, SealedSession]
"""The peer handle of the present session with the hub, and the session."""


@dataclass(slots=True)
class _Partner:
    pair: Pair
    peer_handle: int
    began_ns: int
    state_ns: int
    used_ns: int
    used_bytes: int
    counts: list[int]  # of segments, when it began
    trip: LowestTrip
    is_open: bool = False
    was_open: bool = False
    leaves_ns: int = 0  # when it ends; 0: it goes on
    why: str = ""

    @property
    def index(self) -> int:
        return self.peer_handle & PEER_INDEX_MASK


@dataclass(slots=True)
class _Here:
    """The latest note of where we are: in which session it was sent, when, and what it said."""

    peer_handle: int = 0
    sent_ns: int = 0
    places: tuple[Place, ...] = field(default=())


class Partners:
    """`places`: where this client is in its own network, as it reaches its server."""

    def __init__(self, events: Events, places: Callable[[], Sequence[Place]]) -> None:
        self._events = events
        self._places = places
        self._partners: dict[int, _Partner] = {}  # by the number of the pair
        self._made = 0  # handles
        self._here = _Here()
        self._hub_handle = 0
        self._hub_seen_ns = 0
        self._due_ns = 0
        self._ended: dict[str, tuple[str, int]] = {}  # by name: why the latest pair has ended, and when
        self.tell_workers: Callable[[SendNote], object] = lambda note: None
        self._table: PeerTable
        self._sessions: SealedSessions

    def start(self, table: PeerTable, sessions: SealedSessions) -> None:
        self._table, self._sessions = table, sessions
        self._partners.clear()

    # -- notes

    def heard(self, request: NoteReport, hub: Hub | None, now: int) -> None:
        """PeerError for a note that is none of the hub's."""
        if hub is None or request["peer_handle"] != hub[0]:
            return
        data = hub[1].notes.open(bytes.fromhex(request["heard"]))
        if data is None:
            return
        note = notes.unpack(data)
        if isinstance(note, Pair):
            self._follow_hub(hub)
            self._begin(note, now)
        elif isinstance(note, State) and note.number in self._partners:
            partner, reason = self._partners[note.number], f"the hub: {note.reason}"
            if note.state is PairState.FORBIDDEN:
                self._end(partner, reason, now)
            elif note.state is PairState.ENDED:
                self._leave(partner, reason, now)

    def _tell(self, hub: Hub, note: notes.Note) -> None:
        self.tell_workers(SendNote(note=hub[1].notes.seal(note.pack()).hex(), peer_handle=hub[0]))

    # -- they begin and end

    def _begin(self, pair: Pair, now: int) -> None:
        if pair.number in self._partners:
            return
        for other in [each for each in self._partners.values() if each.pair.name == pair.name]:
            self._end(other, REPLACED, now)
        free = set(range(SERVER + 1, self._table.capacity)) - {each.index for each in self._partners.values()}
        if not free or len(self._partners) >= PARTNERS_MAX:
            raise PeerError("the hub begins more pairs than there may be")
        session = session_of_pair(pair.suite, pair.number, pair.secret, pair.side)
        self._made += 1
        index = min(free)
        peer_handle = self._made << PEER_INDEX_BITS | index
        table = self._table
        self._partners[pair.number] = _Partner(
            pair, peer_handle, now, now, now, self._used(index), table.datagram_counts(index), LowestTrip(now)
        )
        self._sessions.begin(peer_handle, session, now)
        table.write_record(peer_handle, 0, offloads=pair.offloads)
        self._sessions.use_datagrams(peer_handle, DatagramServer(), pack_places(pair.places))
        self._write_routes()

    def _leave(self, partner: _Partner, reason: str, now: int) -> None:
        if not partner.leaves_ns:
            partner.leaves_ns, partner.why = now + LEAVES_NS, reason
            self._sessions.use_datagrams(partner.peer_handle, None)

    def _end(self, partner: _Partner, reason: str, now: int) -> None:
        """Nothing more of it is opened, whatever else happens."""
        del self._partners[partner.pair.number]
        self._write_routes()
        self._made += 1
        self._table.write_record(self._made << PEER_INDEX_BITS | partner.index, 0)
        self._sessions.end(partner.peer_handle)
        self._ended[partner.pair.name] = reason, now
        while len(self._ended) > 2 * PARTNERS_MAX:
            del self._ended[next(iter(self._ended))]
        self._events.record("direct-ended", partner.pair.name, reason)

    def end_all(self, reason: str, now: int) -> None:
        for partner in list(self._partners.values()):
            self._end(partner, reason, now)

    def _write_routes(self) -> None:
        """To a partner only what the hub has said that it has."""
        routes = [(*route, self._hub_handle) for route in DEFAULT_ROUTES]
        for partner in self._partners.values():
            routes += [(*network, partner.peer_handle) for network in partner.pair.networks]
            routes += [(*network, OWN) for network in partner.pair.own]
        self._table.write_routes(routes)

    def _follow_hub(self, hub: Hub | None) -> None:
        """Pairs of another session with the hub are over."""
        handle = hub[0] if hub is not None else 0
        if handle != self._hub_handle:
            self._hub_handle = handle
            self.end_all(HUB_ENDS, time.monotonic_ns())

    # -- on the clock

    def tick(self, hub: Hub | None, now: int) -> None:
        if now < self._due_ns:
            return
        self._due_ns = now + LOOK_NS
        self._follow_hub(hub)
        if self._table.established_count(SERVER) or not self._hub_seen_ns:
            self._hub_seen_ns = now
        if hub is not None and self._table.established_count(SERVER):
            self._say_where(hub, now)
        for partner in list(self._partners.values()):
            self._judge(partner, hub, now)

    def _say_where(self, hub: Hub, now: int) -> None:
        here = self._here
        if here.peer_handle == hub[0] and now - here.sent_ns < LOOK_NS * 8:
            return
        places = tuple(self._places())
        is_known = (here.peer_handle, here.places) == (hub[0], places)
        if not is_known or now - here.sent_ns > HERE_AGAIN_NS:
            self._here = _Here(hub[0], now, places)
            self._tell(hub, Here(places))

    def _judge(self, partner: _Partner, hub: Hub | None, now: int) -> None:
        if partner.leaves_ns:
            if now >= partner.leaves_ns:
                self._end(partner, partner.why, now)
            return
        self._look(partner, hub, now)
        at = partner.index * RECORD_WORDS + DATAGRAM_ROUND_TRIP
        trips = [words[at] for words in self._table.datagrams_out if words[at]]
        grown = [
            max(0, count - before)
            for count, before in zip(self._table.datagram_counts(partner.index), partner.counts, strict=True)
        ]
        facts = PartnerFacts(
            partner.is_open,
            partner.was_open,
            partner.state_ns,
            partner.used_ns,
            self._hub_seen_ns,
            partner.trip.seen(min(trips, default=0) if grown[_SENT] and partner.is_open else 0, now),
            partner.pair.relayed_us,
            grown[_SENT],
            grown[_LOST],
        )
        reason = why_end(facts, now)
        if reason == HUB_GONE:
            self._end(partner, reason, now)
        elif reason:
            self._leave(partner, reason, now)
            if hub is not None:
                self._tell(hub, State(partner.pair.number, PairState.ENDED, reason))

    def _look(self, partner: _Partner, hub: Hub | None, now: int) -> None:
        at = partner.index * RECORD_WORDS + DATAGRAM_PATH
        is_open = any(words[at] == partner.peer_handle for words in self._table.datagrams_in)
        used = self._used(partner.index)
        if used != partner.used_bytes:
            partner.used_bytes, partner.used_ns = used, now
        if is_open == partner.is_open:
            return
        partner.is_open, partner.state_ns = is_open, now
        found = best_paths(self._table, partner.index).get(Kind.UDP)
        if is_open:
            partner.was_open = True
            self._events.record("direct-open", partner.pair.name, f"at {found.endpoint}" if found is not None else "")
        else:
            reason = found.carrier.reason if found is not None else "no path"
            self._events.record("direct-dark", partner.pair.name, reason)
        if hub is not None:
            self._tell(hub, State(partner.pair.number, PairState.OPEN if is_open else PairState.DARK))

    def _used(self, index: int) -> int:
        return self._table.sent_bytes(index) + self._table.received_bytes(index)

    # -- for people

    def rows(self, now: int) -> list[dict[str, Any]]:
        found = [self._row(partner, now) for partner in self._partners.values()]
        present = {row["peers"][0] for row in found}
        return found + [
            _row_of(name, "relayed", reason, since, now)
            for name, (reason, since) in self._ended.items()
            if name not in present
        ]

    def _row(self, partner: _Partner, now: int) -> dict[str, Any]:
        path = best_paths(self._table, partner.index).get(Kind.UDP)
        state = "direct" if partner.is_open and not partner.leaves_ns else "relayed"
        reason = partner.why or (path.carrier.reason if path else "")
        row = _row_of(partner.pair.name, state, reason, partner.state_ns, now)
        at = partner.index * RECORD_WORDS + DATAGRAM_ROUND_TRIP
        trips = [words[at] for words in self._table.datagrams_out if words[at]]
        if state == "direct" and path is not None:
            row["endpoint"] = path.endpoint
            row["rtt_ms"] = min(trips) / 1000 if trips else None
        return row


def _row_of(name: str, state: str, reason: str, since: int, now: int) -> dict[str, Any]:
    return {
        "peers": [name],
        "state": state,
        "reason": reason,
        "state_seconds": round(max(0, now - since) / 1e9, 1),
        "endpoint": "",
        "rtt_ms": None,
    }
