"""Packets into blocks: stage 0 of a lane's bulk rings, one block in hand for each peer that the packets are for.

A packet is read where it belongs if it is for the peer that the last one was for: behind that one. Else it is moved,
once. The blocks of a burst leave together, in the order in which they were begun. Which peer a packet is for is said by
the routes; one that is for nobody is dropped, counted. What a peer's device does not take back (super-packets,
checksums to be completed) is finished here, unless the peer is the only one: then the kernel is asked not to hand it
out.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet import gso, ip
from pipeline.packet.route_table import RouteTable
from pipeline.packet.vnet import PACKET_BYTES_MAX
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import Port
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout
from pipeline.shm.layout import NUMBER_CODED, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.peer_table import RouteReader
from pipeline.shm.slot import FILL_LIMIT, MARKS, seal
from pipeline.wire import framing
from workers.tun.light_packer import LightPacker

BURST_SLOTS = 4
"""Slots filled before they are handed on together, with one peer; with several, as many as are free."""


class OpenBlock:
    """A block in hand: packets in `slot`, a slot of `port`, up to `end`."""

    __slots__ = ("end", "lengths", "member", "number", "peer_handle", "port", "slot", "traffic_class")

    def __init__(
        self, port: Port, slot: memoryview, peer_handle: int, traffic_class: int, member: int, number: int
    ) -> None:
        self.port = port
        self.slot = slot
        self.peer_handle = peer_handle
        self.traffic_class = traffic_class
        self.member = member
        self.number = number
        self.lengths: list[int] = []
        self.end = layout.SLOT_BODY_AT

    def seal(self) -> None:
        """Make a whole slot of it."""
        seal(self.slot, self.lengths, self.end, self.member, self.peer_handle)
        _pack_marks(self.slot, layout.SLOT_TRAFFIC_CLASS_AT, self.traffic_class, self.number)


class BulkPacker:
    """`place` and `at`: where the next packet is read to, in the one buffer of `buffers`."""

    def __init__(self, attachment: Attachment, ways: LinkView) -> None:
        (self._plain,) = attachment.ports("outbound", "outbound")
        self._coded = next(iter(attachment.ports("outbound", "coded")), None)
        self._ports = [port for port in (self._plain, self._coded) if port is not None]
        self._light = LightPacker(attachment, ways)
        self._ways = ways
        self._several = attachment.peers.capacity > 1
        self._most = self._plain.ring.capacity if self._several else BURST_SLOTS
        self._offloads = attachment.settings["offloads"]
        self._counters = attachment.page.counters
        self._numbers = attachment.peers.numbers[attachment.me.lane]
        self._reader = RouteReader(attachment.peers)
        self.routes = RouteTable()
        self._first = {
            port: [[slot[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + PACKET_BYTES_MAX]] for slot in port.slots]
            for port in self._ports
        }
        self._scratch = memoryview(bytearray(layout.SLOT_BODY_AT + PACKET_BYTES_MAX))
        self._taken = dict.fromkeys(self._ports, 0)
        self._filled: list[OpenBlock] = []
        self._open: dict[int, OpenBlock] = {}
        self._last: OpenBlock | None = None
        self._accepts: dict[int, int] = {}
        self._next = self._plain  # the port in which the next block will most likely begin
        self.place = self._scratch
        self.at = layout.SLOT_BODY_AT
        self.buffers: list[memoryview] = []

    # -- before a burst

    def begin(self) -> bool:
        """Follow the routes, choose where to read to. False if a ring is full that packets will need."""
        if self._reader.changed():
            self._reader.read_into(self.routes)
        only = self.routes.only
        if only >= 0:
            self._next = self._port_for(only & PEER_INDEX_MASK)
            return bool(self._next.ready())
        return all(port.ready() for port in self._ports)

    def has_room(self) -> bool:
        return bool(self._next.ready())

    def light_has_room(self) -> bool:
        return self._light.has_room()

    def _port_for(self, peer: int) -> Port:
        return self._coded if self._coded is not None and self._ways.parity(peer) else self._plain

    def aim(self) -> bool:
        """Set place, at and buffers for the next packet. False if there is no slot for it."""
        last = self._last
        if last is not None:
            self.place, self.at = last.slot, last.end
            self.buffers = [last.slot[last.end : last.end + PACKET_BYTES_MAX]]
            return True
        port = self._next
        taken = self._taken[port]
        if taken >= self._most or taken >= port.ready():
            return False
        self.place, self.at = port.slot(taken), layout.SLOT_BODY_AT
        self.buffers = self._first[port][port.index(taken)]
        return True

    def aim_aside(self) -> None:
        """The same where no slot is free: from there packets can go into the light ring alone."""
        self.place, self.at = self._scratch, layout.SLOT_BODY_AT
        self.buffers = [self._scratch[layout.SLOT_BODY_AT :]]

    # -- each packet

    def take(self, length: int, now: int) -> bool:
        """The packet at `place` goes where it belongs. False if there is no slot for it."""
        slot, at = self.place, self.at
        peer_handle = self.routes.only
        if peer_handle < 0:
            peer_handle = self._find(slot, at)
            if peer_handle < 0:
                return True
            if (slot[at] or slot[at + 1]) and self._offloads & ~self._accepted(peer_handle):
                return self._finish(slot, at, length, peer_handle, now)
        return self._light.take(slot, at, length, now, peer_handle) or self._put(slot, at, length, peer_handle)

    def take_back(self, packet: bytes) -> bool:
        """A packet that found no slot before. False if there is none still."""
        at = layout.SLOT_BODY_AT
        self._scratch[at : at + len(packet)] = packet
        peer_handle = self.routes.only
        if peer_handle < 0:
            peer_handle = self._find(self._scratch, at)
            if peer_handle < 0:
                return True
        return self._put(self._scratch, at, len(packet), peer_handle)

    def _find(self, slot: memoryview, at: int) -> int:
        """The seat that the packet at slot[at] is for; NOBODY, counted."""
        address = ip.destination(slot, at)
        peer_handle = self.routes.cache.get(address)
        if peer_handle is None:
            peer_handle = self.routes.look_up(address)
        if peer_handle < 0:
            self._counters[_NO_PEER] += 1
        return peer_handle

    def _put(self, slot: memoryview, at: int, length: int, peer_handle: int) -> bool:
        filling = self._last
        if filling is None or filling.peer_handle != peer_handle:
            filling = self._open.get(peer_handle) or self._begin(peer_handle)
            if filling is None:
                return False
            self._last = filling
        end = filling.end
        if filling.slot is not slot or end != at:
            filling.slot[end : end + length] = slot[at : at + length]
        filling.lengths.append(length)
        filling.end = end = end + length
        if end > _FULL or len(filling.lengths) == framing.BLOCK_PACKETS_MAX:
            del self._open[peer_handle]
            self._last = None
        return True

    def _begin(self, peer_handle: int) -> OpenBlock | None:
        peer = peer_handle & PEER_INDEX_MASK
        port = self._port_for(peer)
        taken = self._taken[port]
        if taken >= self._most or taken >= port.ready():
            return None
        self._taken[port] = taken + 1
        self._next = port
        number = 0
        if port is self._coded:
            at = peer * RECORD_WORDS + NUMBER_CODED
            number = self._numbers[at]
            # first: a number that nobody uses costs less than one used twice
            self._numbers[at] = number + 1 & 0xFFFFFFFF
        filling = self._open[peer_handle] = OpenBlock(
            port, port.slot(taken), peer_handle, framing.BULK, self._ways.own(peer), number
        )
        self._filled.append(filling)
        return filling

    def _accepted(self, peer_handle: int) -> int:
        accepted = self._accepts.get(peer_handle)
        if accepted is None:
            accepted = self._accepts[peer_handle] = self._ways.offloads(peer_handle & PEER_INDEX_MASK) or 0
        return accepted

    def _finish(self, slot: memoryview, at: int, length: int, peer_handle: int, now: int) -> bool:
        """Do what the kernel has left to do, for a peer whose kernel does not."""
        scratch, begin = self._scratch, layout.SLOT_BODY_AT
        packets = gso.finish(bytes(slot[at : at + length]))
        self._counters[_NOT_FINISHED] += not packets
        for packet in packets:
            scratch[begin : begin + len(packet)] = packet
            taken = self._light.take(scratch, begin, len(packet), now, peer_handle)
            if not (taken or self._put(scratch, begin, len(packet), peer_handle)):
                self._counters[_RING_FULL] += 1
        return True

    # -- after a burst

    def leave(self) -> int:
        """Hand on the blocks in hand. How many there were."""
        filled = self._filled
        self._light.leave()
        if not filled:
            return 0
        for filling in filled:
            filling.seal()
        count = len(filled)
        filled.clear()
        self._open.clear()
        self._accepts.clear()
        self._last = None
        for port, taken in self._taken.items():
            if taken:
                self._taken[port] = 0
                port.advance(taken)
        return count

    def wake_ahead(self) -> None:
        self._next.wake_ahead()


_pack_marks = MARKS.pack_into
_FULL = layout.SLOT_BODY_AT + FILL_LIMIT
_NO_PEER = ID["tun.dropped_no_peer"]
_RING_FULL = ID["tun.dropped_ring_full"]
_NOT_FINISHED = ID["tun.dropped_not_finished"]
