"""The targets of a client on its way to the server: the answers of a proxy or a web server."""

from __future__ import annotations

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request, TextMessage

from pipeline.log import printable
from pipeline.wire.approach import Approach
from pipeline.wire.forwarded import FORWARDED, find_client
from pipeline.wire.http_connect import ConnectApproach
from pipeline.wire.socks import SocksApproach
from pipeline.wire.websocket import WebSocket
from pipeline.wire.websocket_server import Head, for_one_answer, path_of, read_upgrade, refusal, values_of
from pipeline.wire.websocket_url import WebSocketUrl

URL = WebSocketUrl("wss", "www.test", 443, "/path")
OPEN = b"\1"
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


def websocket(data: bytes) -> None:
    """The answer of a web server, and then frames. The first byte: whether the WebSocket is open."""
    client, server = WebSocket(URL), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.begin())
    list(server.events())
    if data[:1] == OPEN:
        client.receive(server.send(AcceptConnection()))
    got = client.receive(data[1:])
    assert len(got.data) <= len(data)
    assert not got.failure or got.is_over
    assert len(got.send) <= 4 * len(data)


def websocket_seeds() -> list[bytes]:
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(WebSocket(URL).begin())
    list(server.events())
    answer = server.send(AcceptConnection())
    frames = [BytesMessage(data=b"data"), Ping(payload=b"x"), TextMessage(data="x"), CloseConnection(code=1000)]
    return [
        b"\0" + answer,
        b"\0HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi",
        b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        *(OPEN + server.send(frame) for frame in frames),
    ]


def websocket_request(data: bytes) -> None:
    """The head of a request, and frames of a client behind it."""
    head = Head()
    for at in range(0, len(data), 100):
        head.add(data[at : at + 100])
    assert head.head + head.rest == data
    assert refusal(head.head).startswith(b"HTTP/1.1 4")
    for_one_answer(head.head)
    path_of(head.head)
    for name in (FORWARDED, "x-forwarded-for"):
        assert find_client("192.0.2.1", name, values_of(head.head, name.encode()), lambda at: True)
    upgrade = read_upgrade(head.head) if head.is_whole else None
    if upgrade is not None:
        got = upgrade.stream.receive(head.rest)
        assert len(got.data) <= len(head.rest) and len(got.send) <= len(head.rest)


def websocket_request_seeds() -> list[bytes]:
    client = WSConnection(ConnectionType.CLIENT)
    fields = [
        ("X-Forwarded-For", "192.0.2.7, 10.0.0.1"),
        ("Forwarded", 'for="[2001:db8::7]:1";proto=https, for=10.0.0.1'),
    ]
    request = client.send(Request(host="www.test", target="/path", extra_headers=fields))
    return [
        request,
        request + b"\x82\x84mask\0\0\0\0\x89\x80mask",
        request + b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffmaskdata",
        request + b"\x82\x04data",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nbody",
    ]


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
