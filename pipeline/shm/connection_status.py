"""The status of one connection, as a tcp worker publishes it in a status row of the peer table.

ConnectionStatus    one row
read_columns        of all rows, the numbers that an observer adds up: a hub may have thousands of connections
rows_by_peer        which rows are a peer's
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from pipeline.shm import layout

_ROW = struct.Struct("<BBHIQQQQIBxHIIB7x")
"""State, length of the address, the fields from `lane` to `uplink_row`. The address follows, and the congestion
control in what is left."""
_TEXT_BYTES = layout.STATUS_ROW_BYTES - _ROW.size
_STATES = ("", "handshake", "established", "standby")  # in the row: an index of these
_ESTABLISHED = _STATES.index("established")

_ROW_WORDS = layout.STATUS_ROW_BYTES // 4
_STATE_WORD, _SERIAL_WORD, _RTT_WORD, _CLASS_WORD, _RESENT_WORD, _SENT_WORD = 0, 1, 10, 11, 12, 13
"""Words of 32 bits of a row. The state is the lowest byte of its word; the class too, with the peer's index above."""


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
    resent_segments: int = 0  # sent again by the kernel, and not arrived before (TcpInfo.lost_segments)
    sent_segments: int = 0  # those with data, those sent again included
    uplink_row: int = 0  # number of its uplink, and 1; 0: it has none
    congestion: str = ""  # the socket's congestion control; "" while it is not established

    def pack(self) -> bytes:
        address = self.address.encode()[:_TEXT_BYTES]
        row = _ROW.pack(_STATES.index(self.state), len(address), *self[2:-1])
        return row + address + self.congestion.encode()[: _TEXT_BYTES - len(address)]

    @classmethod
    def unpack(cls, data: bytes) -> ConnectionStatus | None:
        """The status in a row; None if the row is empty or unreadable."""
        state, length, *numbers = _ROW.unpack_from(data)
        if not 0 < state < len(_STATES):
            return None
        text = data[_ROW.size : _ROW.size + _TEXT_BYTES]
        congestion = text[length:].partition(b"\0")[0].decode(errors="replace")
        found = cls(_STATES[state], text[:length].decode(errors="replace"), *numbers)
        return found._replace(congestion=congestion)


class ConnectionColumns(NamedTuple):
    """Numbers of the established connections of one tcp worker, in equal order."""

    serials: array[int]
    rtts_us: array[int]
    traffic_classes: array[int]
    resent_segments: array[int]
    sent_segments: array[int]


def established_rows(rows: memoryview) -> list[int]:
    """The numbers of the status rows, among all of a worker, that hold an established connection."""
    states = rows.cast("I")[_STATE_WORD::_ROW_WORDS]
    return [number for number, word in enumerate(states) if word & 0xFF == _ESTABLISHED]


def read_columns(rows: memoryview) -> ConnectionColumns:
    """Out of all status rows of a worker. A row that is being written may be half new."""
    words, there = rows.cast("I"), established_rows(rows)

    def column(word: int, mask: int = 0xFFFFFFFF) -> array[int]:
        return array("I", [words[number * _ROW_WORDS + word] & mask for number in there])

    return ConnectionColumns(
        column(_SERIAL_WORD), column(_RTT_WORD), column(_CLASS_WORD, 0xFF), column(_RESENT_WORD), column(_SENT_WORD)
    )


def rows_by_peer(rows: memoryview) -> dict[int, list[int]]:
    """The numbers of the status rows of each peer's established connections, by its index."""
    words = rows.cast("I")
    found: dict[int, list[int]] = {}
    for number in established_rows(rows):
        found.setdefault(words[number * _ROW_WORDS + _CLASS_WORD] >> 16, []).append(number)
    return found
