"""The PROXY protocol, versions 1 and 2: a proxy tells who its client is, ahead of the client's first byte.

    ProxyHeader      reads a header from the front of a stream, and no byte behind it
    header(...)      a header of version 2

The document is proxy-protocol.txt of HAProxy. A proxy may speak for itself (LOCAL, for its health checks), or for a
client without an address (UNKNOWN, AF_UNSPEC, AF_UNIX). It names nobody then: the connection is its own, and addresses
in such a header are not read. So nobody can name an address with a LOCAL. TLVs behind the addresses are skipped, but
for one with the token of our own bridge. A header is short, and proxies send it at once; whether it comes in time is
its reader's business.
"""

from __future__ import annotations

import hmac
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from pipeline.errors import PeerError

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
V1_PREFIX = b"PROXY "
V1_BYTES_MAX = 107
V1_END = b"\r\n"
V1_BYTES_MIN = len("PROXY UNKNOWN\r\n")
PORT_MAX = 65535
V2_REST_MAX = 8192  # addresses and TLVs; those of a client's certificate are the longest

LOCAL, PROXY = 0x20, 0x21  # version and command
TCP4, TCP6, UNIX_STREAM, UNSPECIFIED = 0x11, 0x21, 0x31, 0x00  # family and protocol

TOKEN_TYPE = 0xE7  # of a TLV; 0xE0 to 0xEF are for applications
_V2 = struct.Struct("!12sBBH")
_TLV = struct.Struct("!BH")
_ADDRESSES = {TCP4: struct.Struct("!4s4sHH"), TCP6: struct.Struct("!16s16sHH")}
_V1_FAMILIES = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}

NO_HEADER = "the first bytes are no header of the PROXY protocol"
NO_TOKEN = "the header has not the token of our own bridge"


class Client(NamedTuple):
    """Where the client of a proxy is."""

    host: str
    port: int


class ProxyHeader:
    """Feed it at most `needs` bytes at a time until that is 0. `client` is None then if the header names nobody.

    `token`: that it must have, b"" for none. PeerError says what is wrong with a header.
    """

    def __init__(self, token: bytes = b"") -> None:
        self.client: Client | None = None
        self._token = token
        self.needs = V1_BYTES_MIN
        self._data = b""

    @property
    def is_of_our_bridge(self) -> bool:
        return bool(self._token)

    def feed(self, data: bytes) -> None:
        self._data += data
        prefix = SIGNATURE if self._token or self._data[:1] == SIGNATURE[:1] else V1_PREFIX
        if self._data[: len(prefix)] != prefix[: len(self._data)]:
            raise PeerError(NO_HEADER)
        if prefix is SIGNATURE:
            self._read_v2()
        else:
            self._read_v1()

    def _read_v2(self) -> None:
        data = self._data
        if len(data) < _V2.size:
            self.needs = _V2.size - len(data)
            return
        _, command, family, rest = _V2.unpack_from(data)
        if command not in (LOCAL, PROXY) or rest > V2_REST_MAX:
            raise PeerError(f"PROXY header of version and command {command:#04x} with {rest} bytes behind it")
        self.needs = _V2.size + rest - len(data)
        if self.needs:
            return
        form = _ADDRESSES.get(family)
        if self._token and not hmac.compare_digest(
            data[_V2.size + (form.size if form else 0) :], _token_tlv(self._token)
        ):
            raise PeerError(NO_TOKEN)
        if command == LOCAL or family in (UNSPECIFIED, UNIX_STREAM):
            return
        if form is None or form.size > rest:
            raise PeerError(f"PROXY header of family and protocol {family:#04x} with {rest} bytes of addresses")
        packed, _, port, _ = form.unpack_from(data, _V2.size)
        self.client = Client(str(ip_address(packed)), port)

    def _read_v1(self) -> None:
        data = self._data
        if data[-2:] != V1_END:
            if len(data) >= V1_BYTES_MAX:
                raise PeerError(f"PROXY header of more than {V1_BYTES_MAX} bytes")
            self.needs = max(1, V1_BYTES_MIN - len(data))
            return
        self.needs = 0
        words = data[:-2].split(b" ")
        if words[1] == b"UNKNOWN":
            return
        make = _V1_FAMILIES.get(words[1])
        try:
            if make is None or len(words) != 6 or b"%" in data or not all(word.isdigit() for word in words[4:]):
                raise ValueError
            source, _ = (make(word.decode("ascii")) for word in words[2:4])
            port, other_port = map(int, words[4:])
            if max(port, other_port) > PORT_MAX:
                raise ValueError
        except ValueError:
            raise PeerError("PROXY header of version 1 without two addresses and two ports") from None
        self.client = Client(str(source), port)


def header(client: Client, server: Client, token: bytes = b"") -> bytes:
    """A header of version 2. Addresses of two families are both written as IPv6."""
    ends = [ip_address(end.host.partition("%")[0]) for end in (client, server)]
    if len({end.version for end in ends}) > 1:
        ends = [IPv6Address(f"::ffff:{end}") if end.version == 4 else end for end in ends]
    family = TCP4 if ends[0].version == 4 else TCP6
    rest = _ADDRESSES[family].pack(ends[0].packed, ends[1].packed, client.port, server.port)
    rest += _token_tlv(token) if token else b""
    return _V2.pack(SIGNATURE, PROXY, family, len(rest)) + rest


def _token_tlv(token: bytes) -> bytes:
    return _TLV.pack(TOKEN_TYPE, len(token)) + token
