"""What a tcp worker tells about one connection, for `status`."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.shm import layout

_ROW = struct.Struct("<BBHIQQQQIBxH16x")
_STATES = ("", "connecting", "greeting", "established")


class ConnectionStatus(NamedTuple):
    """Times are CLOCK_MONOTONIC."""

    state: str
    address: str
    lane: int
    serial: int
    sent_bytes: int
    received_bytes: int
    since_ns: int
    last_received_ns: int
    rtt_us: int
    traffic_class: int
    peer: int

    def pack(self) -> bytes:
        address = self.address.encode()[: layout.ROW_BYTES - _ROW.size]
        return _ROW.pack(_STATES.index(self.state), len(address), *self[2:]) + address

    @classmethod
    def unpack(cls, data: bytes) -> ConnectionStatus | None:
        """The row, or None for an empty or unreadable one."""
        state, length, *numbers = _ROW.unpack_from(data)
        if not 0 < state < len(_STATES):
            return None
        return cls(_STATES[state], data[_ROW.size : _ROW.size + length].decode(errors="replace"), *numbers)
