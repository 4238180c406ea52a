"""The packet socket of one version of IP: what comes is read into two buffers, one for headers and one for a payload.

The headers of the packets of a lane are equally long as a rule, so a payload stands at the beginning of its buffer
without a copy.
"""

from __future__ import annotations

import socket
import struct
import time

from pipeline.faketcp.packet import Arrived, read

SO_TIMESTAMPNS = 35  # asm-generic/socket.h
WAITED_MOST_NS = 1_000_000_000  # more than that is a step of the clock

_TIME = struct.Struct("@ll")


class Tap:
    """A packet socket. `head`: where it puts headers; `source`, `waited_ns`: of the latest packet."""

    __slots__ = ("_ancillary_bytes", "head", "socket", "source", "waited_ns")

    def __init__(self, sock: socket.socket, head_bytes: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket = sock
        self.head = memoryview(bytearray(head_bytes))
        self.source: tuple[str, int, int, int, bytes] = ("", 0, 0, 0, b"")
        self.waited_ns = 0
        self._ancillary_bytes = socket.CMSG_SPACE(_TIME.size)

    def receive(self, into: memoryview) -> int:
        """Bytes in head and `into`; 0: more than they hold, which is only with a greater gro_max_size (ip-link(8)).

        OSError: nothing is there, or an interface went down."""
        size, ancillary, flags, self.source = self.socket.recvmsg_into([self.head, into], self._ancillary_bytes)
        for level, kind, data in ancillary:
            if kind == SO_TIMESTAMPNS and level == socket.SOL_SOCKET:
                seconds, rest = _TIME.unpack(data)
                waited = time.time_ns() - seconds * 1_000_000_000 - rest
                self.waited_ns = waited if 0 < waited < WAITED_MOST_NS else 0
        return 0 if flags & socket.MSG_TRUNC else size

    def read(self, into: memoryview, size: int, link_bytes: int) -> Arrived | None:
        """The packet of so many bytes, whose payload is at the beginning of `into` then."""
        expected = len(self.head)
        found = read(self.head[:size], into[: max(0, size - expected)], link_bytes)
        if found is not None and found.begin == min(expected, size):
            return found
        whole = memoryview(bytes(self.head[:size]) + bytes(into[: max(0, size - expected)]))
        found = read(whole, whole[:0], link_bytes)
        if found is not None and found.end > found.begin:  # a flow without timestamps, or another kind of device
            into[: found.end - found.begin] = whole[found.begin : found.end]
            self.head = memoryview(bytearray(found.begin))
        return found
