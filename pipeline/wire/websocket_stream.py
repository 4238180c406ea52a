"""A WebSocket that is open, as a stream of bytes: RFC 6455. Pure, and alike at both ends.

    receive(data)   bytes have come, or b"" while there is more in those before: a Received
    send(data)      the bytes of a message with this data
    end()           the bytes that close it

Where messages begin and end means nothing: the bytes of all are one stream. A piece of a message counts when it comes,
so nothing is kept for a message, however long it says it is. A call takes FRAMES_AT_ONCE frames at most, since a byte
may come in a frame of its own, and a frame costs ten microseconds.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from wsproto import WSConnection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, RejectData, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

FRAMES_AT_ONCE = 128

NO_WEBSOCKET = "what answers there speaks no WebSocket: is it this web server, and is this the path?"
WITH_TEXT = "what answers there sends text, which is none of our server's"


class Received(NamedTuple):
    """The content of some bytes. `failure`: why there is no WebSocket, in words. `bare`: frames without contents.
    `has_more`: perhaps there are further frames."""

    data: bytes = b""
    send: bytes = b""
    is_open: bool = False
    is_over: bool = False
    failure: str = ""
    bare: int = 0
    has_more: bool = False


class WebSocketStream:
    """`talk`: of wsproto, at either end."""

    def __init__(self, talk: WSConnection, is_open: bool = False) -> None:
        self._talk = talk
        self._is_open = is_open

    def receive(self, data: bytes) -> Received:
        try:
            self._talk.receive_data(data)
            return self._take()
        except (RemoteProtocolError, LocalProtocolError):
            return Received(is_over=True, failure=NO_WEBSOCKET)

    def _take(self) -> Received:
        pieces: list[bytes | bytearray] = []
        send, over, frames, bare = b"", False, 0, 0
        for event in islice(self._talk.events(), FRAMES_AT_ONCE):
            frames += 1
            match event:
                case BytesMessage(data=piece):
                    pieces.append(piece)
                    bare += not piece
                case Ping():
                    send += self._talk.send(event.response())
                    bare += 1
                case Pong():
                    bare += 1
                case TextMessage():
                    return Received(is_over=True, failure=WITH_TEXT)
                case RejectData():
                    continue
                case CloseConnection():
                    over = True
                case _:
                    if failure := self._begin_with(event):
                        return Received(is_over=True, failure=failure)
        return Received(b"".join(pieces), send, self._is_open, over, "", bare, frames == FRAMES_AT_ONCE)

    def _begin_with(self, event: Event) -> str:
        """An event of the handshake. Why there is no WebSocket; "" if nothing speaks against it."""
        return NO_WEBSOCKET

    def send(self, data: bytes) -> bytes:
        return self._talk.send(BytesMessage(data=data))

    def end(self) -> bytes:
        try:
            return self._talk.send(CloseConnection(code=1000))
        except LocalProtocolError:  # the other end has closed it
            return b""
