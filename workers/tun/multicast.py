"""Packets to everybody on a hub (`multicast_kbit`): multicast and broadcast, from a peer or from this machine.

Routes to EVERYBODY name them (pipeline.packet.route_table). These classes take the places of BulkPacker and TunWriter
where the setting asks for it, so it costs nothing where it is off.

    MulticastPacker    a packet from TUN goes to all peers
    MulticastWriter    a packet from a peer goes to the kernel, and to all other peers

A packet goes out unchanged, time to live included, as on one link: receivers of mDNS expect 255 there (RFC 6762, 11).
Rules of reach hold for it as for any other packet. It never goes back to its sender, and a kernel sends none on that
has come from TUN. So none goes in circles.

A hub may have more peers than a ring has slots. So COPIES_AT_ONCE go out in one turn, and the others wait here. Packets
beyond the limit (pipeline.policy.multicast_limit), or beyond WAITING_MAX of them, are dropped and counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.packet.ip import destination, source
from pipeline.packet.route_table import EVERYBODY
from pipeline.policy.multicast_limit import MulticastLimit
from pipeline.runtime.worker import Attachment
from workers.tun.bulk_packer import BulkPacker
from workers.tun.forwarder import Forwarder
from workers.tun.reach_filter import ReachFilter
from workers.tun.sealing import BlockOpening, BlockSealing
from workers.tun.writer import TunWriter

COPIES_AT_ONCE = 16
"""A quarter of the slots of a light ring, which it has free when it has room."""

WAITING_MAX = 64
LOOK_NS = 100_000_000
THIS_END = -1  # in place of a peer handle

_READ = ID["tun.packets_multicast_read"]
_DROPPED_OWN = ID["tun.dropped_own_multicast_limit"]
_RECEIVED = ID["tun.packets_multicast_received"]
_DROPPED = ID["tun.dropped_multicast_limit"]
_SOURCE_REFUSED = ID["tun.dropped_source_refused"]
_UNGUARDED = ID["tun.dropped_unguarded"]


class _Waiting(NamedTuple):
    """A packet, and the peers that it has not gone to yet."""

    packet: bytes
    sender: int
    traffic_class: int
    receivers: list[int]


class Everybody:
    """The peers that are connected, looked for ten times a second at most, and the packets that wait for them."""

    def __init__(self, attachment: Attachment) -> None:
        self.waiting: deque[_Waiting] = deque()
        self._table = attachment.peer_table
        self._limit = MulticastLimit(attachment.settings.multicast_rate)
        self._handles: list[int] = []
        self._look_ns = 0

    def add(self, packet: bytes, sender: int, traffic_class: int, now: int) -> bool:
        """Let a packet wait for all peers but its sender. Whether that is within the limits."""
        if len(self.waiting) >= WAITING_MAX or not self._limit.may_pass(sender, len(packet), now):
            return False
        if now >= self._look_ns:
            self._look_ns = now + LOOK_NS
            established = self._table.established_counts()
            handles = zip(self._table.handles(), established, strict=True)
            self._handles = [handle for handle, count in handles if count]
        receivers = [handle for handle in self._handles if handle != sender]
        if receivers:
            self.waiting.append(_Waiting(packet, sender, traffic_class, receivers))
        return True


class MulticastPacker(BulkPacker):
    """A BulkPacker of a hub that has the setting."""

    def __init__(
        self, attachment: Attachment, sealing: BlockSealing | None = None, owed: deque[int] | None = None
    ) -> None:
        super().__init__(attachment, sealing, owed)
        self._everybody = Everybody(attachment)
        self._copies = 0  # that may go out in this burst

    def acknowledge(self) -> int:
        self._copies = COPIES_AT_ONCE
        count = super().acknowledge()
        if self._everybody.waiting:
            self._burst.look()
            self._send_waiting(time.monotonic_ns())
            count += self.flush()
        return count

    def commit(self, length: int, now: int) -> bytes | None:
        slot, at = self._slot, self._at
        if self._routes.lookup(destination(slot, at)) != EVERYBODY:
            return super().commit(length, now)
        if self._everybody.add(bytes(slot[at : at + length]), THIS_END, 0, now):
            self._counters[_READ] += 1
            self._send_waiting(now)
        else:
            self._counters[_DROPPED_OWN] += 1
        return None

    def _send_waiting(self, now: int) -> None:
        waiting = self._everybody.waiting
        while waiting and self._copies and self._light.has_room():
            packet, _, _, receivers = waiting[0]
            self._finish(packet, receivers.pop(), now)
            self._copies -= 1
            if not receivers:
                waiting.popleft()


class MulticastWriter(TunWriter):
    """A TunWriter of a hub that has the setting. `forwarder`: None if no packet passes from peer to peer."""

    def __init__(
        self,
        attachment: Attachment,
        fd: int,
        frames: Mapping[int, int],
        forwarder: Forwarder | None,
        opening: BlockOpening | None = None,
        reach: ReachFilter | None = None,
    ) -> None:
        super().__init__(attachment, fd, frames, forwarder, opening, reach)
        self._slots = forwarder
        self._everybody = Everybody(attachment)

    def work(self) -> int:
        found = super().work()
        if self._everybody.waiting:
            self._forward_waiting()
        return found

    def _route(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> bool:
        lookup = self._routes.lookup
        if lookup(destination(slot, at)) != EVERYBODY:
            return super()._route(slot, at, length, peer_handle, traffic_class)
        if lookup(source(slot, at)) != peer_handle:
            self._counters[_SOURCE_REFUSED] += 1
            return False
        packet = bytes(slot[at : at + length])
        if not self._everybody.add(packet, peer_handle, traffic_class, time.monotonic_ns()):
            self._counters[_DROPPED] += 1
            return False
        self._counters[_RECEIVED] += 1
        if peer_handle in self._kept_from_kernel:
            self._counters[_UNGUARDED] += 1
            return False
        return True

    def _forward_waiting(self) -> None:
        slots, forwarder, waiting = self._slots, self._forwarder, self._everybody.waiting
        if slots is None or forwarder is None:
            waiting.clear()
            return
        for _ in range(COPIES_AT_ONCE):
            if not (waiting and slots.has_room(waiting[0].sender)):
                break
            packet, sender, traffic_class, receivers = waiting[0]
            forwarder.forward(memoryview(packet), 0, len(packet), sender, receivers.pop(), traffic_class)
            if not receivers:
                waiting.popleft()
        forwarder.flush()
