"""A port: a duty's view of one ring, with the doorbells of the next stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.runtime.plan import StagePosition
from pipeline.shm.doorbell import Doorbell
from pipeline.shm.layout import MASK64
from pipeline.shm.memory_order import release
from pipeline.shm.ring import Ring, StageView

QUIET_NS = 2_000_000
"""After a silence of this length the core of the next duty is probably asleep."""


class Port(StageView):
    """The view of one member, which also kicks the next stage.

    `after`: doorbells that every advance kicks. `rarely`: doorbells of members that few slots concern. `on_mended`:
    told each time that cursors were mended.
    """

    def __init__(
        self,
        ring: Ring,
        position: StagePosition,
        lane: int,
        after: list[Doorbell],
        rarely: list[Doorbell],
        on_mended: Callable[[Port], None] = lambda port: None,
    ) -> None:
        super().__init__(ring, position.number, position.before, position.first)
        self.lane = lane
        self.position = position.position
        self._after = after
        self._rarely = rarely
        self._unkicked = 0  # slots since the last kick of those rarely kicked
        self._on_mended = on_mended
        self._unkicked_max = max(1, ring.capacity // 4)  # they too must move on, before the ring is full of their slots

    @release
    def advance(self, count: int) -> None:
        self.cursor = self._words[self._own_word] = cursor = self.cursor + count & MASK64
        self._done = cursor - self._lead
        for doorbell in self._after:  # not wake_ahead(): a call less for every burst
            doorbell.kick()

    def advance_one(self, concerns_all: bool) -> None:
        """Hand one slot on. Members that are rarely kicked are kicked if it concerns them."""
        self.advance(1)
        if not self._rarely:
            return
        self._unkicked += 1
        if concerns_all or self._unkicked >= self._unkicked_max:
            self._unkicked = 0
            for doorbell in self._rarely:
                doorbell.kick()

    def _mend(self) -> int:
        nothing = super()._mend()
        self._on_mended(self)
        return nothing

    def wake_ahead(self) -> None:
        """Kick the next stage ahead of work that is about to come.

        Worth it after a silence, when the other core sleeps: that core wakes up while the first packet is being read.
        """
        for doorbell in self._after:
            doorbell.kick()


def any_ready(ports: Sequence[Port]) -> Callable[[], int]:
    """A function that tells whether any of these ports has a ready slot, as cheap as possible for one port."""
    if len(ports) == 1:
        return ports[0].ready
    return lambda: sum(port.ready() for port in ports)
