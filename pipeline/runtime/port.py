"""A port: a duty's place in one ring, with the doorbells of those that come after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.runtime.plan import StagePosition
from pipeline.shm.doorbell import Doorbell
from pipeline.shm.layout import MASK64
from pipeline.shm.ring import Ring, Stage

QUIET_NS = 2_000_000
"""Silence after which a core may well sleep."""


class Port(Stage):
    """A Stage whose advance() also kicks the duties of the next stage (those that sleep).

    `rest`: those of them that have to do with few slots only; kick_rest() kicks them.
    """

    def __init__(
        self, ring: Ring, place: StagePosition, lane: int, after: list[Doorbell], rest: list[Doorbell]
    ) -> None:
        super().__init__(ring, place.number, place.before, place.first)
        self.lane = lane
        self.position = place.position
        self._after = after
        self._rest = rest

    def advance(self, count: int) -> None:
        self.cursor = cursor = (self.cursor + count) & MASK64
        self._words[self._own] = cursor
        for doorbell in self._after:  # not herald(): a call less for every burst
            doorbell.kick()

    def kick_rest(self) -> None:
        for doorbell in self._rest:
            doorbell.kick()

    def wake_ahead(self) -> None:
        """Work is about to come: kick the next stage's duties ahead of it.

        Worth it after a silence, when the other core sleeps: it wakes up while the first packet is still being read.
        """
        for doorbell in self._after:
            doorbell.kick()


def any_ready(ports: Sequence[Port]) -> Callable[[], int]:
    """A function that tells whether any of these ports has a ready slot, as cheap as it can be for one port."""
    if len(ports) == 1:
        return ports[0].ready
    return lambda: sum(port.ready() for port in ports)
