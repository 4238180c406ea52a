"""Control datagrams: the bodies of probes, answers and reports as bytes, and back.

    probe     type 1 | challenge u64 | clock u32, us | wait u8, seconds | zeros up to the size that is tried
    answer    type 2 | challenge u64 | clock u32, us | size of the probe u16
    report    type 3 | count of streams u8 | count of incomplete codewords u8 | Counts: u16, the others u32
              for each stream: stream u32 | turn u32 | size u8 | so many bytes of bits
              for each codeword: position of its stream u8 | block u32 | codeword u8 | missing rows u64, a bit for each

    challenge   as good as random: only an end that has got the probe can answer it, so the answer proves an address
    clock       of the end that probes; it comes back, and tells the round trip
    wait        the answer is due so much later. It then tells that a NAT has kept the way open meanwhile
    size        of the whole probe as it came, UDP payload
    bits        bit i, counted from the lowest of the first byte: block turn + 1 + i is complete. No last byte is 0

A body is what the seal has proved (pipeline.sealing.datagram_seal). Even so every field is checked: `parse` says None
to what breaks a rule of this table, and raises nothing. All numbers are unsigned and big-endian; counts that grow are
modulo 2^32.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PROBE, ANSWER, REPORT = 1, 2, 3

STREAMS_MOST = 8  # a process seals six kinds (pipeline.sealing.kinds)
BITS_MOST = 64  # bytes: 512 blocks of 64 KiB are 54 ms of 5 Gbit/s
INCOMPLETE_MOST = 16
WAIT_MOST = 120  # seconds: pipeline.policy.nat_keepalive asks for no more

_PROBE = struct.Struct(">BQIB")
_ANSWER = struct.Struct(">BQIH")
_HEAD = struct.Struct(">BBB")
_COUNTS = struct.Struct(">HIIIIIIII")
_STREAM = struct.Struct(">IIB")
_CODEWORD = struct.Struct(">BIBQ")

PROBE_LEAST = _PROBE.size
PROBE_MOST = 65507  # bytes that a UDP datagram has at most
REPORT_MOST = _HEAD.size + _COUNTS.size + STREAMS_MOST * (_STREAM.size + BITS_MOST) + INCOMPLETE_MOST * _CODEWORD.size

assert REPORT_MOST < 1200 - 28  # a report, sealed, fits a datagram that every path carries


class Probe(NamedTuple):
    challenge: int
    clock: int
    wait: int = 0


class Answer(NamedTuple):
    challenge: int
    clock: int
    size: int


class Arrivals(NamedTuple):
    """The blocks of a stream that have come. `turn`: the first that is neither complete nor given up."""

    stream: int
    turn: int
    bits: bytes = b""


class Incomplete(NamedTuple):
    """A codeword that lacks rows. `position`: of its stream in the report."""

    position: int
    block: int
    codeword: int
    missing: int


class Counts(NamedTuple):
    """The segments that have come from one process of the other end."""

    sender: int  # that process, modulo 2^16
    highest: int  # sequence of the latest segment
    age: int  # us since it came
    received: int  # segments in all
    marked: int  # those with ECN-CE
    refused: int  # those that came, and were dropped for want of room: no loss of the path
    lost: int
    pairs: int  # lost segments of which the one before was lost as well; runs of losses are lost - pairs
    far_pairs: int  # lost segments of which the one FAR_LAG before was lost as well


class Report(NamedTuple):
    """The counts of a process, its blocks that have come, and the rows to send again."""

    counts: Counts
    streams: tuple[Arrivals, ...] = ()
    incomplete: tuple[Incomplete, ...] = ()


FAR_LAG = 8
"""Segments. A path that is bad for a while may let some segments pass meanwhile. Pairs that are so far apart tell how
long it stays bad (pipeline.policy.datagram_parity)."""


def pack_probe(probe: Probe, size: int) -> bytes:
    """`size`: of the body; a smaller one than PROBE_LEAST is that."""
    return _PROBE.pack(PROBE, *probe).ljust(size, b"\0")


def pack_answer(answer: Answer) -> bytes:
    return _ANSWER.pack(ANSWER, *answer)


def pack_report(report: Report) -> bytes:
    """The first of its streams and codewords, as many as there is room for. Zeros at the end of bits are left out."""
    streams = report.streams[:STREAMS_MOST]
    incomplete = [each for each in report.incomplete if each.position < len(streams)][:INCOMPLETE_MOST]
    parts = [_HEAD.pack(REPORT, len(streams), len(incomplete)), _COUNTS.pack(*report.counts)]
    for stream, turn, bits in streams:
        kept = bits[:BITS_MOST].rstrip(b"\0")
        parts += _STREAM.pack(stream, turn, len(kept)), kept
    return b"".join((*parts, *(_CODEWORD.pack(*each) for each in incomplete)))


def parse(body: memoryview) -> Probe | Answer | Report | None:
    """None for anything that is no body of this version."""
    if not body:
        return None
    match body[0]:
        case 1:
            return _parse_probe(body)
        case 2:
            return _parse_answer(body)
        case 3:
            return _parse_report(body)
    return None


def _parse_probe(body: memoryview) -> Probe | None:
    if not PROBE_LEAST <= len(body) <= PROBE_MOST or any(body[PROBE_LEAST:]):
        return None
    _, challenge, clock, wait = _PROBE.unpack_from(body)
    return Probe(challenge, clock, wait) if wait <= WAIT_MOST else None


def _parse_answer(body: memoryview) -> Answer | None:
    if len(body) != _ANSWER.size:
        return None
    _, challenge, clock, size = _ANSWER.unpack(body)
    return Answer(challenge, clock, size) if size >= PROBE_LEAST else None


def _parse_report(body: memoryview) -> Report | None:
    at = _HEAD.size + _COUNTS.size
    if not at <= len(body) <= REPORT_MOST:
        return None
    _, streams, incomplete = _HEAD.unpack_from(body)
    if streams > STREAMS_MOST or incomplete > INCOMPLETE_MOST:
        return None
    arrivals = []
    for _ in range(streams):
        if len(body) - at < _STREAM.size:
            return None
        stream, turn, size = _STREAM.unpack_from(body, at)
        at += _STREAM.size
        bits = bytes(body[at : at + size])
        if size > BITS_MOST or len(bits) != size or (bits and not bits[-1]):
            return None
        at += size
        arrivals.append(Arrivals(stream, turn, bits))
    if len(body) - at != incomplete * _CODEWORD.size:
        return None
    lacking = [Incomplete(*each) for each in _CODEWORD.iter_unpack(body[at:])]
    if any(each.position >= streams or not each.missing for each in lacking):
        return None
    return Report(Counts(*_COUNTS.unpack_from(body, _HEAD.size)), tuple(arrivals), tuple(lacking))
