"""An uplink of a client: the interface on which one of its connections leaves the machine.

    number u8 | flags u8 | name, UTF-8, at most NAME_BYTES_MAX bytes

A client with several uplinks says it in the HELLO of each connection, in an extension. So both ends know which of the
connections share a path, and which path is a backup that costs money.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

UPLINKS_MAX = 4
NAME_BYTES_MAX = 15  # IFNAMSIZ - 1, linux/if.h

BACKUP = 1  # flag

_HEAD = struct.Struct(">BB")


class Uplink(NamedTuple):
    """`number`: below UPLINKS_MAX, in the order of the client's setting."""

    number: int
    name: str
    is_backup: bool

    def pack(self) -> bytes:
        return _HEAD.pack(self.number, BACKUP * self.is_backup) + self.name.encode()[:NAME_BYTES_MAX]


def unpack(value: bytes) -> Uplink | None:
    """The uplink in an extension; None if it is not well-formed."""
    if len(value) < _HEAD.size or len(value) > _HEAD.size + NAME_BYTES_MAX:
        return None
    number, flags = _HEAD.unpack_from(value)
    if number >= UPLINKS_MAX:
        return None
    return Uplink(number, value[_HEAD.size :].decode(errors="replace"), bool(flags & BACKUP))
