"""The status of one connection, as a tcp worker publishes it in a status row of the peer table."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.shm import layout

_ROW = struct.Struct(
    "<BBHIQQQQIBxHII8x"
)  # state, length of the address, the fields from `lane` on; the address follows
_STATES = ("", "handshake", "established")  # in the row: an index of these


class ConnectionStatus(NamedTuple):
    """Times are CLOCK_MONOTONIC."""

    state: str
    address: str  # of the other end
    lane: int  # whose tun worker its packets go to
    serial: int  # of the worker's connections
    sent_bytes: int
    received_bytes: int
    since_ns: int  # when its state began
    last_received_ns: int
    rtt_us: int  # round trip
    traffic_class: int
    peer: int  # index
    resent_segments: int = 0  # by the kernel, since the connection was made
    sent_segments: int = 0  # those with data, those sent again included

    def pack(self) -> bytes:
        address = self.address.encode()[: layout.STATUS_ROW_BYTES - _ROW.size]
        return _ROW.pack(_STATES.index(self.state), len(address), *self[2:]) + address

    @classmethod
    def unpack(cls, data: bytes) -> ConnectionStatus | None:
        """The status in a row; None if the row is empty or unreadable."""
        state, length, *numbers = _ROW.unpack_from(data)
        if not 0 < state < len(_STATES):
            return None
        return cls(_STATES[state], data[_ROW.size : _ROW.size + length].decode(errors="replace"), *numbers)
