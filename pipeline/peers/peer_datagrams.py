"""By which carrier the blocks for a peer go now, and what is known of its datagrams.

Each dgram worker that has a path to the peer has published what it knows (pipeline.shm.datagram_status). The best path
is shown: an open one before one that is probed, and that before a dark one. Counts are those of all workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from pipeline.policy.carrier import CarrierStatus, State
from pipeline.shm import datagram_status
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import (
    DATAGRAM_BULK_BY_TCP,
    DATAGRAM_CUT,
    DATAGRAM_PATH,
    DATAGRAM_RATE,
    DATAGRAM_ROUND_TRIP,
    RECORD_WORDS,
)
from pipeline.shm.peer_table import DATAGRAM_COUNTS, PeerTable

TAKES_NO_DATAGRAMS = 'the other end takes none: it is older, or has a rate, or carrier "tcp"'
HAS_RATE = "it has a rate, which connections alone keep"
OWN_RATE = "this end has a rate, which connections alone keep"
BULK_BY_TCP = "light flows alone: bulk goes by TCP, since datagrams are slow and may be throttled"
STARTING = "no dgram worker has looked at it yet"

BYTES_PER_MBIT = 125_000
BEST_FIRST = (State.OPEN, State.PROBING, State.DARK)


class PeerDatagrams(TypedDict):
    """`sent_...`, `lost_...`, `received_...`, `recovered_...`: in this session."""

    state: str  # off, probing, open or dark (pipeline.policy.carrier)
    reason: str
    state_seconds: float | None  # since when; None with state off
    endpoint: str  # HOST:PORT to which they go; "" while it is not known
    segment_bytes: int  # of UDP payload, at most; 0: not known
    rate_mbit: float  # the pace of what is sent
    rtt_ms: float | None
    data_rows: int  # of a codeword of a full block; 0: not known
    parity_rows: int
    sent_segments: int
    lost_segments: int
    sent_bytes: int
    received_bytes: int
    recovered_blocks: int


def carrier_now(setting: str, table: PeerTable, peer: int) -> str:
    """udp, tcp, or none: with `carrier` "udp" nothing goes by TCP."""
    handle, at = table.peer_handle(peer), peer * RECORD_WORDS + DATAGRAM_PATH
    if any(words[at] == handle for words in table.datagrams_in):
        return "udp"
    return "none" if setting == "udp" else "tcp"


def best_path(table: PeerTable, peer: int) -> DatagramStatus | None:
    found = [status for words in table.datagrams_in if (status := datagram_status.read(words, peer)) is not None]
    return min(found, key=lambda each: BEST_FIRST.index(each.carrier.state), default=None)


def peer_datagrams(why_none: str, table: PeerTable, peer: int, before: Sequence[int], now: int) -> PeerDatagrams:
    """`why_none`: why there are none with this peer, if so. `before`: the counts when its session began."""
    found = None if why_none else best_path(table, peer)
    if found is None:
        found = DatagramStatus(CarrierStatus(State.OFF, now, why_none or STARTING))
    counts = table.datagram_counts(peer)
    began = before or [0] * len(counts)
    grown = {name: max(0, count - old) for name, count, old in zip(DATAGRAM_COUNTS, counts, began, strict=True)}
    state, since, reason = found.carrier
    is_open = state is State.OPEN
    at = peer * RECORD_WORDS
    if is_open and any(words[at + DATAGRAM_BULK_BY_TCP] == table.peer_handle(peer) for words in table.datagrams_out):
        reason = BULK_BY_TCP
    trips = [words[at + DATAGRAM_ROUND_TRIP] for words in table.datagrams_out if words[at + DATAGRAM_ROUND_TRIP]]
    cut = max(words[at + DATAGRAM_CUT] & 0xFFFF for words in table.datagrams_out) if is_open else 0
    rate = sum(words[at + DATAGRAM_RATE] for words in table.datagrams_out)
    return PeerDatagrams(
        state=state.value,
        reason=reason,
        state_seconds=None if state is State.OFF else round(max(0, now - since) / 1e9, 1),
        endpoint=found.endpoint,
        segment_bytes=found.segment_bytes if is_open else 0,
        rate_mbit=round(rate / BYTES_PER_MBIT, 3) if is_open else 0.0,
        rtt_ms=min(trips) / 1000 if trips and is_open else None,
        data_rows=cut >> 8,
        parity_rows=cut & 255,
        sent_segments=grown["sent_segments"],
        lost_segments=grown["lost_segments"],
        sent_bytes=grown["sent_bytes"],
        received_bytes=grown["received_bytes"],
        recovered_blocks=grown["recovered_blocks"],
    )
