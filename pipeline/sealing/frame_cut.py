"""How a frame is cut into records, and where the record headers stand on its body.

    record 0            | 17 03 03 length | sealed header | displaced bytes, 5 for each further record | body ...
    records 1, 2, ...   | 17 03 03 length | body ...

Each header of a further record stands in place of five bytes of the body. Those displaced bytes travel in record 0. So
both ends leave the body where it is. All records of a frame but the last are equally long.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.sealing.aead import TAG_BYTES

RECORD_HEADER = struct.Struct(">BHH")  # type, version, length of what follows
RECORD_HEADER_BYTES = RECORD_HEADER.size
APPLICATION_DATA, TLS_VERSION = 23, 0x0303  # RFC 8446, 5.1 and 5.2

HEADER = struct.Struct(">BIIBBBBIHH")  # type, stream, number, n, m, first, count, size, epoch, packets
HEADER_BYTES = HEADER.size
SEALED_HEADER_BYTES = HEADER_BYTES + TAG_BYTES
FRONT_BYTES = RECORD_HEADER_BYTES + SEALED_HEADER_BYTES  # of a frame, before its displaced bytes

UNIT_BYTES = RECORD_HEADER_BYTES + 16384 + 1 + TAG_BYTES
"""A full record of TLS 1.3 as OpenSSL makes it: 2^14 bytes, their type, the tag (RFC 8446, 5.2)."""

SHORTER_UNIT_BYTES = UNIT_BYTES - 16
LAST_BYTES_MIN = RECORD_HEADER_BYTES + 1 + TAG_BYTES
"""A last record of less would be none of TLS 1.3: such a frame has records of SHORTER_UNIT_BYTES."""

END_BYTES = 3
END = b"\x01\x00\x15"
"""An alert of TLS, warning and close_notify, and its type: the plaintext of the last record (RFC 8446, 5.4 and 6.1)."""

END_RECORD_BYTES = END_BYTES + TAG_BYTES  # what follows the header of such a record


class FrameCut(NamedTuple):
    """The cut of a frame: `further` records behind the first, each beginning `unit` bytes behind the one before it."""

    further: int
    unit: int
    wire_bytes: int  # of the whole frame
    body_at: int  # offset of the body in the frame

    def record_bytes(self, index: int) -> int:
        """The length field of a record: what follows its header."""
        return min(self.unit, self.wire_bytes - index * self.unit) - RECORD_HEADER_BYTES


def cut(body_bytes: int) -> FrameCut:
    """The cut of a frame with a body of so many bytes."""
    found = _cut(body_bytes, UNIT_BYTES)
    last = found.wire_bytes - found.further * UNIT_BYTES
    return _cut(body_bytes, SHORTER_UNIT_BYTES) if found.further and last < LAST_BYTES_MIN else found


def _cut(body_bytes: int, unit: int) -> FrameCut:
    further = 0
    while (wire_bytes := FRONT_BYTES + RECORD_HEADER_BYTES * further + body_bytes) > (further + 1) * unit:
        further += 1
    return FrameCut(further, unit, wire_bytes, wire_bytes - body_bytes)
