"""A WebSocket as a stream of bytes, at the end of a client: RFC 6455. Pure.

    begin()         the request to send first
    receive(data)   bytes have come: a Received
    send(data)      the bytes of a message with this data
    end()           the bytes that close it

Where messages begin and end means nothing: the bytes of all are one stream. The request is that of a browser without
its name, so that every web server passes it on.
"""

from __future__ import annotations

from typing import NamedTuple

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from pipeline.wire.websocket_url import WebSocketUrl

NO_WEBSOCKET = "what answers there speaks no WebSocket: is it this web server, and is this the path?"
WITH_TEXT = "what answers there sends text, which is none of our server's"

OF_STATUS = {
    400: NO_WEBSOCKET,
    401: "the web server wants a login, which a tunnel has no way to give",
    403: "the web server forbids this path",
    404: "the web server has nothing at this path",
    426: NO_WEBSOCKET,
    502: "the web server does not reach the tunnel's server behind it",
    503: "the web server does not reach the tunnel's server behind it",
    504: "the web server gets no answer from the tunnel's server behind it",
}


class Received(NamedTuple):
    """The content of some bytes. `failure`: why there is no WebSocket, in words."""

    data: bytes = b""
    send: bytes = b""
    is_open: bool = False
    is_over: bool = False
    failure: str = ""


class WebSocket:
    """One for each connection."""

    def __init__(self, url: WebSocketUrl) -> None:
        self._url = url
        self._talk = WSConnection(ConnectionType.CLIENT)
        self._is_open = False

    def begin(self) -> bytes:
        return self._talk.send(Request(host=self._url.authority, target=self._url.path))

    def receive(self, data: bytes) -> Received:
        try:
            self._talk.receive_data(data)
            return self._take()
        except (RemoteProtocolError, LocalProtocolError):
            return Received(is_over=True, failure=NO_WEBSOCKET)

    def _take(self) -> Received:
        pieces: list[bytes] = []
        send, over = b"", False
        for event in self._talk.events():
            match event:
                case AcceptConnection():
                    self._is_open = True
                case BytesMessage(data=piece):
                    pieces.append(bytes(piece))
                case Ping():
                    send += self._talk.send(event.response())
                case TextMessage():
                    return Received(is_over=True, failure=WITH_TEXT)
                case RejectConnection(status_code=status):
                    words = OF_STATUS.get(status, NO_WEBSOCKET)
                    return Received(is_over=True, failure=f"{words} (status {status})")
                case RejectData():
                    continue
                case CloseConnection():
                    over = True
        return Received(b"".join(pieces), send, self._is_open, over)

    def send(self, data: bytes) -> bytes:
        return self._talk.send(BytesMessage(data=data))

    def end(self) -> bytes:
        try:
            return self._talk.send(CloseConnection(code=1000))
        except LocalProtocolError:  # the other end has closed it
            return b""
