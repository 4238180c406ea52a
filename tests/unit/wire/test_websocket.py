"""A WebSocket as a stream: the other end is wsproto's server."""

from __future__ import annotations

import os

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from pipeline.wire.websocket import WebSocket
from pipeline.wire.websocket_stream import Received
from pipeline.wire.websocket_url import WebSocketUrl

URL = WebSocketUrl("wss", "www.test", 443, "/a/path?x=1")


def accepted() -> tuple[WebSocket, WSConnection]:
    """Both ends of a WebSocket that is open."""
    client, server = WebSocket(URL), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.begin())
    (request,) = server.events()
    assert isinstance(request, Request) and (request.host, request.target) == ("www.test", "/a/path?x=1")
    assert client.receive(server.send(AcceptConnection())) == Received(is_open=True)
    return client, server


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (URL, "wss://www.test/a/path?x=1"),
        (WebSocketUrl("ws", "www.test", 8080, "/"), "ws://www.test:8080/"),
        (WebSocketUrl("wss", "fd00::1", 443, "/"), "wss://[fd00::1]/"),
    ],
)
def test_a_url_is_written_as_it_was_read(url: WebSocketUrl, text: str) -> None:
    assert str(url) == text


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_bytes_are_one_stream_both_ways_in_whatever_pieces_they_come(size: int) -> None:
    client, server = accepted()
    sent = os.urandom(3000)
    server.receive_data(client.send(sent) + client.send(sent))
    assert b"".join(event.data for event in server.events()) == 2 * sent
    wire = server.send(BytesMessage(data=sent)) + server.send(BytesMessage(data=sent))
    pieces = [client.receive(wire[at : at + size]) for at in range(0, len(wire), size)]
    assert b"".join(each.data for each in pieces) == 2 * sent
    assert not any(each.is_over or each.failure for each in pieces)


def test_a_ping_is_answered_and_an_end_is_one() -> None:
    client, server = accepted()
    server.receive_data(client.receive(server.send(Ping(payload=b"x"))).send)
    assert [type(event) for event in server.events()] == [Pong]
    assert client.receive(server.send(CloseConnection(code=1001))).is_over


def test_bytes_right_behind_the_answer_are_not_lost() -> None:
    client, server = WebSocket(URL), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.begin())
    list(server.events())
    wire = server.send(AcceptConnection()) + server.send(BytesMessage(data=b"first"))
    assert client.receive(wire) == Received(b"first", is_open=True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "has nothing at this path (status 404)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "speaks no WebSocket"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "speaks no WebSocket"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "does not reach the tunnel's server behind it"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "speaks no WebSocket"),
        (b"SSH-2.0-x\r\n\r\n", "speaks no WebSocket"),
    ],
)
def test_anything_else_is_a_failure_in_words(answer: bytes, words: str) -> None:
    client = WebSocket(URL)
    client.begin()
    got = client.receive(answer)
    assert words in got.failure and got.is_over and not got.is_open


def test_text_ends_it() -> None:
    client, server = accepted()
    assert "sends text" in client.receive(server.send(TextMessage(data="x"))).failure
