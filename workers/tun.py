"""The tun worker: packets from a TUN queue into blocks, and frames from the tcp workers back to the kernel.

    outbound    wait on the queue -> read packets into the slot until it is full or nothing is left ->
                stamp the tcp worker that carries it -> hand on
    inbound     wait on the doorbell -> for each slot of this lane, each frame, each packet: check, write -> hand on

Nothing waits to fill: a block leaves with whatever was ready. A packet that is refused is counted by reason and
costs nothing else. A slot seen twice (a killed predecessor had it in hand) means a duplicated packet, which IP allows.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import time
from os import readv, write

from pipeline import block, ippacket, layout, tun, wire
from pipeline.block import SLOT, VNET_HEADER_BYTES
from pipeline.carrier import ESTABLISHED, OFFLOADS
from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.ippacket import check
from pipeline.log import LOG
from pipeline.port import QUIET_NS, any_ready
from pipeline.worker import DONE, MORE, NOTHING, Attachment, Duty

BURST_SLOTS = 4
"""Slots filled before they are handed on together."""

POLLED_PACKETS = 4
"""So many packets into a block, a look whether there is another is cheaper than a read that fails (the exception
costs more than the system call); behind that it is a burst, and only its last read fails."""

SUPER_PACKET_BYTES = 16384
"""A packet longer than this is worth a block of its own."""

TROUBLE_PAUSE_NS = 50_000_000
"""How long a reader leaves a queue alone whose link is down or whose device is gone."""


def duties(attachment: Attachment, arguments: argparse.Namespace) -> list[Duty]:
    """The two duties of a tun worker over the queue in `arguments.tun_fd`."""
    return [Outbound(attachment, arguments.tun_fd), Inbound(attachment, arguments.tun_fd)]


class Outbound:
    """TUN to the outbound ring of this lane."""

    name = "outbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        (self._port,) = attachment.ports(self.name, "outbound")
        self._bell = attachment.doorbells[self.name]
        self._stop = attachment.stop
        self._fd = fd
        self._counters = attachment.page.counters
        self._fill = self._fill_compat if attachment.settings["compat"] else self._fill_block
        self._carriers = [attachment.board.pages[w.page].carrier for w in attachment.plan.of_kind("tcp")]
        self._offloads = attachment.settings["offloads"]
        self._granted = -1  # whatever a predecessor left in force
        self._lane = attachment.me.lane
        queue = select.poll()
        queue.register(fd, select.POLLIN)
        self._poll = queue.poll
        self._first = [[slot[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + block.PACKET_BYTES_MAX]]
                       for slot in self._port.slots]
        self._scratch = memoryview(bytearray(VNET_HEADER_BYTES))
        self._readable = False   # the last look at the queue found something
        self._ring_full = False
        self._woken = 0
        self._pause_until = 0

    def work(self) -> int:
        """Fill free slots while packets are ready, a few at a time, and hand them on together."""
        if self._stop.requested or not self._readable:
            return NOTHING
        free = self._port.ready()
        if not free:
            self._counters[ID["tun.ring_full_waits"]] += 1
            self._ring_full = True
            return NOTHING
        member = self._choose()
        filled = 0
        more = MORE
        try:
            while more and filled < free and filled < BURST_SLOTS:
                more = self._fill(filled, member)
                filled += 1
        except BlockingIOError:  # not even one packet for the slot in hand
            more = NOTHING
        except OSError as error:
            self._trouble(error)
        if filled:
            self._port.advance(filled)
            self._counters[_BLOCKS_FILLED] += filled
        if not more:
            self._readable = False
        return NOTHING if not filled else MORE if more else DONE

    def wait(self, seconds: float) -> None:
        if self._ring_full:
            self._ring_full = not self._bell.wait(self._port.ready, seconds)
        elif self._pause_until:
            self._bell.wait(_never, seconds)
            if time.monotonic_ns() >= self._pause_until:
                self._pause_until = 0
        else:
            self._readable = bool(self._poll(seconds * 1000))
            if self._readable:
                now = time.monotonic_ns()
                if now - self._woken > QUIET_NS:
                    self._port.herald()
                self._woken = now

    def drained(self) -> bool:
        return True

    def _fill_block(self, ahead: int, member: int) -> int:
        """Fill a free slot with what is ready: MORE if there is more, else NOTHING.

        BlockingIOError if there was nothing for this slot.
        """
        fd, port, poll = self._fd, self._port, self._poll
        slot = port.slot(ahead)
        end = layout.SLOT_BODY_AT
        lengths = []
        buffers = self._first[port.index(ahead)]
        more = MORE
        while True:
            try:
                length = readv(fd, buffers)
            except OSError:  # nothing more, or trouble that the next read will meet as well
                if not lengths:
                    raise
                more = NOTHING
                break
            lengths.append(length)
            end += length
            count = len(lengths)
            if end > _FULL or count == wire.BLOCK_PACKETS_MAX:
                break
            if length > SUPER_PACKET_BYTES:
                more = NOTHING  # as far as we know: wait() looks
                break
            if count < POLLED_PACKETS and not poll(0):
                more = NOTHING
                break
            buffers = (slot[end : end + block.PACKET_BYTES_MAX],)
        block.seal(slot, lengths, end, member)
        counters = self._counters
        counters[_PACKETS_READ] += count
        counters[_BYTES_READ] += end - layout.SLOT_BODY_AT - count * VNET_HEADER_BYTES
        return more

    def _fill_compat(self, ahead: int, member: int) -> int:
        """Like _fill_block, but each packet becomes a frame of the original: header, then the bare packet."""
        slot = self._port.slot(ahead)
        end = layout.SLOT_BODY_AT
        packets = size = 0
        more = MORE
        while end <= _FULL:
            body = end + wire.FRAME.size
            try:
                length = readv(self._fd, (self._scratch, slot[body : body + block.PACKET_BYTES_MAX]))
            except OSError:
                if not packets:
                    raise
                more = NOTHING
                break
            length -= VNET_HEADER_BYTES
            if 1 + length > wire.COMPAT_LENGTH_LIMIT:
                self._counters[ID["tun.dropped_packet_too_long"]] += 1
                continue
            wire.FRAME.pack_into(slot, end, 1 + length, wire.DATA)
            end = body + length
            packets += 1
            size += length
        SLOT.pack_into(slot, 0, layout.SLOT_BODY_AT, end - layout.SLOT_BODY_AT, member, packets)
        self._counters[_PACKETS_READ] += packets
        self._counters[_BYTES_READ] += size
        return more

    def _choose(self) -> int:
        """The tcp worker for this lane's blocks: the lane's own, or another while only others have connections."""
        carriers = self._carriers
        lane = self._lane
        if not carriers[lane][ESTABLISHED]:
            lane = next((i for i, carrier in enumerate(carriers) if carrier[ESTABLISHED]), lane)
        offloads = carriers[lane][OFFLOADS]
        if offloads != self._granted and carriers[lane][ESTABLISHED]:
            self._grant(offloads)
        return lane

    def _grant(self, accepted: int) -> None:
        """Let the kernel hand out only what the far end's device takes back."""
        if tun.set_offloads(self._fd, self._offloads & accepted):
            LOG.info("offloads in force: %#x of %#x", self._offloads & accepted, self._offloads)
            self._granted = accepted

    def _trouble(self, error: OSError) -> None:
        """Link down (EIO) or device gone (EBADFD): the supervisor sees to it; packets are not lost meanwhile."""
        if error.errno != errno.EIO and error.errno not in tun.GONE:
            raise error
        if error.errno in tun.GONE:
            self._granted = -1  # the supervisor makes the device anew, with all offloads
        self._counters[ID["tun.read_errors"]] += 1
        self._readable = False
        self._pause_until = time.monotonic_ns() + TROUBLE_PAUSE_NS


class Inbound:
    """Every inbound ring to this lane's TUN queue."""

    name = "inbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        self._ports = attachment.ports(self.name, "inbound") + attachment.ports(self.name, "decoded")
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


def _never() -> bool:
    return False


_FULL = layout.SLOT_BODY_AT + block.FILL_LIMIT
_frame_at = wire.FRAME.unpack_from
_unpack_slot = SLOT.unpack_from
_GSO_TYPE_AT = 1  # struct virtio_net_hdr
_BLOCKS_FILLED = ID["tun.blocks_filled"]
_PACKETS_READ = ID["tun.packets_read"]
_BYTES_READ = ID["tun.bytes_read"]
_PACKETS_WRITTEN = ID["tun.packets_written"]
_BYTES_WRITTEN = ID["tun.bytes_written"]
