"""For how long a flow is known after a packet of it, and its state: as the kernel's conntrack has it. Pure.

The times are those of Linux (net/netfilter/nf_conntrack_proto_*.c). TCP is known for five days once both ends have
talked, and for two minutes once one of them has ended it.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.policy.targets import ICMP, ICMPV6, TCP, UDP

NEW, OPEN, CLOSING = range(3)
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

TCP_NEW, TCP_MIDWAY, TCP_OPEN, TCP_CLOSING, TCP_RESET = 120, 300, 432_000, 120, 10
UDP_NEW, UDP_OPEN = 30, 120
ICMP_SECONDS = 30
OTHER_SECONDS = 600


class Kept(NamedTuple):
    """A flow from now on: its state, and for how many seconds it is known."""

    state: int
    seconds: int


def after(protocol: int, flags: int, before: Kept | None, *, answers: bool) -> Kept:
    """The flow after this packet. `before`: None for a flow that is not known; `answers`: the packet goes
    to the end that has begun it."""
    if protocol == TCP:
        return _after_tcp(flags, before)
    if protocol == UDP:
        if answers or (before is not None and before.state == OPEN):
            return Kept(OPEN, UDP_OPEN)
        return Kept(NEW, UDP_NEW)
    return Kept(NEW, ICMP_SECONDS if protocol in (ICMP, ICMPV6) else OTHER_SECONDS)


def _after_tcp(flags: int, before: Kept | None) -> Kept:
    if flags & RST:
        return Kept(CLOSING, TCP_RESET)
    if flags & (SYN | ACK) == SYN:
        return Kept(NEW, TCP_NEW)
    if flags & FIN:
        return Kept(CLOSING, TCP_CLOSING)
    if before is None:
        return Kept(NEW, TCP_MIDWAY)
    return before if before.state == CLOSING else Kept(OPEN, TCP_OPEN)
