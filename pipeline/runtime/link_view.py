"""The ways out of this end to a peer, as the tcp workers' lines tell them to the tun and fec workers.

A connection is (member, ordinal): the position of its tcp worker in the outbound rings' last stage, and its number
among that worker's connections to the peer for the same purpose. What is read here may be outdated a moment later, so
the tcp worker takes an ordinal modulo what it has.
"""

from __future__ import annotations

from pipeline.fec import stripe
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_PARITY,
    RECORD_WORDS,
)

ConnectionRef = tuple[int, int]


class LinkView:
    """Looks at the words anew with every call."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = attachment.peers.links
        self._lane = attachment.me.lane
        self._seen: dict[tuple[int, bool], tuple[list[int], tuple[ConnectionRef, ...]]] = {}

    def own(self, peer: int) -> int:
        """The tcp worker for this lane's plain blocks: the lane's own, or another while only others have
        connections."""
        words, at = self._words, peer * RECORD_WORDS + LINK_ESTABLISHED
        lane = self._lane
        if not words[lane][at]:
            lane = next((i for i, each in enumerate(words) if each[at]), lane)
        return lane

    def own_light(self, peer: int, own: int) -> int:
        """The tcp worker for this lane's light blocks, given that for its plain ones: the same, so that they keep their
        order, unless others alone have connections for light flows."""
        words, at = self._words, peer * RECORD_WORDS + LINK_LIGHT
        if words[own][at]:
            return own
        return next((i for i, each in enumerate(words) if each[at]), own)

    def offloads(self, peer: int) -> int | None:
        """What a peer accepts; None while it has no connection."""
        at = peer * RECORD_WORDS
        for words in self._words:
            if words[at + LINK_ESTABLISHED]:
                return words[at + LINK_OFFLOADS]
        return None

    def parity(self, peer: int) -> int:
        """Parity shards that the state of a peer's connections calls for; 0 if it takes no shards."""
        at = peer * RECORD_WORDS
        parity = 0
        for words in self._words:
            if words[at + LINK_ESTABLISHED]:
                if not words[at + LINK_ACCEPTS_SHARDS]:
                    return 0
                parity = max(parity, words[at + LINK_PARITY])
        return parity

    def for_bulk(self, peer: int) -> tuple[ConnectionRef, ...]:
        """The connections for whatever comes; if there are none, those for light flows."""
        return self._connections(peer, False)

    def for_light(self, peer: int) -> tuple[ConnectionRef, ...]:
        """The connections for light flows; if there are none, the others."""
        return self._connections(peer, True)

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
            found = stripe.connections(counts)
            self._seen[peer, light] = counts, found
        return found
