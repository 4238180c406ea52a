"""The paths to a peer that are open, as they outlive this process: behind the peer handle in the lane's memory.

    kind u8, 0: not valid | lane of the peer u8 | size of segments u16 | port u16 | local port's ancillary, bytes u8 |
    scope u32 | host, 16 bytes | ancillary: level u8, kind u8, 20 bytes at most

There is room for two of them: most peers have one path to a worker. An entry is not valid while it is written, so a
kill at any instant leaves one that is whole, or none.

A fake flow ends with its worker. The memory of its path counts as soon as there is another flow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.policy.carrier_order import Kind

KINDS = (None, Kind.UDP, Kind.FAKE_TCP)
_ENTRY = struct.Struct("<BBHHB16sIBB20s")
ENTRIES = 2


class Remembered(NamedTuple):
    """A path that was open. `host`: 16 bytes."""

    remote_lane: int
    segment_most: int
    host: bytes
    port: int
    scope: int
    ancillary: tuple[int, int, bytes] | None
    kind: Kind = Kind.UDP


class RememberedPaths:
    """`place`: of one peer."""

    def __init__(self, place: memoryview) -> None:
        self._place = place

    def __iter__(self) -> Iterator[Remembered]:
        for at in range(0, ENTRIES * _ENTRY.size, _ENTRY.size):
            number, lane, size, port, length, host, scope, level, option, data = _ENTRY.unpack_from(self._place, at)
            kind = KINDS[number] if number < len(KINDS) else None
            if kind is not None:
                ancillary = (level, option, data[:length]) if length else None
                yield Remembered(lane, size, host, port, scope, ancillary, kind)

    def replace(self, paths: list[Remembered]) -> None:
        """Remember the first of these, and no others."""
        for number in range(ENTRIES):
            at = number * _ENTRY.size
            self._place[at] = 0
            if number < len(paths):
                lane, size, host, port, scope, ancillary, kind = paths[number]
                level, option, data = ancillary or (0, 0, b"")
                entry = _ENTRY.pack(0, lane, size, port, len(data), host, scope, level, option, data)
                self._place[at + 1 : at + _ENTRY.size] = entry[1:]
                self._place[at] = KINDS.index(kind)
