"""The ALPN names that a TLS ClientHello offers, out of its bytes as they arrive (RFC 8446, 4.1.2; RFC 7301, 3.1).

Python's ssl does not let a server refuse a client that offers no name of its own. Web servers do, with an alert. So a
server that hides looks for itself, at a hello that has arrived as a whole in one record, as nearly all do.
"""

from __future__ import annotations

import struct

NO_APPLICATION_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"
"""The alert, as OpenSSL sends it ahead of everything else."""

_HANDSHAKE_RECORD, _CLIENT_HELLO, _ALPN = 0x16, 1, 16
_BEFORE_SESSION_ID = 5 + 4 + 2 + 32  # headers of record and message, version, random


def offered(data: bytes) -> list[str] | None:
    """The names; empty if it offers none, None if this is no whole ClientHello. Total."""
    try:
        return _offered(data)
    except (struct.error, IndexError):
        return None


def _offered(data: bytes) -> list[str] | None:
    kind, _, length, message, high, low = struct.unpack_from("!BHHBBH", data)
    if kind != _HANDSHAKE_RECORD or message != _CLIENT_HELLO or len(data) < 5 + length:
        return None
    if (high << 16 | low) + 4 != length:  # of several records, or with another message behind it
        return None
    at = _BEFORE_SESSION_ID
    at += 1 + data[at]  # session id
    at += 2 + struct.unpack_from("!H", data, at)[0]  # ciphers
    at += 1 + data[at]  # compression
    end = at + 2 + struct.unpack_from("!H", data, at)[0]
    at += 2
    while at < end:
        extension, size = struct.unpack_from("!HH", data, at)
        at += 4
        if extension == _ALPN:
            return _names(data[at + 2 : at + size])
        at += size
    return []


def _names(data: bytes) -> list[str]:
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    return names
