"""Floor 2. The ways out of this end, as the carrier words of the tcp workers tell them to the tun and fec workers.

A connection is (member, ordinal): the position of its tcp worker in the outbound rings' last stage, and its number
among that worker's connections for the same purpose. What is read here may be outdated a moment later, so the tcp
worker takes an ordinal modulo what it has.
"""

from __future__ import annotations

from pipeline import stripe
from pipeline.carrier import DECODES, ESTABLISHED, LIGHT, OFFLOADS, PARITY
from pipeline.worker import Attachment

Way = tuple[int, int]


class Ways:
    """Looks at the words anew with every call."""

    def __init__(self, attachment: Attachment) -> None:
        self._words = [attachment.board.pages[worker.page].carrier for worker in attachment.plan.of_kind("tcp")]
        self._lane = attachment.me.lane
        self._seen: dict[bool, tuple[list[int], tuple[Way, ...]]] = {True: ([], ()), False: ([], ())}

    def own(self) -> int:
        """The tcp worker for this lane's plain blocks: the lane's own, or another while only others have connections."""
        words = self._words
        lane = self._lane
        if not words[lane][ESTABLISHED]:
            lane = next((i for i, each in enumerate(words) if each[ESTABLISHED]), lane)
        return lane

    def own_light(self, own: int) -> int:
        """The tcp worker for this lane's light blocks, given that for its plain ones: the same, so that they keep their
        order, unless others alone have connections for light flows."""
        words = self._words
        if words[own][LIGHT]:
            return own
        return next((i for i, each in enumerate(words) if each[LIGHT]), own)

    def offloads(self, member: int) -> int | None:
        """What the peers of a tcp worker accept; None while it has none."""
        words = self._words[member]
        return words[OFFLOADS] if words[ESTABLISHED] else None

    def parity(self) -> int:
        """Parity shards that the state of the connections calls for; 0 if a peer takes no shards."""
        parity = 0
        for words in self._words:
            if words[ESTABLISHED]:
                if not words[DECODES]:
                    return 0
                parity = max(parity, words[PARITY])
        return parity

    def for_bulk(self) -> tuple[Way, ...]:
        """The connections for whatever comes; if there are none, those for light flows."""
        return self._connections(False)

    def for_light(self) -> tuple[Way, ...]:
        """The connections for light flows; if there are none, the others."""
        return self._connections(True)

    def _connections(self, light: bool) -> tuple[Way, ...]:
        if light:
            counts = [words[LIGHT] for words in self._words]
        else:
            counts = [words[ESTABLISHED] - words[LIGHT] for words in self._words]
        if not any(counts):
            counts = [words[ESTABLISHED] for words in self._words]
        seen, found = self._seen[light]
        if counts != seen:
            found = stripe.connections(counts)
            self._seen[light] = counts, found
        return found
