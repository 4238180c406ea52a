"""The link view: the state of the connections to each peer, as the tun and fec workers read it from the link records.

The tcp workers write the link records. A connection is (consumer, ordinal). Consumer is the position of its tcp worker
in the last stage of a ring. Ordinal is its number among that worker's connections to the peer for one traffic class.
The state may change right after it was read, so the tcp worker takes an ordinal modulo the number of its connections.

A connection is of the lane that gets what it brings (pipeline.policy.lane_pairs). That lane answers on it.
"""

from __future__ import annotations

from pipeline.fec import stripe
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    LIGHT_LANES_SHIFT,
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_LANES,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_REQUESTS,
    RECORD_WORDS,
)
from pipeline.shm.link_requests import COPIES_SHIFT, MASK
from pipeline.shm.memory_order import REORDERS, fence

ConnectionRef = tuple[int, int]
"""Consumer and ordinal of a connection."""


class LinkView:
    """Every call reads the records anew."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = attachment.peer_table.links
        self._lane = attachment.worker.lane
        self._bulk_bit = 1 << self._lane
        self._light_bit = 1 << self._lane + LIGHT_LANES_SHIFT
        self._most = attachment.peer_table.status_rows  # connections of a worker, even if it runs amok
        self._copying: dict[int, tuple[tuple[ConnectionRef, ...], int, tuple[ConnectionRef, ...]]] = {}
        self._seen: dict[tuple[int, bool], tuple[list[int], tuple[ConnectionRef, ...]]] = {}

    def bulk_consumer(self, peer: int) -> int:
        """The consumer of this lane's plain blocks: a tcp worker that has a connection of this lane, its own one first.

        If there is none, it is the own one if that has connections at all, or another one. So a flow stays on one
        connection, in order, as long as the set of connections stays.
        """
        words, at, lane = self._words, peer * RECORD_WORDS + LINK_LANES, self._lane
        bit = self._bulk_bit
        if words[lane][at] & bit:
            return lane
        for other, each in enumerate(words):
            if each[at] & bit:
                return other
        at += LINK_ESTABLISHED - LINK_LANES
        if not words[lane][at]:
            lane = next((i for i, each in enumerate(words) if each[at]), lane)
        return lane

    def light_consumer(self, peer: int, bulk_consumer: int) -> int:
        """The consumer of this lane's light blocks: one that has a connection of this lane for light flows, that of its
        plain blocks first. If there is none, one that has a connection for light flows, in the same order."""
        words, at = self._words, peer * RECORD_WORDS + LINK_LANES
        bit = self._light_bit
        if words[bulk_consumer][at] & bit:
            return bulk_consumer
        for other, each in enumerate(words):
            if each[at] & bit:
                return other
        at += LINK_LIGHT - LINK_LANES
        if words[bulk_consumer][at]:
            return bulk_consumer
        return next((i for i, each in enumerate(words) if each[at]), bulk_consumer)

    def has_light(self, peer: int) -> bool:
        """Whether a peer has connections for light flows."""
        at = peer * RECORD_WORDS + LINK_LIGHT
        return any(words[at] for words in self._words)

    def is_foreign(self, peer: int, consumer: int) -> bool:
        """Whether the peer has connections for light flows, and none of this lane. `consumer`: of light blocks."""
        return not self._words[consumer][peer * RECORD_WORDS + LINK_LANES] & self._light_bit and self.has_light(peer)

    def offloads(self, peer: int) -> int | None:
        """TUN_F_* bits that a peer accepts; None while it has no connection."""
        at = peer * RECORD_WORDS
        for words in self._words:
            if words[at + LINK_ESTABLISHED]:
                if REORDERS:  # asked for each burst: a fence that is nothing would cost more than this
                    fence()
                return words[at + LINK_OFFLOADS]
        return None

    def parity(self, peer: int) -> int:
        """Parity shards that the state of a peer's connections calls for; 0 if the peer accepts no shards."""
        at = peer * RECORD_WORDS
        parity = 0
        for words in self._words:
            if words[at + LINK_ESTABLISHED]:
                if REORDERS:
                    fence()
                if not words[at + LINK_ACCEPTS_SHARDS]:
                    return 0
                parity = max(parity, words[at + LINK_REQUESTS] & MASK)
        return parity

    def copies(self, peer: int) -> int:
        """Copies of a light packet that the state of a peer's connections calls for; -1 if the peer accepts none."""
        at = peer * RECORD_WORDS
        copies = -1
        for words in self._words:
            if words[at + LINK_ESTABLISHED]:
                if not words[at + LINK_ACCEPTS_SHARDS]:
                    return -1
                copies = max(copies, words[at + LINK_REQUESTS] >> COPIES_SHIFT & MASK)
        return copies

    def bulk_connections(self, peer: int) -> tuple[ConnectionRef, ...]:
        """A peer's connections for bulk; if there are none, those for light flows."""
        return self._connections(peer, False)

    def light_connections(self, peer: int) -> tuple[ConnectionRef, ...]:
        """A peer's connections for light flows; if there are none, those for bulk."""
        return self._connections(peer, True)

    def copy_connections(self, peer: int, consumer: int) -> tuple[ConnectionRef, ...]:
        """The connections for light flows in the order in which the copies of a block take them.

        Of copies, ordinal 0 is the connection on which that tcp worker sends a light block of this lane that has none.
        So the first copy takes the connection that the block alone would take on `consumer`.
        """
        connections = self.light_connections(peer)
        seen = self._copying.get(peer)
        if seen is None or seen[0] is not connections or seen[1] != consumer:
            first = next((place for place, each in enumerate(connections) if each[0] == consumer), 0)
            seen = self._copying[peer] = connections, consumer, connections[first:] + connections[:first]
        return seen[2]

    def _connections(self, peer: int, light: bool) -> tuple[ConnectionRef, ...]:
        at = peer * RECORD_WORDS
        if light:
            counts = [words[at + LINK_LIGHT] for words in self._words]
        else:
            counts = [words[at + LINK_ESTABLISHED] - words[at + LINK_LIGHT] for words in self._words]
        if not any(counts):
            counts = [words[at + LINK_ESTABLISHED] for words in self._words]
        seen, found = self._seen.get((peer, light), (None, ()))
        if counts != seen:
            found = stripe.connections([min(count, self._most) for count in counts])
            self._seen[peer, light] = counts, found
        return found
