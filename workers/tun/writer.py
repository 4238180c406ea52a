"""The inbound duty of a tun worker: frames of the inbound rings and of its decoded ring to its TUN queue.

Nothing that a peer has sent is believed. Each packet is checked for its form, and, unless there is one peer alone to
which everything belongs, for its addresses:

    source         the longest prefix over all peers has to be the sender's
    destination    another peer's: into the transit ring (`tun_transit`), or dropped with client_isolation
                   the sender's own, or multicast: dropped
                   else the kernel's

What is refused is counted by reason and costs nothing else. A slot seen twice (a killed predecessor had it in hand)
means a duplicated packet, which IP allows.
"""

from __future__ import annotations

import errno
from os import write

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.packet import ip
from pipeline.packet.ip import check
from pipeline.packet.route_table import RouteTable
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime import tun
from pipeline.runtime.port import any_ready
from pipeline.runtime.worker import MORE, NOTHING, Attachment
from pipeline.shm import layout
from pipeline.shm.peer_table import RouteReader
from pipeline.shm.slot import MARKS, SLOT
from pipeline.wire import block, framing
from workers.tun.forwarder import Forwarder

KERNEL, GONE = "", "gone"
"""Where a packet goes that is not dropped: to the kernel, or it has gone already."""


class TunWriter:
    """Every inbound ring to this lane's TUN queue."""

    name = "inbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        self._decoded = attachment.ports(self.name, "decoded")
        self._ports = self._decoded + attachment.ports(self.name, "inbound")
        self._bell = attachment.doorbells[self.name]
        self._ready = any_ready(self._ports)
        self._compat = attachment.settings["compat"]
        self._isolated = attachment.settings["client_isolation"]
        self._transit = Forwarder(attachment) if attachment.peers.capacity > 1 else None
        self._reader = RouteReader(attachment.peers)
        self._routes = RouteTable()
        self._bare = memoryview(bytearray(VNET_HEADER_BYTES + framing.LENGTH_LIMIT))
        self._fd = fd
        self._counters = attachment.page.counters

    def work(self) -> int:
        """Write the packets of all ready slots that are this lane's."""
        found = NOTHING
        if self._reader.changed():
            self._reader.read_into(self._routes)
        for port in self._ports:
            ready = port.ready()
            for i in range(ready):
                slot = port.slot(i)
                start, length, member, peer_handle = _unpack_slot(slot)
                if member == port.position:
                    self._write_frames(slot, start, start + length, peer_handle)
            if ready:
                if self._transit is not None:
                    self._transit.leave()
                port.advance(ready)
                found = MORE
        return found

    def wait(self, seconds: float) -> None:
        self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        return True

    def _write_frames(self, slot: memoryview, at: int, end: int, peer_handle: int) -> None:
        traffic_class = _unpack_marks(slot, layout.SLOT_TRAFFIC_CLASS_AT)[0]
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            after = at + 4 + length
            if not length:
                pass
            elif kind == framing.BLOCK and not self._compat:
                try:
                    first, lengths = block.lengths(slot, at, after)
                except PeerError:
                    self._counters[ID["tun.dropped_frame_malformed"]] += 1
                else:
                    self._write_packets(slot, first, lengths, peer_handle, traffic_class)
            elif kind == framing.RUN and self._decoded:
                pass  # the fec worker's
            elif kind == framing.DATA:
                size = VNET_HEADER_BYTES + length - 1
                self._bare[VNET_HEADER_BYTES:size] = slot[at + framing.FRAME.size : after]
                self._write_packets(self._bare, 0, (size,), peer_handle, traffic_class)
            elif kind != framing.KEEPALIVE:
                self._counters[ID["tun.dropped_frame_unknown"]] += 1
            at = after

    def _write_packets(
        self, slot: memoryview, at: int, lengths: tuple[int, ...], peer_handle: int, traffic_class: int
    ) -> None:
        fd = self._fd
        counters = self._counters
        trusted = self._routes.only == peer_handle
        written = size = 0
        for length in lengths:
            reason = check(slot, at, length)
            if not reason and not trusted:
                reason = self._way(slot, at, length, peer_handle, traffic_class)
            if not reason:
                try:
                    write(fd, slot[at : at + length])
                    written += 1
                    size += length
                    reason = GONE
                except OSError as error:
                    reason = _refused(error, slot[at + _GSO_TYPE_AT])
            if reason is not GONE:
                counters[ID[reason]] += 1
            at += length
        counters[_PACKETS_WRITTEN] += written
        counters[_BYTES_WRITTEN] += size - written * VNET_HEADER_BYTES

    def _way(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> str:
        """KERNEL, GONE to another peer, or the counter for the drop."""
        routes = self._routes
        if routes.peer_of(ip.source(slot, at)) != peer_handle:
            return "tun.dropped_source_refused"
        destination = ip.destination(slot, at)
        other = routes.peer_of(destination)
        if other < 0:
            return "tun.dropped_multicast" if ip.is_multicast(destination) else KERNEL
        if other == peer_handle:
            return "tun.dropped_own_destination"
        if self._isolated or self._transit is None:
            return "tun.dropped_isolated"
        self._transit.take(slot, at, length, other, traffic_class)
        return GONE


def _refused(error: OSError, gso_type: int) -> str:
    """The counter for a write that the kernel refused; an error that no packet explains ends the worker."""
    if error.errno == errno.EIO or error.errno in tun.DEVICE_GONE_ERRNOS:
        return "tun.dropped_link_down"
    if error.errno in (errno.EINVAL, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EPERM):
        return "tun.dropped_offload_refused" if gso_type else "tun.dropped_write_refused"
    raise error


_frame_at = framing.FRAME.unpack_from
_unpack_slot = SLOT.unpack_from
_unpack_marks = MARKS.unpack_from
_GSO_TYPE_AT = 1  # struct virtio_net_hdr
_PACKETS_WRITTEN = ID["tun.packets_written"]
_BYTES_WRITTEN = ID["tun.bytes_written"]
