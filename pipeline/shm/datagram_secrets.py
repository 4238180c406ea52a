"""The secrets of datagrams of each peer's session, which dgram workers alone read (pipeline.sealing.key_schedule).

A session has a record while its blocks may travel in datagrams. Blocks have keys of their own, which these do not lead
to. A client's record says where the server is, as well; that of a partner where it may be. If that changes, the record
is written again.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.shm.secret_table import VERSION_BYTES, SecretTable

_RECORD_BYTES = 192
_PLACE = struct.Struct("<16sH")
PLACES_MAX = 4
_LAYOUT = struct.Struct(f"<QI16sH2x32s32sIH{PLACES_MAX * _PLACE.size}s")

assert VERSION_BYTES + _LAYOUT.size <= _RECORD_BYTES

NO_HOST = bytes(16)
NO_PLACES = bytes(PLACES_MAX * _PLACE.size)


class DatagramServer(NamedTuple):
    """Where datagrams for a server go. All zeros at a server itself, and for a partner."""

    host: bytes = NO_HOST  # an IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291, 2.5.5.2)
    port: int = 0  # for UDP; 0: it takes none
    scope: int = 0  # number of the interface of a link-local address
    fake_tcp_port: int = 0  # 0: it takes none

    @classmethod
    def at(cls, address: str, port: int, scope: int = 0, fake_tcp_port: int = 0) -> DatagramServer:
        """`address`: IPv4 or IPv6, without a zone."""
        found = ipaddress.ip_address(address)
        if found.version == 4:
            return cls(b"\0" * 10 + b"\xff\xff" + found.packed, port, 0, fake_tcp_port)
        return cls(found.packed, port, scope, fake_tcp_port)


def pack_places(places: Sequence[tuple[bytes, int]]) -> bytes:
    """A partner may be at any of these, which are host and port."""
    return b"".join(_PLACE.pack(*each) for each in places[:PLACES_MAX]).ljust(len(NO_PLACES), b"\0")


def unpack_places(packed: bytes) -> list[tuple[bytes, int]]:
    return [(host, port) for host, port in _PLACE.iter_unpack(packed) if port]


class DatagramSecrets(NamedTuple):
    """`host`, `port`, `scope`, `fake_tcp_port`: see DatagramServer; `places`: see pack_places."""

    peer_handle: int
    suite: int
    host: bytes
    port: int
    send: bytes
    receive: bytes
    scope: int = 0
    fake_tcp_port: int = 0
    places: bytes = NO_PLACES


class DatagramSecretTable(SecretTable[DatagramSecrets]):
    NAME = "datagram secrets"
    LAYOUT = _LAYOUT
    RECORD_BYTES = _RECORD_BYTES
    RECORD = DatagramSecrets
