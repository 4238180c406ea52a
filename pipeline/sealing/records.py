"""The frames of a connection as sealed records: how they go out, and what comes of those that arrive.

    RecordWriter    a frame becomes pieces for one sendmsg: nothing of the body is copied
    RecordScanner   whole frames are found, checked and turned, in place, into frames as the next stages read them

In a slot, a frame that has arrived is a frame of padding and then a run frame, or just padding. Its records had room
for both; nobody needs the padding in front of the first one (`begin`). The body stays where it was received, and the
five bytes of it under each record header are put back. Padding on the wire (`pipeline.sealing.padding`) stands in front
of the body, so it becomes part of the padding in the slot.

A peer whose header does not make sense has sent that itself, since the tag proves it: PeerError ends the connection.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import NamedTuple

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.sealing.frame_cut import (
    APPLICATION_DATA,
    END,
    END_RECORD_BYTES,
    FRONT_BYTES,
    HEADER,
    HEADER_BYTES,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    SEALED_HEADER_BYTES,
    TLS_VERSION,
    cut,
)
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.padding import PADDED_FRAME_MOST, PaddingSource, marked, padding_of, split
from pipeline.wire import charge, framing
from pipeline.wire.notes import NOTE_BYTES_MAX

_LENGTH_BYTES = framing.LENGTH.size
_RUN_BYTES = shard.RUN_BYTES
_PLANS_KEPT = 4096

_record_header_at = RECORD_HEADER.unpack_from
_header_of = HEADER.unpack
_pack_run = shard.SEALED_RUN.pack_into
_pack_frame = framing.FRAME.pack_into
_RUN_CHARGE = charge.FRAME + charge.RUN + charge.RECORD
_BLOCK_CHARGE = charge.FRAME + charge.RECORD
_PACKET_CHARGE = charge.PACKET

KEEPALIVE_HEADER = bytes([framing.KEEPALIVE]) + bytes(HEADER_BYTES - 1)
GOAWAY_HEADER = bytes([framing.GOAWAY]) + bytes(HEADER_BYTES - 1)
QUESTION_HEADER = bytes([framing.QUESTION]) + bytes(HEADER_BYTES - 1)
NOTES_WAITING = 8
"""Notes of one connection that wait to be taken; later ones are lost."""

_END_KIND = 256  # a peer has no such number for a kind
_END_HEADER = (_END_KIND, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_NO_HEADER: tuple[int, ...] = ()
_BARE_KINDS = (framing.KEEPALIVE, framing.GOAWAY, framing.QUESTION, framing.NOTE, _END_KIND)

Pieces = list[bytes | bytearray | memoryview]


class _Plan(NamedTuple):
    """All that follows from the size of a body: computed once for each."""

    body_bytes: int
    padding: int  # bytes in front of the body
    wire_bytes: int  # of the frame
    body_at: int  # in the frame
    first_bytes: int  # the length field of the first record
    first: bytes  # the header of the first record
    displaced: tuple[slice, ...]  # of the body: five bytes for each further record
    parts: tuple[tuple[slice, bytes], ...]  # of the body, each with the record header behind it
    last: slice  # of the body, behind them
    headers: struct.Struct  # the further record headers, in a frame
    expected: tuple[int, ...]  # their fields


def _plan(body_bytes: int, padding: int = 0) -> _Plan:
    """PeerError if no frame with such a body has so much padding."""
    plan = cut(body_bytes)
    if padding:
        if plan.wire_bytes + padding > PADDED_FRAME_MOST:
            raise PeerError(f"padding of {padding} bytes in a frame of {plan.wire_bytes}")
        plan = plan._replace(wire_bytes=plan.wire_bytes + padding, body_at=plan.body_at + padding)
    sizes = [plan.record_bytes(record) for record in range(plan.further + 1)]
    records = [(APPLICATION_DATA, TLS_VERSION, size) for size in sizes]
    displaced, parts, begin = [], [], 0
    for record in range(1, plan.further + 1):
        at = record * plan.unit - plan.body_at
        parts.append((slice(begin, at), RECORD_HEADER.pack(*records[record])))
        begin = at + RECORD_HEADER_BYTES
        displaced.append(slice(at, begin))
    headers = "".join(f"{size}x{RECORD_HEADER.format[1:]}" for size in sizes[:-1])
    return _Plan(
        body_bytes,
        padding,
        plan.wire_bytes,
        plan.body_at,
        sizes[0],
        RECORD_HEADER.pack(*records[0]),
        tuple(displaced),
        tuple(parts),
        slice(begin, None),
        struct.Struct(f">{RECORD_HEADER_BYTES}x{headers}"),
        tuple(chain.from_iterable(records[1:])),
    )


class _Plans(dict[int, _Plan]):
    """The plans that were asked for, by the size of the body. `pads`: of frames that a sender pads."""

    def __init__(self, pads: bool) -> None:
        super().__init__()
        self._pads = pads

    def __missing__(self, body_bytes: int) -> _Plan:
        if len(self) >= _PLANS_KEPT:
            self.clear()
        padding = padding_of(FRONT_BYTES + body_bytes) if self._pads else 0
        found = self[body_bytes] = _plan(body_bytes, padding)
        return found


class _RunPlans(dict[tuple[int, ...], _Plan]):
    """The plans of runs, by n, m, first, count and size field of their headers. PeerError if there is no such run."""

    def __missing__(self, key: tuple[int, ...]) -> _Plan:
        n, m, first, count, field = key
        padding, size = split(field)
        body_bytes = count * shard.shard_bytes(size, n, m)
        if not body_bytes or first + count > n + m:
            raise PeerError(f"run of {count} shards from {first} on, {n} + {m} of a block of {size} bytes")
        if len(self) >= _PLANS_KEPT:
            self.clear()
        found = self[key] = _plan(body_bytes, padding) if padding else _PLANS[body_bytes]
        return found


_PLANS, _PADDED_PLANS = _Plans(pads=False), _Plans(pads=True)
_RUN_PLANS = _RunPlans()
_END_PLAN = _PLANS[0]._replace(wire_bytes=RECORD_HEADER_BYTES + END_RECORD_BYTES)


class RecordWriter:
    """The outbound direction of one connection.

    `sealer.count` moves when the socket has taken bytes, and `padding_bytes` too: those on their way since the last
    take_padding(). Without `padding` there are none.
    """

    def __init__(self, sealer: HeaderSealer, padding: PaddingSource | None = None) -> None:
        self.sealer = sealer
        self._padding = padding
        self._plans = _PLANS if padding is None else _PADDED_PLANS
        self._offered: list[int] = []  # padding of the frames that are not sent yet, by those ahead of each
        self.padding_bytes = 0

    def pieces(self, ahead: int, run_header: bytes | memoryview, body: bytes | memoryview) -> tuple[Pieces, int]:
        """The pieces of a run frame, and their bytes. `run_header`: as in a slot; `ahead`: frames that go before it
        and are not sent yet."""
        plan = self._plans[len(body)]
        front = self._front(plan, ahead, run_header[_LENGTH_BYTES:])
        if not plan.parts:
            return [front, body], plan.wire_bytes
        body = memoryview(body)
        pieces: Pieces = [b"".join([front, *map(body.__getitem__, plan.displaced)])]
        for part, header in plan.parts:
            pieces += body[part], header
        pieces.append(body[plan.last])
        return pieces, plan.wire_bytes

    def started(self, frames: int) -> None:
        """The socket has taken a byte, or more, of so many of the frames that pieces() has made."""
        self.sealer.advance(frames)
        if self._padding is not None:
            self.padding_bytes += sum(self._offered[:frames])

    def take_padding(self, most: int) -> int:
        """Count so much of the padding on its way, at most."""
        taken = min(self.padding_bytes, most)
        self.padding_bytes -= taken
        return taken

    def _front(self, plan: _Plan, ahead: int, header: bytes | memoryview) -> bytes:
        """All of a frame up to its displaced bytes, or its body."""
        if self._padding is None:
            return plan.first + self.sealer.seal(ahead, header)
        self._offered[ahead:] = (plan.padding,)
        if not plan.padding:
            return plan.first + self.sealer.seal(ahead, header)
        sealed = self.sealer.seal(ahead, marked(header, plan.padding))
        return b"".join((plan.first, sealed, self._padding.take(plan.padding)))

    def control(self, header: bytes) -> bytes:
        """The one record of a frame without a body, which goes out next: it counts at once."""
        front = self._front(self._plans[0], 0, header)
        self.started(1)
        return front

    def keepalive(self) -> bytes:
        return self.control(KEEPALIVE_HEADER)

    def goaway(self) -> bytes:
        return self.control(GOAWAY_HEADER)

    def question(self) -> bytes:
        return self.control(QUESTION_HEADER)

    def note(self, note: bytes) -> bytes:
        """The one record of a note, which goes out next."""
        front = self._front(self._plans[len(note)], 0, HEADER.pack(framing.NOTE, 0, 0, 0, 0, 0, 0, len(note), 0, 0))
        self.started(1)
        return front + note

    def end(self) -> bytes:
        sealed = self.sealer.seal(0, END)
        self.sealer.advance(1)
        return RECORD_HEADER.pack(APPLICATION_DATA, TLS_VERSION, len(sealed)) + sealed


class RecordScanner:
    """The inbound direction of one connection. `ended`: the other end has said that it sends no more; `leaving`: that
    it is about to stop; `asked`: it waits for an answer, which the outbound duty gives and notes here; `notes`: of its
    supervisor, which the caller takes away; `begin`: where
    the first frame that the last scan() found begins, without padding; `padding_bytes`: of whole frames since the last
    take_padding().

    `copies_are_whole`: copies count as blocks that travel whole, and not as runs: the tun worker takes them.
    """

    def __init__(self, opener: HeaderOpener) -> None:
        self._open_header = opener.open
        self.copies_are_whole = False
        self._header: tuple[int, ...] = _NO_HEADER  # of the frame that is not whole yet, once it has been opened
        self._plan = _PLANS[0]
        self.ended = self.leaving = self.asked = False
        self.notes: list[bytes] = []
        self.begin = 0
        self.padding_bytes = 0

    def scan(
        self, view: memoryview, at: int, end: int, limit: int, most: int = framing.UNBOUNDED
    ) -> tuple[int, int, int, int, int, int]:
        """Like framing.scan, for sealed records in view[at:end]. The whole frames are frames of a slot then."""
        frames = runs = bare = charged = 0
        self.begin = at
        while end - at >= RECORD_HEADER_BYTES and not self.ended:
            if self._header is _NO_HEADER and not self._open(view, at, end, limit):
                break
            plan = self._plan
            after = at + plan.wire_bytes
            if after > end:
                return at, after, frames, runs, bare, charged
            kind, stream, number, n, m, first, count, size, epoch, packets = self._header
            self._header = _NO_HEADER
            if plan.padding:
                self.padding_bytes += plan.padding
                size = split(size)[1]
            if kind == framing.RUN:
                if plan.parts:
                    _put_back(plan, view, at)
                run_at = at + plan.body_at - _RUN_BYTES
                _pack_frame(view, at, run_at - at - _LENGTH_BYTES, framing.PADDING)
                if not frames:
                    self.begin = run_at
                _pack_run(
                    view, run_at, after - run_at - _LENGTH_BYTES,
                    kind, stream, number, n, m, first, count, size, epoch, packets,
                )  # fmt: skip
                if n == 1 and (not m or self.copies_are_whole):
                    charged += _BLOCK_CHARGE + _PACKET_CHARGE * packets
                else:
                    runs += 1
                    charged += _RUN_CHARGE
            else:
                is_bare = kind in _BARE_KINDS
                self.ended = kind == _END_KIND
                self.leaving = self.leaving or kind == framing.GOAWAY
                self.asked = self.asked or kind == framing.QUESTION
                if kind == framing.NOTE and len(self.notes) < NOTES_WAITING:
                    self.notes.append(bytes(view[at + plan.body_at : after]))
                _pack_frame(view, at, plan.wire_bytes - _LENGTH_BYTES, framing.PADDING if is_bare else framing.UNKNOWN)
                bare += is_bare
                charged += _BLOCK_CHARGE
            frames += 1
            at = after
            if charged >= most:
                break
        return at, 0, frames, runs, bare, charged

    def take_padding(self, most: int) -> int:
        """Count so much of the padding that has come, at most."""
        taken = min(self.padding_bytes, most)
        self.padding_bytes -= taken
        return taken

    def _open(self, view: memoryview, at: int, end: int, limit: int) -> bool:
        """Open the header of the frame at view[at]. False if not all of it is there."""
        kind, version, length = _record_header_at(view, at)
        if kind != APPLICATION_DATA or version != TLS_VERSION or length < SEALED_HEADER_BYTES:
            if kind != APPLICATION_DATA or version != TLS_VERSION or length != END_RECORD_BYTES:
                raise PeerError(f"record of type {kind}, version {version:#x}, length {length}, where a frame begins")
            return self._open_end(view, at, end)
        if end - at < FRONT_BYTES:
            return False
        header = _header_of(self._open_header(view[at + RECORD_HEADER_BYTES : at + FRONT_BYTES]))
        if header[0] == framing.RUN:
            plan = _RUN_PLANS[header[3:8]]
            if plan.body_bytes > limit:
                raise PeerError(f"run of {plan.body_bytes} bytes, at most {limit} allowed")
        else:
            padding, size = split(header[7])
            if header[0] != framing.NOTE:
                size = 0
            elif size > NOTE_BYTES_MAX:
                raise PeerError(f"note of {size} bytes, at most {NOTE_BYTES_MAX} allowed")
            plan = _plan(size, padding) if padding else _PLANS[size]
        if length != plan.first_bytes:
            raise PeerError(f"record of {length} bytes, {plan.first_bytes} expected for its frame")
        self._header, self._plan = header, plan
        return True

    def _open_end(self, view: memoryview, at: int, end: int) -> bool:
        """Open the record of an end at view[at]. False if not all of it is there."""
        if end - at < RECORD_HEADER_BYTES + END_RECORD_BYTES:
            return False
        at += RECORD_HEADER_BYTES
        if self._open_header(view[at : at + END_RECORD_BYTES]) != END:
            raise PeerError("a record of the length of an end, which is none")
        self._header, self._plan = _END_HEADER, _END_PLAN
        return True


def _put_back(plan: _Plan, view: memoryview, at: int) -> None:
    """Check the headers of the further records, and put the bytes of the body back that they stand on."""
    found = plan.headers.unpack_from(view, at)
    if found != plan.expected:
        raise PeerError(f"record headers {found} inside a frame, {plan.expected} expected")
    body_at, displaced_at = at + plan.body_at, at + FRONT_BYTES
    for place in plan.displaced:
        view[body_at + place.start : body_at + place.stop] = view[displaced_at : displaced_at + RECORD_HEADER_BYTES]
        displaced_at += RECORD_HEADER_BYTES
