"""Segments into the UDP socket of a lane: many in one call, and what the kernel says about it.

The kernel cuts what it gets into segments of one size (UDP_SEGMENT). Not every machine can: without checksum offload at
the driver it says EIO, and some say EINVAL. This worker gives segments one by one then.

    segments that were taken    the first so many of the burst
    FULL                        none: the socket's buffer, or the interface's queue, has no room now
    TOO_BIG                     none: the interface or a route carries no segment of this size
    REFUSED                     none: the kernel says that nothing gets there

Nothing is raised for what the network does. Owned by the outbound duty.
"""

from __future__ import annotations

import errno
import socket
import struct

from pipeline.counters import ID
from pipeline.log import LOG
from workers.dgram.path import Path, Pieces

FULL, TOO_BIG, REFUSED = -1, -2, -3

UDP_SEGMENT = 103  # linux/udp.h
DATAGRAM_MOST = 65507  # bytes of one call: what an IPv4 packet has room for
SEGMENTS_MOST = 64  # of one call: UDP_MAX_SEGMENTS of older kernels, and what UDP_GRO joins

_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
_NOT_CUT = frozenset((errno.EIO, errno.EINVAL))
_SIZE = struct.Struct("=H")
_SIZES_KEPT = 256

_FULL_WAITS = ID["dgram.socket_full_waits"]
_SENDS_REFUSED = ID["dgram.sends_refused"]
_SENDS_SINGLE = ID["dgram.segments_single_sent"]


class SegmentSocket:
    """`cuts`: the kernel cuts bursts into segments."""

    def __init__(self, sock: socket.socket, counters: memoryview) -> None:
        self._socket = sock
        self._counters = counters
        self._sizes: dict[int, tuple[int, int, bytes]] = {}  # control messages
        self.cuts = True

    def most(self, segment_bytes: int) -> int:
        """Segments of this size that go into one call."""
        return min(SEGMENTS_MOST, DATAGRAM_MOST // segment_bytes) or 1

    def send(self, pieces: Pieces, segment_bytes: int, count: int, path: Path) -> int:
        """Send so many segments of one size, whose bytes are the pieces. How many were taken, or why none was."""
        if count > 1:
            if not self.cuts:
                return self._send_each(pieces, segment_bytes, count, path)
            size = self._sizes.get(segment_bytes) or self._add_size(segment_bytes)
            ancillary = [*path.ancillary, size]
        else:
            ancillary = path.ancillary
        try:
            self._socket.sendmsg(pieces, ancillary, 0, path.address)
        except OSError as error:
            if count > 1 and error.errno in _NOT_CUT:
                return self._find_out(pieces, segment_bytes, count, path, error)
            return explained(error, self._counters)
        return count

    def _find_out(self, pieces: Pieces, segment_bytes: int, count: int, path: Path, error: OSError) -> int:
        """Whether the kernel takes one by one what it did not cut: then it is given all in this way."""
        sent = self._send_each(pieces, segment_bytes, count, path)
        if sent > 0:
            self.cuts = False
            LOG.warning("this machine cuts no datagrams (%s): they are given to it one by one", error.strerror)
        return sent

    def _send_each(self, pieces: Pieces, segment_bytes: int, count: int, path: Path) -> int:
        data = memoryview(b"".join(pieces))
        for number in range(count):
            at = number * segment_bytes
            try:
                self._socket.sendmsg([data[at : at + segment_bytes]], path.ancillary, 0, path.address)
            except OSError as error:
                return number or explained(error, self._counters)
            self._counters[_SENDS_SINGLE] += 1
        return count

    def _add_size(self, segment_bytes: int) -> tuple[int, int, bytes]:
        if len(self._sizes) >= _SIZES_KEPT:
            self._sizes.clear()
        made = self._sizes[segment_bytes] = (socket.IPPROTO_UDP, UDP_SEGMENT, _SIZE.pack(segment_bytes))
        return made


def explained(error: OSError, counters: memoryview) -> int:
    """Why nothing was taken."""
    if error.errno in _FULL:
        counters[_FULL_WAITS] += 1
        return FULL
    counters[_SENDS_REFUSED] += 1
    return TOO_BIG if error.errno == errno.EMSGSIZE else REFUSED
