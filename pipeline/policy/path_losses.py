"""Losses of a path: those that it always has, and those that say that its queue is too long.

Parity and repeats make up for the usual losses, so they must not slow a sender down. Losses of a full queue must.
Two facts tell them apart: how long the round trip was, and how fast the lost segments were sent. The usual losses are
counted by what is missing: a loss is known for one some milliseconds later, when other segments are reported.

    usual     the share of losses among segments that were sent slowly and met no queue: in DRAIN, DOWN, and in CRUISE
              on a shared path. A policer has no queue either, but loses nothing that is sent slowly
    excess    in a round trip, above the usual losses by more than chance makes, among segments that met more than half
              of the longest queue of late. Where that queue is no longer than a probe makes it, EXCESS_SHORT is asked
              for: then few losses by chance would count
    CE        ECN-CE is as good a sign, and no path has it usually

EXCESS and CE are BBRLossThresh of draft-ietf-ccwg-bbr. The rest is chosen by simulation.
"""

from __future__ import annotations

from pipeline.policy.delivery_samples import DeliverySamples

EXCESS = 0.02
EXCESS_SHORT = 0.1
OWN_QUEUE = 0.3  # of the shortest round trip: a probe with a gain of 1.25 makes less
CE = 0.02
LEAST_LOST = 2  # segments
CERTAIN = 3  # standard deviations of the number of usual losses
USUAL_MOST = 0.3
USUAL_SEGMENTS = 2000  # of which the usual share is the mean, more or less
USUAL_DOUBT = 200  # segments without a loss that are added, so that a few losses by chance make no share
UNKNOWN = 0.8  # of the usual share is left after a cycle in which every segment met a queue
NEAR_SHIFT = 4  # a round trip is near the shortest one within a 16th of it
NEAR_NS = 1_000_000
FORGET = 256  # reports


class PathLosses:
    """`usual`: a share. `sent_with`: the most bytes that were under way when a lost segment was sent, in this round."""

    def __init__(self) -> None:
        self.usual = 0.0
        self.sent_with = 0
        self._known = 0.0
        self._known_lost = 0.0
        self._met_none = False
        self._longest = 0.0  # round trip of late
        self._segments = self._lost = self._ce = 0  # of this round, with a long queue
        self._farthest = 0

    def add(self, sample: DeliverySamples, least: int, *, slow: bool, counts: bool) -> bool:
        """Take the latest sample; true if its segment met no queue. `least`: the shortest round trip.

        `slow`: it was sent slowly. `counts`: it was sent since this end yielded last.
        """
        round_trip = sample.round_trip
        near = round_trip < least + max(NEAR_NS, least >> NEAR_SHIFT)
        self._longest = max(round_trip, self._longest - (self._longest - round_trip) / FORGET)
        if near:
            if slow:
                self._learn(sample.segments, sample.missing)
        elif counts and round_trip * 2 > least + self._longest:
            self._segments += sample.segments
            self._lost += sample.lost
            self._ce += sample.ce
            self._farthest = max(self._farthest, round_trip)
            if sample.lost > 0 or sample.ce:
                self.sent_with = max(self.sent_with, sample.sent_with)
        return near

    def excess(self, least: int) -> bool:
        """Whether the round that ends now had excess losses, or CE."""
        usual = self.usual * self._segments
        share = EXCESS if self._farthest > least * (1 + OWN_QUEUE) else EXCESS_SHORT
        bound = usual + CERTAIN * usual**0.5 + max(LEAST_LOST, share * self._segments)
        return self._lost > bound or self._ce > CE * self._segments

    def begin_round(self) -> None:
        self._segments = self._lost = self._ce = self._farthest = self.sent_with = 0

    def begin_cycle(self) -> None:
        if not self._met_none:
            self._known_lost *= UNKNOWN
            self.usual *= UNKNOWN
        self._met_none = False

    def _learn(self, segments: int, lost: int) -> None:
        self._met_none = True
        self._known += segments
        self._known_lost += lost
        if self._known > USUAL_SEGMENTS:
            self._known /= 2
            self._known_lost /= 2
        self.usual = min(USUAL_MOST, max(0.0, self._known_lost / (USUAL_DOUBT + self._known)))
