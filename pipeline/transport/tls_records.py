"""The record buffer: ciphertext of many channels arrives in one buffer, which one channel owns at a time.

    switch_to    another channel becomes the owner; the bytes of the owner before it are saved outside
    receive      one receive from the owner's socket
    data[start:end] has arrived and is not decrypted; it begins at a record

Only the inbound duty uses it. The owner keeps the buffer until another channel asks for it. So under load no byte is
moved, but for those of a record that is not whole yet.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Protocol

RECORD_BYTES = 16384  # RFC 8446, 5.1: the most data in a record
RECORD_HEADER_BYTES = 5  # of a record: type, version, length
RECORD_BODY_MAX = RECORD_BYTES + 2048  # RFC 5246, 6.2.3; 1.3 allows less
BUFFER_BYTES = 163840  # the largest block, headers and tags of its records, and an unfinished record before it

length_at = struct.Struct(">H").unpack_from
"""The length field of a record: two bytes, from its fourth byte on."""


class BufferOwner(Protocol):
    """A channel: it keeps its records while another channel owns the buffer."""

    saved_records: bytes


class RecordBuffer:
    """The buffer and its owner."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(BUFFER_BYTES))
        self.start = self.end = 0
        self._owner: BufferOwner | None = None

    def switch_to(self, channel: BufferOwner) -> int:
        """Make a channel the owner. Bytes that had to change places for that."""
        if self._owner is channel:
            return 0
        moved = len(channel.saved_records)
        if self._owner is not None:
            self._owner.saved_records = bytes(self.data[self.start : self.end])
            moved += self.end - self.start
        self._owner = channel
        self.replace(channel.saved_records)
        channel.saved_records = b""
        return moved

    def replace(self, data: bytes) -> None:
        """Put other bytes in place of those that are there."""
        self.start, self.end = 0, len(data)
        self.data[: self.end] = data

    def receive(self, sock: socket.socket, most: int) -> bool:
        """Receive once, behind the bytes that are there. True if all of `most` came, so that there may be more.

        BlockingIOError if nothing is there, OSError if the connection is broken, the end of its stream included.
        """
        data = self.data
        kept = self.end - self.start
        if self.start:
            data[:kept] = data[self.start : self.end]
            self.start = 0
        self.end = kept
        most = min(most, BUFFER_BYTES - kept)
        received = sock.recv_into(data[kept : kept + most])
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended without close_notify")
        self.end += received
        return received == most

    @property
    def has_whole_record(self) -> bool:
        """Whether the first record is whole. ConnectionAbortedError if its length is above what TLS allows."""
        if self.end - self.start < RECORD_HEADER_BYTES:
            return False
        length: int = length_at(self.data, self.start + 3)[0]
        if length > RECORD_BODY_MAX:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS record of {length} bytes, at most {RECORD_BODY_MAX}")
        return self.start + RECORD_HEADER_BYTES + length <= self.end
