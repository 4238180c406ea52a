"""The path to a peer as its dgram worker sees it: words of its datagram record in the peer table.

That of UDP is in the record of kind "datagram_in", and that of fake TCP in one of its own, with the same words.

    publish(words, peer, status)   the worker's; None: there is no path
    read(words, peer)              an observer's

    word             bits
    DATAGRAM_STATE   0 to 7 state, 8 to 15 reason, 16 to 31 port, 32 to 47 bytes of a segment, 48 to 63 milliseconds
    DATAGRAM_SINCE   CLOCK_MONOTONIC ns
    DATAGRAM_HOST    two words, 16 bytes: IPv6, or IPv4 mapped into IPv6

A state and a reason are numbers of STATES and REASONS, to which new ones are added at the end. The milliseconds are
those that the reason SILENT names. A reader may see words of two moments; it only shows them.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from pipeline.policy.carrier import (
    MISSED,
    NOT_YET,
    OFF_BY_PEER,
    OFF_BY_SETTING,
    PASSES,
    UNHEARD,
    CarrierStatus,
    State,
    silent_for,
    silent_ms,
)
from pipeline.shm.layout import DATAGRAM_HOST, DATAGRAM_SINCE, DATAGRAM_STATE, RECORD_WORDS

STATES = (State.OFF, State.PROBING, State.OPEN, State.DARK)
REASONS = ("", OFF_BY_SETTING, OFF_BY_PEER, NOT_YET, PASSES, MISSED, UNHEARD)
SILENT = 255
"""The reason that has a number of milliseconds."""

_U16 = (1 << 16) - 1
NO_HOST = bytes(16)


class DatagramStatus(NamedTuple):
    """`host` and `port`: where datagrams for the peer go. `segment_bytes`: of UDP payload; 0: not known."""

    carrier: CarrierStatus
    host: bytes = NO_HOST
    port: int = 0
    segment_bytes: int = 0

    @property
    def endpoint(self) -> str:
        """HOST:PORT; "" while it is not known."""
        if not self.port:
            return ""
        address = ipaddress.IPv6Address(self.host)
        return f"[{address}]:{self.port}" if address.ipv4_mapped is None else f"{address.ipv4_mapped}:{self.port}"


def publish(words: memoryview, peer: int, status: DatagramStatus | None) -> None:
    at = peer * RECORD_WORDS
    if status is None:
        words[at + DATAGRAM_STATE] = 0
        return
    state, since, reason = status.carrier
    ms = silent_ms(reason)
    number = REASONS.index(reason) if ms is None else SILENT
    words[at + DATAGRAM_SINCE] = since
    words[at + DATAGRAM_HOST] = int.from_bytes(status.host[:8], "big")
    words[at + DATAGRAM_HOST + 1] = int.from_bytes(status.host[8:], "big")
    words[at + DATAGRAM_STATE] = (
        STATES.index(state)
        | number << 8
        | status.port << 16
        | min(status.segment_bytes, _U16) << 32
        | min(ms or 0, _U16) << 48
    )


def read(words: memoryview, peer: int) -> DatagramStatus | None:
    """None: there is no path."""
    at = peer * RECORD_WORDS
    word = words[at + DATAGRAM_STATE]
    state, number = word & 255, word >> 8 & 255
    if not 0 < state < len(STATES):
        return None
    if number == SILENT:
        reason = silent_for(word >> 48)
    else:
        reason = REASONS[number] if number < len(REASONS) else ""
    host = words[at + DATAGRAM_HOST].to_bytes(8, "big") + words[at + DATAGRAM_HOST + 1].to_bytes(8, "big")
    carrier = CarrierStatus(STATES[state], words[at + DATAGRAM_SINCE], reason)
    return DatagramStatus(carrier, host, word >> 16 & _U16, word >> 32 & _U16)
