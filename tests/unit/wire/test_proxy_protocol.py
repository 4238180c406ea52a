"""The PROXY protocol: headers of both versions, cut anywhere, and all that is none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.wire.proxy_protocol import (
    LOCAL,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNIX_STREAM,
    UNSPECIFIED,
    V2_REST_MAX,
    Client,
    ProxyHeader,
    header,
)

BEHIND = b"\x16\x03\x01 the first bytes of the client"
FOUR = bytes([192, 0, 2, 7, 10, 0, 0, 1]) + struct.pack("!HH", 40000, 443)
SIX = bytes.fromhex("20010db800000000000000000000000720010db8000000000000000000000001") + struct.pack("!HH", 40000, 443)
TLV = b"\x03\x00\x04\x01\x02\x03\x04" + b"\x02\x00\x0bexample.org"


def v2(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


HEADERS = {
    "1, IPv4": (b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n", Client("192.0.2.7", 40000)),
    "1, IPv6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n", Client("2001:db8::7", 40000)),
    "1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "1, unknown with addresses": (b"PROXY UNKNOWN ffff:f::1 ffff:f::2 65535 65535\r\n", None),
    "2, IPv4": (v2(PROXY, TCP4, FOUR), Client("192.0.2.7", 40000)),
    "2, IPv4 and TLVs": (v2(PROXY, TCP4, FOUR + TLV), Client("192.0.2.7", 40000)),
    "2, IPv6": (v2(PROXY, TCP6, SIX), Client("2001:db8::7", 40000)),
    "2, IPv6 and long TLVs": (v2(PROXY, TCP6, SIX + bytes(V2_REST_MAX - len(SIX))), Client("2001:db8::7", 40000)),
    "2, UNIX": (v2(PROXY, UNIX_STREAM, bytes(216)), None),
    "2, unspecified": (v2(PROXY, UNSPECIFIED, b""), None),
    "2, local": (v2(LOCAL, UNSPECIFIED, b""), None),
    "2, local with an address": (v2(LOCAL, TCP4, FOUR), None),
    "2, local with TLVs": (v2(LOCAL, UNSPECIFIED, TLV), None),
}

NONE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "HTTP": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "a method like it": b"PROXYFIND / HTTP/1.1\r\n\r\n",
    "another end of the line": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\n" + bytes(80),
    "no end of the line": b"PROXY TCP4 " + b"1" * 200,
    "a port too high": b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
    "another port too high": b"PROXY TCP4 192.0.2.7 10.0.0.1 443 70000\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 10.0.0.1 +443 443\r\n",
    "no ports": b"PROXY TCP4 192.0.2.7 10.0.0.1\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.7 10.0.0.1 40000 443\r\n",
    "the other family": b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 443\r\n",
    "a name": b"PROXY TCP4 example.org 10.0.0.1 40000 443\r\n",
    "a zone": b"PROXY TCP6 fe80::7%eth0 2001:db8::1 40000 443\r\n",
    "an unknown family": b"PROXY UDP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "bytes that are no text": b"PROXY TCP4 \xff\xfe 10.0.0.1 40000 443\r\n",
    "version 3": v2(0x31, TCP4, FOUR),
    "an unknown command": v2(0x22, TCP4, FOUR),
    "UDP": v2(PROXY, 0x12, FOUR),
    "half an address": v2(PROXY, TCP4, FOUR[:8]),
    "IPv6 with the length of IPv4": v2(PROXY, TCP6, FOUR),
    "too much": SIGNATURE + struct.pack("!BBH", PROXY, TCP4, V2_REST_MAX + 1),
    "a signature that goes wrong": SIGNATURE[:11] + b"X" + bytes(20),
}


def read(stream: bytes, piece: int = 1 << 20) -> tuple[Client | None, bytes]:
    """The client, and what stands behind the header."""
    parser = ProxyHeader()
    while parser.needs:
        size = min(parser.needs, piece)
        assert stream, f"{parser.needs} bytes beyond the end"
        parser.feed(stream[:size])
        stream = stream[size:]
    return parser.client, stream


@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_names_its_client_and_no_byte_behind_it_is_read(name: str, piece: int) -> None:
    data, client = HEADERS[name]
    assert read(data + BEHIND, piece) == (client, BEHIND)


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize("name", NONE)
def test_anything_else_is_none(name: str, piece: int) -> None:
    with pytest.raises(PeerError):
        read(NONE[name], piece)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_none_or_too_few(data: bytes) -> None:
    parser = ProxyHeader()
    try:
        while parser.needs and data:
            parser.feed(data[: parser.needs])
            data = data[parser.needs :] if parser.needs else b""
    except PeerError:
        pass


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (Client("192.0.2.7", 4), Client("10.0.0.1", 443), Client("192.0.2.7", 4)),
        (Client("2001:db8::7", 4), Client("2001:db8::1", 443), Client("2001:db8::7", 4)),
        (Client("fe80::7%eth0", 4), Client("fe80::1%eth0", 443), Client("fe80::7", 4)),
        (Client("192.0.2.7", 4), Client("2001:db8::1", 443), Client("::ffff:192.0.2.7", 4)),
    ],
)
def test_a_header_that_was_made_is_read(client: Client, server: Client, expected: Client) -> None:
    found, rest = read(header(client, server) + BEHIND)
    assert found is not None and rest == BEHIND
    assert found == expected or found.host.replace("c000:207", "192.0.2.7") == expected.host


# -- the token of our own bridge

TOKEN = bytes(range(16))
OF_BRIDGE = header(Client("192.0.2.7", 0), Client("127.0.0.1", 443), TOKEN)


def read_with(data: bytes, token: bytes) -> Client | None:
    reader = ProxyHeader(token)
    while reader.needs:
        piece, data = data[: reader.needs], data[reader.needs :]
        reader.feed(piece)
    return reader.client


def test_a_header_with_the_token_is_one_of_our_bridge_and_to_others_one_like_any_other() -> None:
    assert read_with(OF_BRIDGE + BEHIND, TOKEN) == Client("192.0.2.7", 0)
    assert read_with(OF_BRIDGE + BEHIND, b"") == Client("192.0.2.7", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        header(Client("192.0.2.7", 0), Client("127.0.0.1", 443)),
        header(Client("192.0.2.7", 0), Client("127.0.0.1", 443), bytes(16)),
        header(Client("192.0.2.7", 0), Client("127.0.0.1", 443), TOKEN[:-1]),
        v2(PROXY, TCP4, FOUR + TLV + OF_BRIDGE[-19:]),
        v2(LOCAL, UNSPECIFIED, b""),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
        b"PROXY UNKNOWN\r\n",
        BEHIND + bytes(100),
    ],
)
def test_where_the_token_is_needed_nothing_else_is_believed(wrong: bytes) -> None:
    with pytest.raises(PeerError):
        read_with(wrong, TOKEN)
