"""The turns of one peer: how much of its bytes the inbound duty reads before the other peers have theirs.

While several peers are connected, each that has something to read may read QUANTUM of charge (`pipeline.wire.charge`)
in every round. A peer that overdraws it gets less in the next rounds (deficit round robin, Shreedhar and Varghese,
1995). So the number of its connections, and the size of its frames, win a peer nothing.

A round ends when no peer with something to read, and with room in the ring, has credit left. A peer whose share of the
ring is full saves its credit meanwhile, SAVED_MOST of it. No round begins in which it would lose some: else those in
debt would get credit again and again while it waits. If nobody went on without it, all stages would stand in turn.

Late charges. Costs that the frames do not show come in later turns: the charges of the tun workers, and the packets
that go to the peer. Most of those answer packets of the peer. So they are charged at most twice what those packets
were: others that send much to a peer do not take its turns. The mean of its late charges is expected of a peer's next
slots, so that its share of the ring (`pipeline.policy.ring_shares`) is about what they will cost.
"""

from __future__ import annotations

from pipeline.wire import charge
from workers.tcp.link_publisher import LinkPublisher

QUANTUM = 1 << 19  # two full blocks of packets: about 0.6 ms of all stages together
SAVED_MOST = 8 * QUANTUM  # as much as a ring takes (`pipeline.policy.ring_shares`)
ANSWERS_SHARE = 2  # answers are charged at most so many times what the packets were that they answer
ANSWERABLE_MOST = 1 << 22  # answers come within some milliseconds, or they are none
SURCHARGE_SLOTS = 16  # a surcharge is the mean of about so many slots


class PeerTurns:
    """`credit`: charge that may be read in this turn; `surcharge`: late charges expected of a slot."""

    def __init__(self, peer: int, publisher: LinkPublisher) -> None:
        self.credit = QUANTUM
        self.surcharge = 0
        self._rounds = 0  # that have begun
        self._peer = peer
        self._publisher = publisher
        self._charged = publisher.charged(peer)  # by the tun workers until the last turn
        self._packets_for = publisher.packets_for(peer)  # until the last turn
        self._answerable = 0  # charge that has had no answer yet
        self._recent_charges = self._recent_slots = 0

    def follow(self, rounds: int, most: int = QUANTUM) -> None:
        """So many rounds have begun: have the credit of those that are new, and pay the charges that came late.

        `most`: up to which credit grows.
        """
        charged, packets = self._publisher.charged(self._peer), self._publisher.packets_for(self._peer)
        if charged != self._charged or packets != self._packets_for or self.surcharge:
            answers = min(self._answerable, charge.ANSWER * (packets - self._packets_for))
            self._answerable -= answers
            self._charge_late(charged - self._charged + answers)
            self._charged, self._packets_for = charged, packets
        if rounds != self._rounds:
            self.credit = min(max(most, self.credit), self.credit + QUANTUM * (rounds - self._rounds))
            self._rounds = rounds

    @property
    def rounds_to_wait(self) -> int:
        """Rounds that have to begin before the peer has credit."""
        return 0 if self.credit > 0 else -self.credit // QUANTUM + 1

    def may_save(self, rounds: int) -> bool:
        """Whether the peer loses nothing if so many rounds begin while it waits for room."""
        return self.credit + QUANTUM * rounds <= SAVED_MOST

    def rest(self) -> None:
        """The peer has nothing to read: more than a turn's credit is not saved for later."""
        self.credit = min(QUANTUM, self.credit)

    def forgive(self) -> None:
        """No other peer has anything to read: debts are void."""
        self.credit = QUANTUM

    def spend(self, contents: int, reads: int, slots: int) -> None:
        """So much has been read: the charge of frames and bytes, the receives that it took, the slots that it fills."""
        self.credit -= contents + charge.READ * reads
        self._answerable = min(ANSWERABLE_MOST, self._answerable + ANSWERS_SHARE * contents)
        self._recent_slots += slots

    def _charge_late(self, charged: int) -> None:
        """Slots of earlier turns have cost so much more; the next ones will cost about as much, each."""
        self.credit -= charged
        self._recent_charges += charged
        self.surcharge = self._recent_charges // max(1, self._recent_slots)
        if self._recent_slots >= SURCHARGE_SLOTS:
            self._recent_charges //= 2
            self._recent_slots //= 2
