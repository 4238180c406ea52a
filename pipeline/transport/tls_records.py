"""Where the ciphertext of many channels comes in: one buffer, held by one channel at a time.

    turn_to   a channel takes it; the holder before it takes its own bytes away, into its stash
    fill      one receive
    scratch[at:end] has come in and is not decrypted; it begins at a record

Of the inbound duty alone. The holder keeps it for as long as nobody else asks, so under load no byte is moved but those
of a record that is not whole yet.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Protocol

RECORD = 16384  # RFC 8446, 5.1: the most that a record holds
HEADER = 5  # of a record: type, version, length
BODY_MAX = RECORD + 2048  # RFC 5246, 6.2.3; 1.3 allows less
SCRATCH_BYTES = 163840  # the largest block, headers and tags of its records, and an unfinished record before it

length_at = struct.Struct(">H").unpack_from
"""Of a record: at its fourth byte."""


class Holder(Protocol):
    """Who has bytes in the inlet, and keeps them while another does."""

    stash: bytes


class RecordBuffer:
    """The buffer, and whose bytes are in it."""

    def __init__(self) -> None:
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.at = self.end = 0
        self._holder: Holder | None = None

    def turn_to(self, channel: Holder) -> None:
        """From now on it is this channel's."""
        if self._holder is channel:
            return
        if self._holder is not None:
            self._holder.stash = bytes(self.scratch[self.at : self.end])
        self._holder = channel
        self.put(channel.stash)
        channel.stash = b""

    def put(self, data: bytes) -> None:
        """These bytes in place of what is there."""
        self.at, self.end = 0, len(data)
        self.scratch[: self.end] = data

    def fill(self, sock: socket.socket, most: int) -> bool:
        """Receive once, behind what is there. True if as much came as was asked for, so that there may be more.

        BlockingIOError if nothing is there, OSError if the connection is broken, the end of its stream included.
        """
        scratch = self.scratch
        rest = self.end - self.at
        if self.at:
            scratch[:rest] = scratch[self.at : self.end]
            self.at = 0
        self.end = rest
        most = min(most, SCRATCH_BYTES - rest)
        received = sock.recv_into(scratch[rest : rest + most])
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended without a goodbye (close_notify)")
        self.end += received
        return received == most

    @property
    def whole(self) -> bool:
        """Whether a record is whole. ConnectionAbortedError if it will never be one."""
        if self.end - self.at < HEADER:
            return False
        (length,) = length_at(self.scratch, self.at + 3)
        if length > BODY_MAX:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS record of {length} bytes, at most {BODY_MAX}")
        return self.at + HEADER + length <= self.end
