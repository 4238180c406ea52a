"""A WebSocket at the end of a client: the request, and the web server's answer. Pure; then it is a WebSocketStream.

    begin()   the request to send first

The request is that of a browser without its name, so that every web server passes it on.
"""

from __future__ import annotations

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, RejectConnection, Request

from pipeline.wire.websocket_stream import NO_WEBSOCKET, WebSocketStream
from pipeline.wire.websocket_url import WebSocketUrl

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


class WebSocket(WebSocketStream):
    """One for each connection."""

    def __init__(self, url: WebSocketUrl) -> None:
        super().__init__(WSConnection(ConnectionType.CLIENT))
        self._url = url

    def begin(self) -> bytes:
        return self._talk.send(Request(host=self._url.authority, target=self._url.path))

    def _begin_with(self, event: Event) -> str:
        match event:
            case AcceptConnection():
                self._is_open = True
                return ""
            case RejectConnection(status_code=status):
                return f"{OF_STATUS.get(status, NO_WEBSOCKET)} (status {status})"
        return NO_WEBSOCKET
