"""The outbound duty of a tun worker: packets of its TUN queue into the outbound rings of its lane.

1. wait            sleep until the queue is readable; after a silence, kick the next stage ahead of the packets
2. work            begin a burst: the packer follows the routes and says which rings are full
3. _set_offloads   let the kernel hand out only what the far end's device accepts
4. must_wait       if a ring is full, decide between waiting and reading on (`backpressure`)
5. _drain_overflow packets that found no slot before go first
6. _read_burst     for each packet: readv(2) to where the packer wants it, then commit; without a slot it is queued
7. work            flush: the packer hands on the filled slots

Most bursts have one packet. They take a short way from 2 to 7 (_read_alone), unless there is more to look at.

The packer (`packer`) decides the ring of each packet. Light flows go to the light ring. All others go to the plain one,
or to the coded one while the peer's connections call for parity. No packet waits for a slot to be filled: the slots of
a burst leave with whatever they hold. A burst ends when the queue is empty, after a super-packet, after BURST_PACKETS
packets, or when no slot is left for it (`packer.BURST_SLOTS`).
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Sequence
from os import readv

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime import tun
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.wire import framing
from workers.tun.backpressure import PATIENCE_NS, BackpressureState, OverflowQueue
from workers.tun.packer import BULK_FULL, Packer

POLLED_PACKETS = 4
"""For so many packets of a burst, a poll before the next read is cheaper than a read that fails. An exception costs
more than a system call. Behind that it is a longer burst, and only its last read fails."""

SUPER_PACKET_BYTES = 16384
"""A packet longer than this ends its burst: it is worth a block of its own."""

BURST_PACKETS = framing.BLOCK_PACKETS_MAX
"""Packets read from TUN before the slots are handed on."""

BURST_PACKETS_FULL = 16
"""Packets read from TUN in a burst that begins with a full ring."""

TROUBLE_PAUSE_NS = 50_000_000
"""The pause of a reader whose link is down, or whose device is gone."""

_OFFLOADS_UNKNOWN = -1

_PACKETS_READ = ID["tun.packets_read"]
_BYTES_READ = ID["tun.bytes_read"]
_BLOCKS_FILLED = ID["tun.blocks_filled"]
_READ_ERRORS = ID["tun.read_errors"]


class TunReader:
    """The TUN queue `fd` to the outbound rings of this lane, by the packer of the shape."""

    name = "outbound"

    def __init__(self, attachment: Attachment, fd: int, packer: Packer) -> None:
        self._packer = packer
        self._doorbell = attachment.doorbells[self.name]
        self._stop = attachment.stop
        self._fd = fd
        self._counters = attachment.page.counters
        self._offloads = attachment.settings.offloads
        self._offloads_in_force = _OFFLOADS_UNKNOWN  # a predecessor may have set any
        queue = select.poll()
        queue.register(fd, select.POLLIN)
        self._poll = queue.poll
        self._backpressure = BackpressureState(self._counters)
        self._overflow = OverflowQueue(self._counters)
        self._is_readable = False  # the last look at the queue found a packet
        self._woken_ns = 0
        self._pause_until_ns = 0

    def wait(self, seconds: float) -> None:
        if self._backpressure.waits:
            self._doorbell.wait(self._packer.has_room, min(seconds, PATIENCE_NS / 1e9))
        elif self._pause_until_ns:
            self._doorbell.wait(_never, seconds)
            if time.monotonic_ns() >= self._pause_until_ns:
                self._pause_until_ns = 0
        else:
            due = self._packer.due_ns
            if due:
                seconds = max(0.0, min(seconds, (due - time.monotonic_ns()) / 1e9))
            self._is_readable = bool(self._poll(seconds * 1000))
            if self._is_readable:
                now = time.monotonic_ns()
                if now - self._woken_ns > QUIET_NS:
                    self._packer.wake_ahead()
                self._woken_ns = now

    def work(self) -> int:
        """Read one burst of packets into free slots, and hand the slots on together."""
        if self._is_readable and not (self._overflow.packets or self._stop.requested) and self._backpressure.is_calm:
            buffers = self._packer.lone_buffers(self._offloads_in_force)
            if buffers is not None:
                return self._read_alone(buffers)
        self._counters[_BLOCKS_FILLED] += self._packer.acknowledge()
        if not self._overflow.packets and (self._stop.requested or not self._is_readable):
            return NOTHING
        packer = self._packer
        full = packer.begin_burst()
        accepted = packer.accepted_offloads()
        if accepted is not None and accepted != self._offloads_in_force:
            self._set_offloads(accepted)
        now = time.monotonic_ns()
        if self._backpressure.must_wait(now, full, self._stop.requested):
            return NOTHING
        room = not full & BULK_FULL
        more = NOTHING
        try:
            if self._drain_overflow():
                more = self._read_burst(now, room)
        except BlockingIOError:
            self._is_readable = False
        except OSError as error:
            self._on_read_error(error)
        self._counters[_BLOCKS_FILLED] += packer.flush()
        return MORE if more or (room and self._overflow.packets) else DONE

    def _read_alone(self, buffers: Sequence[memoryview]) -> int:
        """Read a packet, and hand it on if no other follows: else the burst goes on as any other."""
        now = time.monotonic_ns()
        packer, counters = self._packer, self._counters
        try:
            length = readv(self._fd, buffers)
        except BlockingIOError:
            self._is_readable = False
            return DONE
        except OSError as error:
            self._on_read_error(error)
            return DONE
        if length > SUPER_PACKET_BYTES or not self._poll(0):
            self._is_readable = False
            counters[_PACKETS_READ] += 1
            counters[_BYTES_READ] += length - VNET_HEADER_BYTES
            counters[_BLOCKS_FILLED] += packer.commit_alone(length, now)
            return DONE
        packer.begin_burst()
        more = self._read_burst(now, True, length)
        counters[_BLOCKS_FILLED] += packer.flush()
        return MORE if more or self._overflow.packets else DONE

    def drained(self) -> bool:
        return not (self._overflow.packets or self._packer.due_ns)

    def _set_offloads(self, accepted: int) -> None:
        offloads = self._offloads & accepted
        if tun.set_offloads(self._fd, offloads):
            LOG.info("offloads in force: %#x of %#x", offloads, self._offloads)
            self._offloads_in_force = accepted

    def _drain_overflow(self) -> bool:
        """Put queued packets before others. Whether packets may be read behind them."""
        if self._overflow.packets:
            self._overflow.drain(self._packer.retry)
        return self._is_readable and not self._stop.requested

    def _read_burst(self, now: int, room: bool, first: int = 0) -> int:
        """Read packets until none is left, or no slot. MORE if there may be more packets, else NOTHING.

        `first`: length of a packet that was read already, and that others follow. BlockingIOError if there was no
        packet at all.
        """
        fd, packer, poll = self._fd, self._packer, self._poll
        next_buffers = packer.next_buffers if room else packer.scratch_buffers
        most = BURST_PACKETS if room else BURST_PACKETS_FULL
        more = MORE
        count = size = 0
        if first:
            count, size = 1, first
            left_over = packer.commit(first, now)
            if left_over is not None:
                self._overflow.append(left_over)
        while count < most:
            buffers = next_buffers()
            if buffers is None:
                break
            try:
                length = readv(fd, buffers)
            except OSError:  # no more packets, or an error that the next read will meet as well
                if not count:
                    raise
                more = NOTHING
                break
            count += 1
            size += length
            left_over = packer.commit(length, now)
            if left_over is not None:
                self._overflow.append(left_over)
            elif length > SUPER_PACKET_BYTES and room:
                more = NOTHING  # as far as is known: wait() looks
                break
            if count < POLLED_PACKETS and not poll(0):
                more = NOTHING
                break
        if not more:
            self._is_readable = False
        counters = self._counters
        counters[_PACKETS_READ] += count
        counters[_BYTES_READ] += size - count * VNET_HEADER_BYTES
        return more

    def _on_read_error(self, error: OSError) -> None:
        """Pause while the link is down (EIO) or the device gone: the supervisor mends that, and no packet is lost."""
        if error.errno != errno.EIO and error.errno not in tun.DEVICE_GONE_ERRNOS:
            raise error
        if error.errno in tun.DEVICE_GONE_ERRNOS:
            self._offloads_in_force = _OFFLOADS_UNKNOWN  # the supervisor makes the device anew, with all offloads
        self._counters[_READ_ERRORS] += 1
        self._is_readable = False
        self._pause_until_ns = time.monotonic_ns() + TROUBLE_PAUSE_NS


def _never() -> bool:
    return False
