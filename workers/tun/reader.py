"""The outbound duty of a tun worker: packets from TUN into the three outbound rings of its lane.

    light      flows that send little (`tun_light`)
    plain      all else (`tun_blocks`), while the peer's connections call for no parity
    coded      all else, while they do: the encoder takes it from there

Nothing waits to fill: a block leaves with whatever was ready. A full ring stalls the reader, and the kernel's own queue
tells the sender. On a path that is slow it reads on instead, so that light flows go on: bulk packets are parked until
there is room, and dropped once PARKED_BYTES wait, as any full queue does.
"""

from __future__ import annotations

import errno
import select
import time
from collections import deque
from os import readv

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime import tun
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.port import QUIET_NS
from pipeline.runtime.worker import DONE, MORE, NOTHING, Attachment
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.wire import framing
from workers.tun.bulk_packer import BulkPacker
from workers.tun.compat_packer import CompatPacker

POLLED_PACKETS = 4
"""So many packets into a block, a look whether there is another is cheaper than a read that fails (the exception
costs more than the system call); behind that it is a burst, and only its last read fails."""

SUPER_PACKET_BYTES = 16384
"""A packet longer than this is worth a block of its own."""

PATIENCE_NS = 5_000_000
"""A ring that has been full for so long is that of a slow path, or of a worker that is being replaced."""

SLOW_NS = 200_000_000
"""So long after that the next full ring is not waited for at all."""

SPILL_NS = 150_000_000
"""So long the light ring may be full before its flows spill to bulk: a tcp worker that was killed is back by then."""

READ_MOST = framing.BLOCK_PACKETS_MAX
"""Packets read from TUN before the blocks in hand leave."""

PARKED_PACKETS = 16
"""The same while the ring is full."""

PARKED_BYTES = 4 << 20
"""What a TCP connection inside has on its way when it has outgrown a ring, before it has noticed."""

TROUBLE_PAUSE_NS = 50_000_000
"""How long a reader leaves a queue alone whose link is down or whose device is gone."""


