"""The memory that a dgram worker leaves to its successor: which control datagrams were opened, and where peers are.

    for each peer index: the windows of control datagrams, then the place for addresses

The place begins with the peer handle that both belong to. Its other bytes are the worker's. One duty writes here. A
session begins with numbers that may be lower than those of the session before, so it finds zeros.
"""

from __future__ import annotations

import mmap
import struct

from pipeline.sealing.datagram_seal import ControlWindows
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.memory_order import fence

_HANDLE = struct.Struct("<Q")


class DatagramMemory:
    """Maps the memory of a lane. `fd`: its descriptor, which may be closed afterwards."""

    ADDRESS_BYTES = 128
    PEER_BYTES = ControlWindows.BYTES + ADDRESS_BYTES

    def __init__(self, fd: int, capacity: int) -> None:
        self._map = mmap.mmap(fd, self.bytes_of(capacity))
        self._view = memoryview(self._map)

    @classmethod
    def bytes_of(cls, capacity: int) -> int:
        """`capacity`: peer indices."""
        return capacity * cls.PEER_BYTES

    def begin(self, peer_handle: int) -> bool:
        """Whether this session has been here before. Else the places of its index are zeros from now on."""
        at = (peer_handle & PEER_INDEX_MASK) * self.PEER_BYTES
        handle_at = at + ControlWindows.BYTES
        if _HANDLE.unpack_from(self._view, handle_at)[0] == peer_handle:
            return True
        _HANDLE.pack_into(self._view, handle_at, 0)  # a kill from here on leaves memory that is nobody's
        fence()
        self._view[at:handle_at] = bytes(ControlWindows.BYTES)
        self._view[handle_at : at + self.PEER_BYTES] = bytes(self.ADDRESS_BYTES)
        fence()
        _HANDLE.pack_into(self._view, handle_at, peer_handle)
        return False

    def windows_of(self, peer: int) -> ControlWindows:
        at = peer * self.PEER_BYTES
        return ControlWindows(self._view[at : at + ControlWindows.BYTES])

    def addresses_of(self, peer: int) -> memoryview:
        """The bytes behind the peer handle."""
        at = peer * self.PEER_BYTES
        return self._view[at + ControlWindows.BYTES + _HANDLE.size : at + self.PEER_BYTES]
