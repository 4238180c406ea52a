"""By which carrier the blocks for a peer go now, and what is known of its datagrams.

Each dgram worker that has a path to the peer has published what it knows (pipeline.shm.datagram_status), of UDP and of
fake TCP. The best path of each is shown: an open one before one that is probed, and that before a dark one. The kind
that is used stands for both, and UDP if none is. Counts are those of all workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from pipeline.policy.carrier import CarrierStatus, State
from pipeline.policy.carrier_order import KINDS, WORDS, Kind
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

TAKES_NO_DATAGRAMS = "the other end takes none: it is older, or has a rate, or another `carrier`"
HAS_RATE = "it has a rate, which connections alone keep"
OWN_RATE = "this end has a rate, which connections alone keep"
BULK_BY_TCP = "light flows alone: bulk goes by TCP, since datagrams are slow and may be throttled"
STARTING = "no dgram worker has looked at it yet"

BYTES_PER_MBIT = 125_000
BEST_FIRST = (State.OPEN, State.PROBING, State.DARK)


class KindStatus(TypedDict):
    """The best path of one kind."""

    carrier: str  # udp or faketcp
    state: str
    reason: str
    state_seconds: float
    endpoint: str


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
    carriers: list[KindStatus]  # of the kinds that were tried, in their order


def carrier_now(setting: str, table: PeerTable, peer: int) -> str:
    """udp, faketcp, tcp, or none: with `carrier` "udp" or "faketcp" nothing goes by TCP."""
    handle, at = table.peer_handle(peer), peer * RECORD_WORDS + DATAGRAM_PATH
    if any(words[at] == handle for words in table.datagrams_in):
        kind, _ = shown_path(best_paths(table, peer)) or (Kind.UDP, None)
        return kind.value
    return "none" if setting in KINDS["auto"] else "tcp"


def best_paths(table: PeerTable, peer: int) -> dict[Kind, DatagramStatus]:
    """The best path of each kind that was tried."""
    records = {Kind.UDP: table.datagrams_in, Kind.FAKE_TCP: table.datagrams_fake_tcp}
    found: dict[Kind, DatagramStatus] = {}
    for kind, tables in records.items():
        each_lane = [status for words in tables if (status := datagram_status.read(words, peer)) is not None]
        if each_lane:
            found[kind] = min(each_lane, key=lambda each: BEST_FIRST.index(each.carrier.state))
    return found


def shown_path(best: Mapping[Kind, DatagramStatus]) -> tuple[Kind, DatagramStatus] | None:
    """The first one that is open, else the first of all."""
    is_open = [each for each in best.items() if each[1].carrier.state is State.OPEN]
    return next(iter([*is_open, *best.items()]), None)


def reason_of(best: Mapping[Kind, DatagramStatus], is_open: bool) -> str:
    """Why blocks go by the kind that is open, or by none: what keeps those before it from being used."""
    told = {kind: status.carrier for kind, status in best.items() if status.carrier.state is not State.OPEN}
    if len(best) == 1 and told:
        return next(iter(told.values())).reason
    if is_open:
        told = {kind: carrier for kind, carrier in told.items() if kind is Kind.UDP}
    return "; ".join(f"{WORDS[kind]}: {carrier.reason}" for kind, carrier in told.items())


def peer_datagrams(why_none: str, table: PeerTable, peer: int, before: Sequence[int], now: int) -> PeerDatagrams:
    """`why_none`: why there are none with this peer, if so. `before`: the counts when its session began."""
    best = {} if why_none else best_paths(table, peer)
    _, found = shown_path(best) or (None, DatagramStatus(CarrierStatus(State.OFF, now, why_none or STARTING)))
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
        reason=reason_of(best, is_open) or reason,
        state_seconds=None if state is State.OFF else _seconds(since, now),
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
        carriers=[
            KindStatus(
                carrier=kind.value,
                state=status.carrier.state.value,
                reason=status.carrier.reason,
                state_seconds=_seconds(status.carrier.since, now),
                endpoint=status.endpoint,
            )
            for kind, status in best.items()
        ],
    )


def _seconds(since: int, now: int) -> float:
    return round(max(0, now - since) / 1e9, 1)
