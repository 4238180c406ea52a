"""The flows that peers have begun, for the answers to them, and what was refused: memory that tun workers share.

It is one memfd for all lanes. The inbound duty of a lane writes the part of its lane and reads all: an answer may come
in another lane. It outlives workers.

A flow is one word: 36 bits of the hash of its key, its state, and until when it is known. So it is written by one
store. The other bits of the hash say in which row of WAYS words it is. In a full row, the flow whose time ends first
gives way. The hash is keyed: nobody makes up a flow with the hash of another.

Behind the flows of a lane are the counts of refused packets, by the index of the peer, and notes of the last ones.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from pipeline.policy.flow_times import Kept
from pipeline.shm.layout import PEER_INDEX_BITS, PEER_INDEX_MASK
from pipeline.shm.memory_order import fence

ROWS, WAYS = 1 << 14, 4
NOTES = 64
NOTE = struct.Struct("<QBBH4x16s")  # peer handle, bytes of the address, protocol, port, destination

_UNTIL_BITS, _STATE_BITS = 26, 2
_UNTIL_MASK = (1 << _UNTIL_BITS) - 1
_TAG_SHIFT = _UNTIL_BITS + _STATE_BITS
_FUTURE = 1 << _UNTIL_BITS - 1  # seconds: a moment ahead by less has not come yet

_COUNTS_AT = 8 * ROWS * WAYS
_NOTED_AT = _COUNTS_AT + 8 * (1 << PEER_INDEX_BITS)
_NOTES_AT = _NOTED_AT + 64
LANE_BYTES = -(-(_NOTES_AT + NOTES * NOTE.size) // 4096) * 4096


class Note(NamedTuple):
    """A packet that was refused."""

    peer_handle: int
    protocol: int
    port: int
    destination: bytes


def create(lanes: int) -> int:
    """The descriptor of an empty table."""
    fd = os.memfd_create("flows", os.MFD_CLOEXEC)
    os.ftruncate(fd, lanes * LANE_BYTES)
    return fd


class FlowTable:
    """`lane`: whose part this process writes; `secret`: the key of the hashes."""

    def __init__(self, fd: int, lanes: int, lane: int, secret: bytes) -> None:
        self._map = mmap.mmap(fd, lanes * LANE_BYTES)
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._secret = secret
        own = lane * LANE_BYTES
        self._own = own // 8
        self._bases = [self._own, *(each * LANE_BYTES // 8 for each in range(lanes) if each != lane)]
        self._counts = (own + _COUNTS_AT) // 8
        self._noted = (own + _NOTED_AT) // 8
        self._notes = own + _NOTES_AT

    def find(self, key: bytes, now: int) -> Kept | None:
        """A flow that is known, in whatever lane; in the own lane first. `now`: seconds."""
        at, tag = self._place(key)
        words = self._words
        for base in self._bases:
            for word in words[base + at : base + at + WAYS]:
                if word >> _TAG_SHIFT == tag and word:
                    ahead = (word & _UNTIL_MASK) - now & _UNTIL_MASK
                    if 0 < ahead < _FUTURE:
                        return Kept(word >> _UNTIL_BITS & 3, ahead)
        return None

    def put(self, key: bytes, kept: Kept, now: int) -> None:
        at, tag = self._place(key)
        at += self._own
        words = self._words
        least, found = _FUTURE, at
        for way in range(at, at + WAYS):
            word = words[way]
            ahead = (word & _UNTIL_MASK) - now & _UNTIL_MASK
            if word >> _TAG_SHIFT == tag:
                found = way
                break
            if not word or not 0 < ahead < _FUTURE:
                ahead = 0
            if ahead < least:
                least, found = ahead, way
        words[found] = tag << _TAG_SHIFT | kept.state << _UNTIL_BITS | now + kept.seconds & _UNTIL_MASK

    def _place(self, key: bytes) -> tuple[int, int]:
        """The first word of its row, and its tag."""
        hashed = int.from_bytes(blake2b(key, digest_size=8, key=self._secret).digest(), "little")
        return (hashed & ROWS - 1) * WAYS, hashed >> _TAG_SHIFT

    def count_refused(self, peer_handle: int) -> None:
        self._words[self._counts + (peer_handle & PEER_INDEX_MASK)] += 1

    def note(self, note: Note) -> None:
        count = self._words[self._noted]
        at = self._notes + count % NOTES * NOTE.size
        NOTE.pack_into(
            self._view, at, note.peer_handle, len(note.destination), note.protocol, note.port, note.destination
        )
        fence()
        self._words[self._noted] = count + 1


class Refusals:
    """The refusals of all tun workers, as the supervisor reads them."""

    def __init__(self, fd: int, lanes: int) -> None:
        self._map = mmap.mmap(fd, lanes * LANE_BYTES, prot=mmap.PROT_READ)
        self._view = memoryview(self._map)
        self._words = self._view.cast("Q")
        self._lanes = range(lanes)
        self._seen = [0] * lanes

    def counts(self, peer: int) -> int:
        """Packets that were refused, of every peer that has had this index."""
        return sum(self._words[(lane * LANE_BYTES + _COUNTS_AT) // 8 + peer] for lane in self._lanes)

    def take_notes(self) -> Iterator[Note]:
        """The notes since the last time; those that have been written over are lost."""
        for lane in self._lanes:
            count = self._words[(lane * LANE_BYTES + _NOTED_AT) // 8]
            fence()
            first = max(self._seen[lane], count - NOTES + 1)  # the oldest may be written over now
            self._seen[lane] = count
            for number in range(first, count):
                at = lane * LANE_BYTES + _NOTES_AT + number % NOTES * NOTE.size
                handle, size, protocol, port, destination = NOTE.unpack_from(self._view, at)
                if size in (4, 16):
                    yield Note(handle, protocol, port, destination[:size])

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()
