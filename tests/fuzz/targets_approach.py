"""The targets of a client's approach: what a proxy answers, or whatever is there in its place."""

from __future__ import annotations

from pipeline.log import printable
from pipeline.wire.approach import Approach
from pipeline.wire.http_connect import ConnectApproach
from pipeline.wire.socks import SocksApproach

LOGIN = ("user", "password")


def http_answer(data: bytes) -> None:
    """An answer to CONNECT has one meaning, in however many pieces it comes."""
    _compare(ConnectApproach("hub.test", 9000, LOGIN), ConnectApproach("hub.test", 9000, LOGIN), data)


def socks_answer(data: bytes) -> None:
    """So do the replies of a SOCKS proxy."""
    _compare(SocksApproach("hub.test", 9000, LOGIN), SocksApproach("hub.test", 9000, LOGIN), data)


def _compare(at_once: Approach, in_pieces: Approach, data: bytes) -> None:
    assert at_once.begin() == in_pieces.begin()
    whole = at_once.feed(data)
    assert 0 <= whole.used <= len(data)
    assert not (whole.done and whole.failure)
    assert printable(whole.failure).isprintable()
    used, send = 0, b""
    for byte in data:
        step = in_pieces.feed(bytes((byte,)))
        used += step.used
        send += step.send
        if step.done or step.failure:
            break
    if whole.done:
        assert (used, send, step.done) == (whole.used, whole.send, True)
    elif not whole.failure and data:
        assert (used, send, step.done, step.failure) == (len(data), whole.send, False, "")


def http_answer_seeds() -> list[bytes]:
    return [
        b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03\x03",
        b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
        b'HTTP/1.1 407 x\r\nProxy-Authenticate: Digest realm="a, b", Basic\r\nProxy-Authenticate: NTLM\r\n\r\n',
        b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nProxy-Status: a; error=b\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ]


def socks_answer_seeds() -> list[bytes]:
    return [
        b"\x05\x00\x05\x00\x00\x01" + bytes(6) + b"server",
        b"\x05\x02\x01\x00\x05\x00\x00\x03\x04host\x00\x01server",
        b"\x05\x00\x05\x00\x00\x04" + bytes(18),
        b"\x05\x02\x01\x01",
        b"\x05\xff",
        b"\x05\x00\x05\x02\x00\x01",
        b"\x00\x5b",
    ]
