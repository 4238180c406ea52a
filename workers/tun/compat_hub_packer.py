"""The packer of a hub of the original program: packets become frames in a slot of the peer that each is for.

Each packet is read into a scratch buffer and copied once. The routes name its peer, by the address that the peer has
used first; a packet for no peer is dropped and counted. Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet import ip
from pipeline.packet.route_table import RouteTable
from pipeline.packet.vnet import PACKET_BYTES_MAX, VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm.peer_table import RouteReader
from pipeline.wire import framing
from workers.tun.compat_slots import CompatSlots
from workers.tun.packer import BULK_FULL

_NO_PEER = ID["tun.dropped_no_peer"]
_TOO_LONG = ID["tun.dropped_packet_too_long"]


class CompatHubPacker:
    """A Packer; stage 0 of the lane's plain ring."""

    due_ns = 0

    def __init__(self, attachment: Attachment) -> None:
        (port,) = attachment.ports("outbound", "plain")
        self._slots = CompatSlots(port, LinkView(attachment))
        self._route_reader = RouteReader(attachment.peer_table)
        self._routes = RouteTable()
        self._counters = attachment.page.counters
        self._scratch = memoryview(bytearray(PACKET_BYTES_MAX))

    # -- before a burst

    def lone_buffers(self, offloads: int) -> None:
        return None

    def commit_alone(self, length: int, now: int) -> int:
        raise NotImplementedError("there are no lone_buffers()")

    def acknowledge(self) -> int:
        return 0

    def begin_burst(self) -> int:
        if self._route_reader.has_changed():
            self._route_reader.read_into(self._routes)
        return 0 if self._slots.has_room() else BULK_FULL

    def accepted_offloads(self) -> int | None:
        return None

    def has_room(self) -> bool:
        return self._slots.has_room()

    def wake_ahead(self) -> None:
        self._slots.port.wake_ahead()

    # -- each packet

    def next_buffers(self) -> list[memoryview] | None:
        return [self._scratch] if self._slots.has_room() else None

    def scratch_buffers(self) -> list[memoryview]:
        return [self._scratch]

    def commit(self, length: int, now: int) -> bytes | None:
        packet = self._scratch[:length]
        return None if self._put(packet) else bytes(packet)

    def retry(self, packet: bytes) -> bool:
        return self._put(memoryview(packet))

    def _put(self, packet: memoryview) -> bool:
        """Put a packet where it goes, or drop it. False if there is no slot for it."""
        if 1 + len(packet) - VNET_HEADER_BYTES > framing.COMPAT_LENGTH_LIMIT:
            self._counters[_TOO_LONG] += 1
            return True
        peer_handle = self._routes.lookup(ip.destination(packet, 0))
        if peer_handle < 0:
            self._counters[_NO_PEER] += 1
            return True
        return self._slots.append(packet[VNET_HEADER_BYTES:], peer_handle)

    # -- after a burst

    def flush(self) -> int:
        return self._slots.hand_on()
