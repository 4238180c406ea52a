"""The inbound duty of a tun worker: frames of the inbound rings and of its decoded ring to its TUN queue.

A packet that is refused is counted by reason and costs nothing else. A slot seen twice (a killed predecessor had it in
hand) means a duplicated packet, which IP allows.
"""

from __future__ import annotations

import errno
import os
from os import write

from pipeline import block, ippacket, tun, wire
from pipeline.block import SLOT, VNET_HEADER_BYTES
from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.ippacket import check
from pipeline.port import any_ready
from pipeline.worker import MORE, NOTHING, Attachment



class Inbound:
    """Every inbound ring to this lane's TUN queue."""

    name = "inbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        self._decoded = attachment.ports(self.name, "decoded")
        self._ports = self._decoded + attachment.ports(self.name, "inbound")
        self._bell = attachment.doorbells[self.name]
        self._ready = any_ready(self._ports)
        self._compat = attachment.settings["compat"]
        self._fd = fd
        self._counters = attachment.page.counters

    def work(self) -> int:
        """Write the packets of all ready slots that are this lane's."""
        found = NOTHING
        for port in self._ports:
            ready = port.ready()
            for i in range(ready):
                slot = port.slot(i)
                start, length, member, _ = _unpack_slot(slot)
                if member == port.position:
                    self._write_frames(slot, start, start + length)
            if ready:
                port.advance(ready)
                found = MORE
        return found

    def wait(self, seconds: float) -> None:
        self._bell.wait(self._ready, seconds)

    def drained(self) -> bool:
        return True

    def _write_frames(self, slot: memoryview, at: int, end: int) -> None:
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            after = at + 4 + length
            if not length:
                pass
            elif kind == wire.BLOCK and not self._compat:
                try:
                    first, lengths = block.lengths(slot, at, after)
                except PeerError:
                    self._counters[ID["tun.dropped_frame_malformed"]] += 1
                else:
                    self._write_packets(slot, first, lengths)
            elif kind == wire.RUN and self._decoded:
                pass  # the fec worker's
            elif kind == wire.DATA:
                self._write_bare(slot, at + wire.FRAME.size, length - 1)
            elif kind != wire.KEEPALIVE:
                self._counters[ID["tun.dropped_frame_unknown"]] += 1
            at = after

    def _write_packets(self, slot: memoryview, at: int, lengths: tuple[int, ...]) -> None:
        fd = self._fd
        counters = self._counters
        written = size = 0
        for length in lengths:
            reason = check(slot, at, length)
            if not reason:
                try:
                    write(fd, slot[at : at + length])
                    written += 1
                    size += length
                except OSError as error:
                    reason = _refused(error, slot[at + _GSO_TYPE_AT])
            if reason:
                counters[ID[reason]] += 1
            at += length
        counters[_PACKETS_WRITTEN] += written
        counters[_BYTES_WRITTEN] += size - written * VNET_HEADER_BYTES

    def _write_bare(self, slot: memoryview, at: int, length: int) -> None:
        reason = ippacket.check_bare(slot, at, length)
        if not reason:
            try:
                os.writev(self._fd, (ippacket.NO_VNET, slot[at : at + length]))
                self._counters[_PACKETS_WRITTEN] += 1
                self._counters[_BYTES_WRITTEN] += length
            except OSError as error:
                reason = _refused(error, 0)
        if reason:
            self._counters[ID[reason]] += 1


def _refused(error: OSError, gso_type: int) -> str:
    """The counter for a write that the kernel refused; an error that no packet explains ends the worker."""
    if error.errno == errno.EIO or error.errno in tun.GONE:
        return "tun.dropped_link_down"
    if error.errno in (errno.EINVAL, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EPERM):
        return "tun.dropped_offload_refused" if gso_type else "tun.dropped_write_refused"
    raise error


_frame_at = wire.FRAME.unpack_from
_unpack_slot = SLOT.unpack_from
_GSO_TYPE_AT = 1  # struct virtio_net_hdr
_PACKETS_WRITTEN = ID["tun.packets_written"]
_BYTES_WRITTEN = ID["tun.bytes_written"]
