"""A hub's part in direct paths between its clients: which pairs there are (docs/direct.md).

    start(table)          the shared memory of this time: no pair is there
    heard(request)        a note of a client has come
    tick(hub, now)        pairs that are wanted begin, and those end that may no longer be
    rows(now)             for `status`

All that is known of a session comes from `Hub`. A pair ends with either session. Each pair has a secret of its own.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pipeline.policy.direct_pairs import (
    ISOLATED,
    Attempts,
    Demand,
    Facts,
    Key,
    key_of,
    why_relayed,
)
from pipeline.runtime.supervisor_channel import NoteReport, SendNote
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305
from pipeline.sealing.session import SealedSession
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.peer_table import PeerTable, Route
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles.direct_facts import is_private, networks_of, reflexive_places, relayed_round_trip
from pipeline.wire import notes
from pipeline.wire.notes import PLACES_MAX, SECRET_BYTES, Here, Network, Pair, PairState, Place, State

LOOK_NS = 250_000_000
STALE_NS = 20_000_000_000
"""Packets of a pair that go by the hub for so long after its latest news: a note was lost, or it came to nothing."""

REFUSED_NS = 5_000_000_000  # a pair that may not be is looked at again
REFUSED_MOST, ROWS_MOST = 32, 64  # pairs in `status`: those that may not be, and those that are

OVER = "packets still go by the hub"
SESSION_ENDED = "the session of {} has ended"


class ClientSession(NamedTuple):
    """A session with a client, as the admission knows it."""

    peer_handle: int
    name: str
    sealed: SealedSession
    offloads: int
    facts: Facts  # but for its path, its networks and its partners


class Hub(Protocol):
    @property
    def isolates(self) -> bool: ...

    def sessions(self, peers: Iterable[int] | None = None) -> Mapping[int, ClientSession]:
        """By peer handle, those that are sealed and use datagrams: of these peers, or of all."""

    @property
    def version(self) -> Hashable:
        """Another one after each change of what the rest says."""

    def routes(self) -> list[Route]:
        """Of all peers, each with the index of its peer."""

    def is_inside(self, host: bytes) -> bool:
        """Whether an address of 16 bytes is in the tunnel."""


@dataclass(slots=True)
class _Pair:
    number: int
    names: tuple[str, str]
    began_ns: int
    news_ns: int
    states: dict[int, PairState] = field(default_factory=dict)  # by peer handle
    open_since: int = 0  # when both had said so

    @property
    def is_open(self) -> bool:
        return list(self.states.values()) == [PairState.OPEN] * 2


class Introductions:
    def __init__(self, events: Events) -> None:
        self._events = events
        self._pairs: dict[Key, _Pair] = {}
        self._demand, self._attempts = Demand(), Attempts()
        self._here: dict[int, tuple[Place, ...]] = {}  # by peer handle
        self._seen: list[list[int]] = []  # bytes for each peer, by lane
        self._refused: OrderedDict[Key, tuple[tuple[str, str], str, int]] = OrderedDict()
        self._version: Hashable = None  # of the hub, at the latest look
        self._networks: dict[int, tuple[Network, ...] | None] = {}  # by peer index, in that version
        self._due_ns = 0
        self.tell_workers: Callable[[SendNote], object] = lambda note: None
        self._table: PeerTable

    def start(self, table: PeerTable) -> None:
        self._table = table
        self._pairs.clear()
        self._here.clear()
        self._seen = []

    # -- notes

    def heard(self, request: NoteReport, hub: Hub, now: int) -> None:
        """PeerError for a note that is none of the client's."""
        session = hub.sessions([request["peer_handle"] & PEER_INDEX_MASK]).get(request["peer_handle"])
        if session is None or not session.facts.takes_notes:
            return
        data = session.sealed.notes.open(bytes.fromhex(request["heard"]))
        if data is None:
            return
        note = notes.unpack(data)
        if isinstance(note, Here):
            self._here[session.peer_handle] = tuple(each for each in note.places if is_private(each.host))
        elif isinstance(note, State):
            self._on_state(session, note, hub, now)

    def _on_state(self, session: ClientSession, note: State, hub: Hub, now: int) -> None:
        for key, pair in self._pairs.items():
            if pair.number == note.number and session.peer_handle in key:
                break
        else:
            return
        pair.news_ns = now
        if note.state is PairState.ENDED:
            self._end(key, f"{session.name}: {note.reason}", hub.sessions(), now)
            return
        was_open = pair.is_open
        pair.states[session.peer_handle] = note.state
        if pair.is_open and not was_open:
            pair.open_since = now
            self._events.record("direct-open", pair.names[0], f"with {pair.names[1]}")

    def _tell(self, session: ClientSession, note: notes.Note) -> None:
        sealed = session.sealed.notes.seal(note.pack())
        self.tell_workers(SendNote(note=sealed.hex(), peer_handle=session.peer_handle))

    # -- on the clock

    def tick(self, hub: Hub, now: int) -> None:
        if now < self._due_ns:
            return
        self._due_ns = now + LOOK_NS
        wanted = self._demand.look(self._talking(), now)
        is_other = hub.version != self._version
        if not (wanted or is_other):
            return
        sessions = hub.sessions()
        if is_other:
            self._follow(hub, sessions, now)
        for key in wanted:
            self._consider(key, hub, sessions, now)

    def _follow(self, hub: Hub, sessions: Mapping[int, ClientSession], now: int) -> None:
        """Something has changed: pairs end that may no longer be."""
        self._version = hub.version
        self._networks.clear()
        self._here = {handle: places for handle, places in self._here.items() if handle in sessions}
        for key in list(self._pairs):
            reason = self._why_not(key, hub, sessions)
            if reason:
                self._end(key, reason, sessions, now, PairState.FORBIDDEN)

    def _talking(self) -> Iterable[Key]:
        """The pairs between which packets have passed since the last call, as far as one look shows it."""
        found, handles = [], self._table.handles()
        columns = self._table.transit()
        for lane, (counts, senders) in enumerate(columns):
            before = self._seen[lane] if lane < len(self._seen) else counts
            if counts != before:
                found += [
                    key_of(senders[peer], handles[peer])
                    for peer, count in enumerate(counts)
                    if count != before[peer] and senders[peer]
                ]
        self._seen = [counts for counts, _ in columns]
        return found

    def _consider(self, key: Key, hub: Hub, sessions: Mapping[int, ClientSession], now: int) -> None:
        pair = self._pairs.get(key)
        if pair is not None:
            if now - pair.news_ns > STALE_NS:
                self._end(key, OVER, sessions, now)
            return
        if key in self._refused and now - self._refused[key][2] < REFUSED_NS:
            return
        self._refused.pop(key, None)
        if key[0] not in sessions or key[1] not in sessions:
            return
        names = sessions[key[0]].name, sessions[key[1]].name
        if not self._attempts.may_try(frozenset(names), now):
            return
        reason = self._why_not(key, hub, sessions)
        if reason:
            self._refused[key] = names, reason, now
            self._trim_refused()
        else:
            self._begin(key, hub, sessions, now)

    def _why_not(self, key: Key, hub: Hub, sessions: Mapping[int, ClientSession]) -> str:
        if hub.isolates:
            return ISOLATED
        for handle in key:
            if handle not in sessions:
                pair = self._pairs.get(key)
                return SESSION_ENDED.format(pair.names[key.index(handle)] if pair is not None else "a client")
        one, two = (self._facts(sessions[handle], key, hub) for handle in key)
        return why_relayed(one, two)

    def _networks_of(self, peer: int, hub: Hub) -> tuple[Network, ...] | None:
        if peer not in self._networks:
            self._networks[peer] = networks_of(peer, hub.routes())
        return self._networks[peer]

    def _facts(self, session: ClientSession, key: Key, hub: Hub) -> Facts:
        peer = session.peer_handle & PEER_INDEX_MASK
        return session.facts._replace(
            has_path=key in self._pairs or bool(reflexive_places(self._table, peer)),
            is_told_apart=self._networks_of(peer, hub) is not None,
            partners=sum(session.peer_handle in other for other in self._pairs if other != key),
        )

    # -- pairs begin and end

    def _begin(self, key: Key, hub: Hub, sessions: Mapping[int, ClientSession], now: int) -> None:
        ends = [sessions[handle] for handle in key]
        peers = [handle & PEER_INDEX_MASK for handle in key]
        networks = [self._networks_of(peer, hub) or () for peer in peers]
        suites = {each.sealed.context.suite for each in ends}
        pair = _Pair(secrets.randbits(64), (ends[0].name, ends[1].name), now, now)
        secret = secrets.token_bytes(SECRET_BYTES)
        relayed_us = relayed_round_trip(self._table, *peers)
        self._pairs[key] = pair
        for side, end in enumerate(ends):
            other = 1 - side
            self._tell(
                end,
                Pair(
                    pair.number,
                    side,
                    AES_256_GCM if suites == {AES_256_GCM} else CHACHA20_POLY1305,
                    secret,
                    ends[other].offloads,
                    relayed_us,
                    ends[other].name,
                    self._places(ends[other], peers[other], hub),
                    networks[other],
                    networks[side],
                ),
            )

    def _places(self, session: ClientSession, peer: int, hub: Hub) -> tuple[Place, ...]:
        """The candidates of a client, those in its own network first: they are the shorter way, if they are one."""
        found = [*self._here.get(session.peer_handle, ())[: PLACES_MAX // 2], *reflexive_places(self._table, peer)]
        return tuple(dict.fromkeys(each for each in found if not hub.is_inside(each.host)))[:PLACES_MAX]

    def _end(
        self,
        key: Key,
        reason: str,
        sessions: Mapping[int, ClientSession],
        now: int,
        state: PairState = PairState.ENDED,
    ) -> None:
        pair = self._pairs.pop(key)
        for handle in key:
            session = sessions.get(handle)
            if session is not None:
                self._tell(session, State(pair.number, state, reason))
        self._attempts.ended(frozenset(pair.names), now - pair.open_since if pair.open_since else 0, now)
        self._refused[key] = pair.names, reason, now
        self._trim_refused()
        self._events.record("direct-ended", pair.names[0], f"with {pair.names[1]}: {reason}")

    def _trim_refused(self) -> None:
        while len(self._refused) > REFUSED_MOST:
            self._refused.popitem(last=False)

    # -- for people

    def rows(self, now: int) -> list[dict[str, Any]]:
        found = [
            _row(pair.names, "direct" if pair.is_open else "relayed", "" if pair.is_open else "it is tried", since, now)
            for pair in list(self._pairs.values())[:ROWS_MOST]
            for since in [pair.open_since if pair.is_open else pair.began_ns]
        ]
        refused = [(key, each) for key, each in self._refused.items() if key not in self._pairs]
        return found + [_row(names, "relayed", reason, since, now) for _, (names, reason, since) in refused]


def _row(names: tuple[str, str], state: str, reason: str, since: int, now: int) -> dict[str, Any]:
    return {
        "peers": list(names),
        "state": state,
        "reason": reason,
        "state_seconds": round(max(0, now - since) / 1e9, 1),
        "endpoint": "",
        "rtt_ms": None,
    }
