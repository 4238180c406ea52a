"""The shares of a ring: how much of what waits in it is whose. Pure; owned by the duty that fills the ring.

    follow(free)           so many slots are free now: the oldest ones have been finished
    may_add(owner)         whether it is within its share
    add(owner, charge)     it takes the next slot

A ring is one queue for all, so a newcomer waits behind everything in it. Each owner may have as many slots as are free,
and as much charge as is left of CHARGE_MOST. So one owner alone gets half, two get a third each, and there is room for
one more (Choudhury and Hahne, Dynamic queue length thresholds, 1998). With a `greed` of g an owner may have g times as
much: one alone gets g of g + 1 parts.
"""

from __future__ import annotations

from collections import deque

CHARGE_MOST = 4 << 20
"""Charge (`pipeline.wire.charge`) in a ring at most: about 5 ms of the next duty's time."""

SLOT_CHARGE_MOST = CHARGE_MOST >> 1
"""A slot counts as no more. One that costs more keeps its owner waiting long enough, and must not stop the others."""


class RingShares:
    """`capacity`: slots of the ring. Owners are numbers. Slots of an earlier run of the duty belong to nobody."""

    def __init__(self, capacity: int, greed: int = 1) -> None:
        self._capacity = capacity
        self._greed = greed
        self._waiting: deque[tuple[int, int]] = deque()  # owner and charge of each slot, the oldest first
        self._slots: dict[int, int] = {}
        self._charges: dict[int, int] = {}
        self._slots_left = capacity
        self._charge_left = CHARGE_MOST

    def follow(self, free: int) -> None:
        """Take the slots off their owners that have been finished since."""
        waiting, slots, charges = self._waiting, self._slots, self._charges
        for _ in range(len(waiting) + free - self._capacity):
            owner, charge = waiting.popleft()
            left = slots[owner] - 1
            if left:
                slots[owner] = left
                charges[owner] -= charge
            else:
                del slots[owner], charges[owner]
            self._charge_left += charge
        self._slots_left = free

    def may_add(self, owner: int) -> bool:
        """Whether an owner may take the next slot."""
        slots, greed = self._slots.get(owner, 0), self._greed
        return not slots or (slots < greed * self._slots_left and self._charges[owner] < greed * self._charge_left)

    def add(self, owner: int, charge: int) -> None:
        """Note that an owner has taken the next slot. The caller has asked may_add(), or has its reasons."""
        charge = min(charge, SLOT_CHARGE_MOST)
        self._waiting.append((owner, charge))
        self._slots[owner] = self._slots.get(owner, 0) + 1
        self._charges[owner] = self._charges.get(owner, 0) + charge
        self._slots_left -= 1
        self._charge_left -= charge
