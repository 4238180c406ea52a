"""The outbound duty of a tun worker: packets from TUN into the three outbound rings of its lane.

    light      flows that send little (`tun_light`)
    plain      all else, while the connections call for no parity
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

from pipeline import block, layout, tun, wire
from pipeline.block import SLOT, VNET_HEADER_BYTES
from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.port import QUIET_NS
from pipeline.ways import Ways
from pipeline.worker import DONE, MORE, NOTHING, Attachment
from workers.tun_light import Light

BURST_SLOTS = 4
"""Slots filled before they are handed on together."""

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

PARKED_PACKETS = 16
"""Packets read from TUN at a time while the ring is full."""

PARKED_BYTES = 4 << 20
"""What a TCP connection inside has on its way when it has outgrown a ring, before it has noticed."""

TROUBLE_PAUSE_NS = 50_000_000
"""How long a reader leaves a queue alone whose link is down or whose device is gone."""


class Outbound:
    """TUN to the outbound rings of this lane: light flows by the light ring, all else by the plain or the coded one."""

    name = "outbound"

    def __init__(self, attachment: Attachment, fd: int) -> None:
        (self._plain,) = attachment.ports(self.name, "outbound")
        self._coded = next(iter(attachment.ports(self.name, "coded")), None)
        self._bulk = self._plain
        self._compat = attachment.settings["compat"]
        self._light = None if self._compat else Light(attachment)
        self._bell = attachment.doorbells[self.name]
        self._stop = attachment.stop
        self._fd = fd
        self._counters = attachment.page.counters
        self._ways = Ways(attachment)
        self._offloads = attachment.settings["offloads"]
        self._granted = -1  # whatever a predecessor left in force
        queue = select.poll()
        queue.register(fd, select.POLLIN)
        self._poll = queue.poll
        self._first = {port: [[slot[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + block.PACKET_BYTES_MAX]]
                              for slot in port.slots]
                       for port in (self._plain, self._coded) if port is not None}
        self._parked: deque[bytes] = deque()
        self._parked_bytes = 0
        self._scratch = memoryview(bytearray(layout.SLOT_BODY_AT + block.PACKET_BYTES_MAX))
        self._readable = False   # the last look at the queue found something
        self._full = False       # the last look at the ring found no free slot
        self._full_since = 0
        self._slow_until = 0
        self._light_full_since = 0
        self._woken = 0
        self._pause_until = 0

    def work(self) -> int:
        """Fill free slots while packets are ready, a few at a time, and hand them on together."""
        if not self._parked and (self._stop.requested or not self._readable):
            return NOTHING
        member = self._choose()
        free = self._bulk.ready()
        now = time.monotonic_ns()
        self._full = not free
        if self._full:
            return self._wait_or_read_on(now)
        if self._light is not None and self._must_wait_for_light(now):
            self._full = True
            return NOTHING
        self._full_since = 0
        filled = 0
        more = MORE
        try:
            while more and filled < free and filled < BURST_SLOTS:
                if self._compat:
                    more = self._fill_compat(filled, member)
                    filled += 1
                else:
                    count, more = self._fill_block(filled, member, now)
                    filled += count
        except BlockingIOError:  # not even one packet for the slot in hand
            more = NOTHING
        except OSError as error:
            self._trouble(error)
        if filled:
            self._bulk.advance(filled)
            self._counters[_BLOCKS_FILLED] += filled
        if not more:
            self._readable = False
        return MORE if more else DONE

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
                    self._bulk.herald()
                self._woken = now

    def drained(self) -> bool:
        return not self._parked

    def _fill_block(self, ahead: int, member: int, now: int) -> tuple[int, int]:
        """Fill a free slot with what is ready. Slots filled, 1 or 0, and MORE if there is more, else NOTHING.

        BlockingIOError if there was nothing for this slot.
        """
        fd, port, poll, light = self._fd, self._bulk, self._poll, self._light
        slot = port.slot(ahead)
        end = layout.SLOT_BODY_AT
        lengths = []
        more = MORE
        count = size = 0
        while self._parked and end <= _FULL and len(lengths) < wire.BLOCK_PACKETS_MAX:
            packet = self._parked.popleft()
            self._parked_bytes -= len(packet)
            lengths.append(len(packet))
            slot[end : end + len(packet)] = packet
            end += len(packet)
        if lengths:
            block.seal(slot, lengths, end, member)
            return 1, MORE if self._readable or self._parked else NOTHING
        buffers = self._first[port][port.index(ahead)]
        while True:
            try:
                length = readv(fd, buffers)
            except OSError:  # nothing more, or trouble that the next read will meet as well
                if not count:
                    raise
                more = NOTHING
                break
            count += 1
            size += length
            if not light.take(slot, end, length, now):
                lengths.append(length)
                end += length
                if end > _FULL or len(lengths) == wire.BLOCK_PACKETS_MAX:
                    break
                if length > SUPER_PACKET_BYTES:
                    more = NOTHING  # as far as we know: wait() looks
                    break
            if count < POLLED_PACKETS and not poll(0):
                more = NOTHING
                break
            buffers = (slot[end : end + block.PACKET_BYTES_MAX],)
        light.leave()
        if lengths:
            block.seal(slot, lengths, end, member)
        counters = self._counters
        counters[_PACKETS_READ] += count
        counters[_BYTES_READ] += size - count * VNET_HEADER_BYTES
        return (1 if lengths else 0), more

    def _fill_compat(self, ahead: int, member: int) -> int:
        """Like _fill_block, but each packet becomes a frame of the original: header, then the bare packet."""
        slot = self._plain.slot(ahead)
        end = layout.SLOT_BODY_AT
        packets = size = 0
        more = MORE
        while end <= _FULL:
            body = end + wire.FRAME.size
            try:
                length = readv(self._fd, (self._scratch[:VNET_HEADER_BYTES],
                                          slot[body : body + block.PACKET_BYTES_MAX]))
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

    def _has_room(self) -> bool:
        return bool(self._bulk.ready()) and (self._light is None or self._light.has_room())

    def _must_wait_for_light(self, now: int) -> bool:
        """Whether the light ring is full, and not for long: a burst that spills to bulk would overtake itself."""
        if self._light.has_room():
            self._light_full_since = 0
            return False
        if not self._light_full_since:
            self._light_full_since = now
            self._counters[ID["tun.ring_full_waits"]] += 1
        return now - self._light_full_since < SPILL_NS

    def _wait_or_read_on(self, now: int) -> int:
        """No slot is free. On a fast path one soon is; on a slow one light flows must not wait for it, nor behind
        everything that TUN would queue meanwhile."""
        if not self._full_since:
            self._full_since = now
            self._counters[ID["tun.ring_full_waits"]] += 1
        if self._compat or now - self._full_since < PATIENCE_NS and now > self._slow_until:
            return NOTHING
        self._slow_until = now + SLOW_NS
        self._full = False  # wait for packets, not for a slot
        return self._read_on(now)

    def _read_on(self, now: int) -> int:
        """Read while the ring is full: light packets go their way, the others are parked, or dropped."""
        if self._stop.requested:
            return NOTHING
        scratch, light, counters = self._scratch, self._light, self._counters
        buffers = (scratch[layout.SLOT_BODY_AT :],)
        more = MORE
        try:
            for _ in range(PARKED_PACKETS):
                length = readv(self._fd, buffers)
                counters[_PACKETS_READ] += 1
                counters[_BYTES_READ] += length - VNET_HEADER_BYTES
                if light.take(scratch, layout.SLOT_BODY_AT, length, now):
                    continue
                if self._parked_bytes + length > PARKED_BYTES:
                    counters[ID["tun.dropped_ring_full"]] += 1
                else:
                    self._parked.append(bytes(scratch[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + length]))
                    self._parked_bytes += length
        except BlockingIOError:
            self._readable = False
            more = DONE
        except OSError as error:
            self._trouble(error)
            more = DONE
        light.leave()
        return more

    def _choose(self) -> int:
        """The ring for bulk, and the tcp worker that carries what is not coded."""
        ways = self._ways
        member = ways.own()
        offloads = ways.offloads(member)
        if offloads != self._granted and offloads is not None:
            self._grant(offloads)
        if self._coded is not None:
            parity = ways.parity()
            self._bulk = self._coded if parity else self._plain
            self._light.spread(ways.own_light(member), ways.for_light(), parity)
        elif self._light is not None:
            self._light.spread(ways.own_light(member), (), 0)
        return member

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


def _never() -> bool:
    return False


_FULL = layout.SLOT_BODY_AT + block.FILL_LIMIT
_BLOCKS_FILLED = ID["tun.blocks_filled"]
_PACKETS_READ = ID["tun.packets_read"]
_BYTES_READ = ID["tun.bytes_read"]
