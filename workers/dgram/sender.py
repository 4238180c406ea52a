"""The outbound duty of a dgram worker: blocks from the outbound rings go out in datagrams.

A burst, in the order in which `work` calls:

    1. follow_paths    what a path that has gone dark was to bring waits for another one, or goes back to TCP
    2. feed            what waits for a peer goes onto a path that has room (`workers.dgram.outbound_peers`)
    3. read            each slot becomes a train of a path, and is free (`workers.dgram.outbound_rings`)
    4. send            on each path in turn: reports, then bursts as far as pace and window let them go
                       (`workers.dgram.outbound_path`)
    5. update          ten times a second: what is known of each peer is published

A path that has no room makes its ring wait, and TUN with it, if one peer alone is connected.
"""

from __future__ import annotations

import time

from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from workers.dgram.outbound_peers import OutboundPeers
from workers.dgram.outbound_rings import OutboundRings
from workers.dgram.path import Paths

TICK_NS = 100_000_000
WAITING_NS = 2_000_000  # between two looks at what waits for a peer without a path


class Sender:
    """From every outbound ring onto the paths of this worker."""

    name = "outbound"

    def __init__(self, attachment: Attachment, paths: Paths) -> None:
        now = time.monotonic_ns()
        self._bell = attachment.doorbells[self.name]
        self._peers = OutboundPeers(attachment, paths, now)
        self._rings = OutboundRings(attachment, self.name, self._peers)
        self._next_tick = now

    def work(self) -> int:
        """One burst."""
        now = time.monotonic_ns()
        peers = self._peers
        peers.follow_paths(now)
        peers.feed(now)
        found = self._rings.read(now)
        more = peers.send(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            peers.update(now)
        return MORE if more else DONE if found else NOTHING

    def wait(self, seconds: float) -> None:
        now = time.monotonic_ns()
        due = self._peers.due()
        if due:
            seconds = min(seconds, max(0.0, (due - now) / 1e9))
        if self._peers.waits:
            seconds = min(seconds, WAITING_NS / 1e9)
        self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        return self._peers.is_idle

    def kick(self) -> None:
        """Wake this duty: the inbound duty has news."""
        self._bell.kick()

    def _ready(self) -> bool:
        return self._rings.has_ready() or self._peers.has_news()
