"""Looks whether datagrams pass, and records as an event when that changes, with the reason.

datagrams-open    blocks for a peer, or for the server, travel in datagrams now, or in those of another kind
datagrams-dark    they do no more; or no datagram has passed for UNANSWERED_NS since there were secrets for them

A dgram worker that was replaced says nothing for a moment: nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipeline.peers.peer_datagrams import best_paths, reason_of, shown_path
from pipeline.policy.carrier import State
from pipeline.policy.carrier_order import WORDS, Kind
from pipeline.shm.layout import DATAGRAM_STATE, RECORD_WORDS
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.control.events import Events

LOOK_NS = 250_000_000  # between two looks
UNANSWERED_NS = 10_000_000_000

DROPPED = "blocks wait, and are dropped"
OTHERWISE = {"auto": "blocks go by TCP", "udp": DROPPED, "faketcp": DROPPED}


class _Said(NamedTuple):
    handle: int
    kind: Kind | None  # whose path is open


class DatagramWatch:
    """`name_of`: by index, the name of the peer there; "" without a session. `carrier`: the setting."""

    def __init__(self, table: PeerTable, events: Events, name_of: Callable[[int], str], carrier: str) -> None:
        self._table = table
        self._events = events
        self._name_of = name_of
        self._otherwise = OTHERWISE.get(carrier, "")
        self._said: dict[int, _Said] = {}  # by index
        self._records = [*table.datagrams_in, *table.datagrams_fake_tcp]
        self._seen = [[0] * table.capacity for _ in self._records]  # the words of all lanes
        self._probed: set[int] = set()  # peers of which nothing was said yet
        self._due_ns = 0

    def tick(self, now: int) -> None:
        if now < self._due_ns:
            return
        self._due_ns = now + LOOK_NS
        words = [records[DATAGRAM_STATE::RECORD_WORDS].tolist() for records in self._records]
        changed = set(self._probed)
        for before, present in zip(self._seen, words, strict=True):
            if before != present:
                changed.update(peer for peer, word in enumerate(present) if word != before[peer])
        self._seen = words
        for peer in changed:
            self._look(peer, now)

    def _look(self, peer: int, now: int) -> None:
        self._probed.discard(peer)
        best, handle, name = best_paths(self._table, peer), self._table.peer_handle(peer), self._name_of(peer)
        shown = shown_path(best)
        if shown is None or not name:
            return
        said = self._said.get(peer)
        if said is not None and said.handle != handle:
            said = None
        kind, found = shown
        state, since, _ = found.carrier
        if state is State.OPEN:
            if said is None or said.kind is not kind:
                reason = reason_of(best, True)
                why = f", since {reason}" if reason else ""
                self._said[peer] = _Said(handle, kind)
                self._events.record("datagrams-open", name, f"by {WORDS[kind]} to {found.endpoint}{why}")
        elif said is None and now - since < UNANSWERED_NS:
            self._probed.add(peer)
        elif said is None or said.kind is not None:
            self._said[peer] = _Said(handle, None)
            self._events.record("datagrams-dark", name, f"{reason_of(best, False)}; {self._otherwise}")
