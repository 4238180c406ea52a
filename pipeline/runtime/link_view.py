"""The ways out of this end to a peer, as the tcp workers' lines tell them to the tun and fec workers.

A connection is (member, ordinal): the position of its tcp worker in the outbound rings' last stage, and its number
among that worker's connections to the peer for the same purpose. What is read here may be outdated a moment later, so
the tcp worker takes an ordinal modulo what it has.
"""

from __future__ import annotations

from pipeline.fec import stripe
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    CARRIER_DECODES,
    CARRIER_ESTABLISHED,
    CARRIER_LIGHT,
    CARRIER_OFFLOADS,
    CARRIER_PARITY,
    LINE_WORDS,
)

Way = tuple[int, int]


class Ways:
    """Looks at the words anew with every call."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = attachment.peers.carriers
        self._lane = attachment.me.lane
        self._seen: dict[tuple[int, bool], tuple[list[int], tuple[Way, ...]]] = {}

    def own(self, peer: int) -> int:
        """The tcp worker for this lane's plain blocks: the lane's own, or another while only others have
        connections."""
        words, at = self._words, peer * LINE_WORDS + CARRIER_ESTABLISHED
        lane = self._lane
        if not words[lane][at]:
            lane = next((i for i, each in enumerate(words) if each[at]), lane)
        return lane

    def own_light(self, peer: int, own: int) -> int:
        """The tcp worker for this lane's light blocks, given that for its plain ones: the same, so that they keep their
        order, unless others alone have connections for light flows."""
        words, at = self._words, peer * LINE_WORDS + CARRIER_LIGHT
        if words[own][at]:
            return own
        return next((i for i, each in enumerate(words) if each[at]), own)

    def offloads(self, peer: int) -> int | None:
        """What a peer accepts; None while it has no connection."""
        at = peer * LINE_WORDS
        for words in self._words:
            if words[at + CARRIER_ESTABLISHED]:
                return words[at + CARRIER_OFFLOADS]
        return None

    def parity(self, peer: int) -> int:
        """Parity shards that the state of a peer's connections calls for; 0 if it takes no shards."""
        at = peer * LINE_WORDS
        parity = 0
        for words in self._words:
            if words[at + CARRIER_ESTABLISHED]:
                if not words[at + CARRIER_DECODES]:
                    return 0
                parity = max(parity, words[at + CARRIER_PARITY])
        return parity

    def for_bulk(self, peer: int) -> tuple[Way, ...]:
        """The connections for whatever comes; if there are none, those for light flows."""
        return self._connections(peer, False)

    def for_light(self, peer: int) -> tuple[Way, ...]:
        """The connections for light flows; if there are none, the others."""
        return self._connections(peer, True)

    def _connections(self, peer: int, light: bool) -> tuple[Way, ...]:
        at = peer * LINE_WORDS
        if light:
            counts = [words[at + CARRIER_LIGHT] for words in self._words]
        else:
            counts = [words[at + CARRIER_ESTABLISHED] - words[at + CARRIER_LIGHT] for words in self._words]
        if not any(counts):
            counts = [words[at + CARRIER_ESTABLISHED] for words in self._words]
        seen, found = self._seen.get((peer, light), (None, ()))
        if counts != seen:
            found = stripe.connections(counts)
            self._seen[peer, light] = counts, found
        return found