class TunReader:
    """TUN to the outbound rings of this lane: light flows by the light ring, all else by the plain or the coded one."""

    name = "outbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        self._ways = LinkView(attachment)
        self._blocks = (CompatPacker if attachment.settings["compat"] else BulkPacker)(attachment, self._ways)
        self._bell = attachment.doorbells[self.name]
        self._stop = attachment.stop
        self._fd = fd
        self._counters = attachment.page.counters
        self._offloads = attachment.settings["offloads"]
        self._granted = -1  # whatever a predecessor left in force
        queue = select.poll()
        queue.register(fd, select.POLLIN)
        self._poll = queue.poll
        self._parked: deque[bytes] = deque()
        self._parked_bytes = 0
        self._readable = False  # the last look at the queue found something
        self._full = False  # the last look at the ring found no free slot
        self._full_since = 0
        self._slow_until = 0
        self._light_full_since = 0
        self._woken = 0
        self._pause_until = 0

    def work(self) -> int:
        """Fill free slots while packets are ready, a few at a time, and hand them on together."""
        if not self._parked and (self._stop.requested or not self._readable):
            return NOTHING
        room = self._blocks.begin()
        only = self._blocks.routes.only
        if only >= 0:
            self._grant(self._ways.offloads(only & PEER_INDEX_MASK))
        now = time.monotonic_ns()
        self._full = not room
        if self._full and not self._read_past(now):
            return NOTHING
        if self._must_wait_for_light(now):
            self._full = True
            return NOTHING
        if room:
            self._full_since = 0
        more = NOTHING
        try:
            if self._unpark():
                more = self._fill(now, room)
        except BlockingIOError:
            self._readable = False
        except OSError as error:
            self._trouble(error)
        self._counters[_BLOCKS_FILLED] += self._blocks.leave()
        return MORE if more or (room and self._parked) else DONE

    def wait(self, seconds: float) -> None:
        if self._full:
            self._bell.wait(self._has_room, min(seconds, PATIENCE_NS / 1e9))
        elif self._pause_until:
            self._bell.wait(_never, seconds)
            if time.monotonic_ns() >= self._pause_until:
                self._pause_until = 0
        else:
            self._readable = bool(self._poll(seconds * 1000))
            if self._readable:
                now = time.monotonic_ns()
                if now - self._woken > QUIET_NS:
                    self._blocks.wake_ahead()
                self._woken = now

    def drained(self) -> bool:
        return not self._parked

    def _fill(self, now: int, room: bool) -> int:
        """Read packets until nothing is left, or no slot. MORE if there may be more, else NOTHING.

        BlockingIOError if there was nothing at all.
        """
        fd, blocks, poll = self._fd, self._blocks, self._poll
        more = MORE
        count = size = 0
        while count < (READ_MOST if room else PARKED_PACKETS):
            if not room:
                blocks.aim_aside()
            elif not blocks.aim():
                break
            try:
                length = readv(fd, blocks.buffers)
            except OSError:  # nothing more, or trouble that the next read will meet as well
                if not count:
                    raise
                more = NOTHING
                break
            count += 1
            size += length
            if not blocks.take(length, now):
                self._park(bytes(blocks.place[blocks.at : blocks.at + length]))
            elif length > SUPER_PACKET_BYTES and room:
                more = NOTHING  # as far as we know: wait() looks
                break
            if count < POLLED_PACKETS and not poll(0):
                more = NOTHING
                break
        if not more:
            self._readable = False
        counters = self._counters
        counters[_PACKETS_READ] += count
        counters[_BYTES_READ] += size - count * VNET_HEADER_BYTES
        return more

    # -- what does not find room

    def _park(self, packet: bytes) -> None:
        if self._parked_bytes + len(packet) > PARKED_BYTES:
            self._counters[ID["tun.dropped_ring_full"]] += 1
        else:
            self._parked.append(packet)
            self._parked_bytes += len(packet)

    def _unpark(self) -> bool:
        """Packets that were parked go before others. False if there is nothing to be read behind them."""
        parked = self._parked
        while parked and self._blocks.take_back(parked[0]):
            self._parked_bytes -= len(parked.popleft())
        return self._readable and not self._stop.requested

    def _has_room(self) -> bool:
        return self._blocks.has_room() and self._blocks.light_has_room()

    def _must_wait_for_light(self, now: int) -> bool:
        """Whether the light ring is full, and not for long: a burst that spills to bulk would overtake itself."""
        if self._blocks.light_has_room():
            self._light_full_since = 0
            return False
        if not self._light_full_since:
            self._light_full_since = now
            self._counters[ID["tun.ring_full_waits"]] += 1
        return now - self._light_full_since < SPILL_NS

    def _read_past(self, now: int) -> bool:
        """No slot is free. On a fast path one soon is; on a slow one light flows must not wait for it, nor behind
        everything that TUN would queue meanwhile: the others are parked, or dropped."""
        if not self._full_since:
            self._full_since = now
            self._counters[ID["tun.ring_full_waits"]] += 1
        if (now - self._full_since < PATIENCE_NS and now > self._slow_until) or self._stop.requested:
            return False
        self._slow_until = now + SLOW_NS
        self._full = False  # wait for packets, not for a slot
        return True

    # -- the device

    def _grant(self, accepted: int | None) -> None:
        """Let the kernel hand out only what the far end's device takes back."""
        if accepted is None or accepted == self._granted:
            return
        if tun.set_offloads(self._fd, self._offloads & accepted):
            LOG.info("offloads in force: %#x of %#x", self._offloads & accepted, self._offloads)
            self._granted = accepted

    def _trouble(self, error: OSError) -> None:
        """Link down (EIO) or device gone (EBADFD): the supervisor sees to it; packets are not lost meanwhile."""
        if error.errno != errno.EIO and error.errno not in tun.DEVICE_GONE_ERRNOS:
            raise error
        if error.errno in tun.DEVICE_GONE_ERRNOS:
            self._granted = -1  # the supervisor makes the device anew, with all offloads
        self._counters[ID["tun.read_errors"]] += 1
        self._readable = False
        self._pause_until = time.monotonic_ns() + TROUBLE_PAUSE_NS


def _never() -> bool:
    return False


_BLOCKS_FILLED = ID["tun.blocks_filled"]
_PACKETS_READ = ID["tun.packets_read"]
_BYTES_READ = ID["tun.bytes_read"]
