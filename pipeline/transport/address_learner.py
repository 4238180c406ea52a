"""The address learner: which tunnel address a client of the original program has, by the sources of its packets.

    find_claim(view, at, end)   look at whole frames for a source that may be the client's; it is `claim` from then on
    settle()                    the supervisor has agreed: the subnet of the claim is done

A source is a claim if it is the address of a host in a subnet of which the client has none yet, and not the server's.
Every other packet (link-local, multicast, unspecified, malformed) is not looked at further; the tun worker drops it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface

from pipeline.packet import ip
from pipeline.packet.address_pool import AddressPool
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.wire import framing
from pipeline.wire.messages import Address

_frame_at = framing.FRAME.unpack_from


class AddressLearner:
    """One for each connection. `subnets`: the server's addresses, each with the prefix length of its subnet."""

    def __init__(self, subnets: Iterable[str]) -> None:
        self._pools = [AddressPool(ip_interface(text)) for text in subnets]
        self.claim: Address | None = None
        self.claimed_ns = 0

    @property
    def is_done(self) -> bool:
        return not self._pools

    def find_claim(self, view: memoryview, at: int, end: int) -> int:
        """The first frame in view[at:end], which holds whole frames, with a claim: its offset, or `end` without one."""
        versions = {pool.version for pool in self._pools}
        while end - at > framing.LENGTH.size:
            length, kind = _frame_at(view, at)
            after = at + framing.LENGTH.size + length
            packet_at = at + framing.FRAME.size
            if kind == framing.DATA and length > 1 and view[packet_at] >> 4 in versions:
                address = _source(view, packet_at, length - 1)
                if address is not None and any(pool.contains(address) for pool in self._pools):
                    self.claim = address
                    return at
            at = after
        return end

    def settle(self) -> None:
        """The claim is the client's address."""
        self._pools = [pool for pool in self._pools if self.claim is None or not pool.contains(self.claim)]
        self.claim = None


def _source(view: memoryview, at: int, length: int) -> Address | None:
    """The source of the bare packet in view[at : at + length], if it is sound."""
    if ip.check_bare(view, at, length) is not None:
        return None
    return ip_address(ip.source(view, at - VNET_HEADER_BYTES))
