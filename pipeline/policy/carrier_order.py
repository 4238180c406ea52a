"""Which kinds of datagrams an end has, in the order in which they are tried. Pure.

    `carrier`   kinds
    auto        UDP, then fake TCP
    udp         UDP
    faketcp     fake TCP
    tcp         none

Of those whose path is open, the first one is used. Both ends go by that rule, each for what it sends. The client alone
begins: a later kind costs a handshake and a flow that firewalls follow, so it waits for its turn.

    no path of an earlier kind was open yet     after HEAD_START_NS, within which most paths have answered
    the paths of all earlier kinds are dark     at once
    one of them is open again                   for KEEP_NS more, as that path may go dark again soon

Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pipeline.policy.carrier import CarrierStatus, State

HEAD_START_NS = 1_000_000_000
KEEP_NS = 30_000_000_000


class Kind(StrEnum):
    """Of datagrams. The names are values of `carrier`."""

    UDP = "udp"
    FAKE_TCP = "faketcp"


WORDS = {Kind.UDP: "UDP", Kind.FAKE_TCP: "fake TCP"}
NAMES = frozenset(kind.value for kind in Kind)
"""Of the carriers that are datagrams, as observers show them."""

KINDS: dict[str, tuple[Kind, ...]] = {
    "auto": (Kind.UDP, Kind.FAKE_TCP),
    Kind.UDP: (Kind.UDP,),
    Kind.FAKE_TCP: (Kind.FAKE_TCP,),
    "tcp": (),
}
"""By the setting."""


class Turn:
    """Whether it is the turn of one kind of a client."""

    def __init__(self, is_on: bool = False) -> None:
        self.is_on = is_on

    def follow(self, before: Iterable[CarrierStatus], now: int) -> bool:
        """`before`: of the paths of the earlier kinds."""
        earlier = [each for each in before if each.state is not State.OFF]
        opened = [each.since for each in earlier if each.state is State.OPEN]
        if opened:
            self.is_on = self.is_on and now - min(opened) < KEEP_NS
        else:
            self.is_on = self.is_on or all(
                each.state is State.DARK or now - each.since >= HEAD_START_NS for each in earlier
            )
        return self.is_on
