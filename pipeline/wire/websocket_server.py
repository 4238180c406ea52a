"""A WebSocket at the end of a server: the head of a request, and the answers to it. Pure; then it is a WebSocketStream.

    Head(data)              of a request: whether it is whole, and which bytes came behind it
    read_upgrade(head)      an Upgrade, or None for any other request
    path_of, values_of      what a head says
    refusal(head)           the answer of a web server that has nothing there
    for_one_answer(head)    the head for another web server, which is to close the connection behind its answer

A head is bounded, and nothing but the request line and the fields of an upgrade are read from it.
"""

from __future__ import annotations

from typing import NamedTuple

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from pipeline.wire.websocket_stream import WebSocketStream

HEAD_BYTES_MAX = 32 << 10  # nginx passes on that much, by default
HEAD_END = b"\r\n\r\n"
LINE_END = b"\r\n"
KEPT_OPEN = (b"connection:", b"keep-alive:", b"proxy-connection:")

PAGE = "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n</body>\r\n</html>\r\n"
NOT_FOUND, BAD_REQUEST, UNAVAILABLE = "404 Not Found", "400 Bad Request", "503 Service Unavailable"


class Head:
    """Add bytes until it is whole, too long, or known to be none."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._end = self._line_end = -1
        self.is_no_request = False  # its first line is none of HTTP/1

    def add(self, data: bytes) -> None:
        searched = max(0, len(self._data) - len(HEAD_END) + 1)
        self._data += data
        if self._line_end < 0:
            self._line_end = self._data.find(LINE_END, searched)
            self.is_no_request = self._line_end >= 0 and not is_request(self._data)
        if self._end < 0:
            self._end = self._data.find(HEAD_END, searched)

    @property
    def is_whole(self) -> bool:
        return 0 <= self._end <= HEAD_BYTES_MAX - len(HEAD_END)

    @property
    def is_too_long(self) -> bool:
        return not self.is_whole and len(self._data) >= HEAD_BYTES_MAX

    @property
    def head(self) -> bytes:
        return bytes(self._data[: self._end + len(HEAD_END)] if self.is_whole else self._data)

    @property
    def rest(self) -> bytes:
        """The bytes behind it."""
        return bytes(self._data[self._end + len(HEAD_END) :]) if self.is_whole else b""


class Upgrade(NamedTuple):
    """A request for a WebSocket, with the answer that it is open."""

    answer: bytes
    stream: WebSocketStream


def read_upgrade(head: bytes) -> Upgrade | None:
    talk = WSConnection(ConnectionType.SERVER)
    try:
        talk.receive_data(head)
        for event in talk.events():
            if isinstance(event, Request):
                return Upgrade(talk.send(AcceptConnection()), WebSocketStream(talk, is_open=True))
    except (RemoteProtocolError, LocalProtocolError, ValueError):
        pass
    return None


def is_request(head: bytes | bytearray) -> bool:
    """Whether the first line is one of HTTP/1."""
    return head.partition(LINE_END)[0].rpartition(b" ")[2].startswith(b"HTTP/1.")


def path_of(head: bytes) -> bytes:
    """As it stands in the request line."""
    words = head.partition(LINE_END)[0].split(b" ")
    return words[1] if len(words) == 3 else b""


def values_of(head: bytes, name: bytes) -> list[bytes]:
    """Those of a field, in the order of its lines. `name`: in lower case."""
    pairs = [line.partition(b":") for line in head.split(LINE_END)[1:]]
    return [value.strip() for found, _, value in pairs if found.lower() == name]


def refusal(head: bytes, status: str = "") -> bytes:
    """`status`: that of the answer; "": 404, or 400 for no request."""
    status = status or (NOT_FOUND if is_request(head) else BAD_REQUEST)
    page = PAGE.format(status)
    fields = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
    return (fields if head.startswith(b"HEAD ") else fields + page).encode()


def for_one_answer(head: bytes) -> bytes:
    """A proxy may put several requests on one connection, and only the first one is read here. An upgrade is the last
    one of its connection, and stays as it is."""
    if not is_request(head) or b"\r\nupgrade:" in head.lower():
        return head
    first, *lines = head.removesuffix(HEAD_END).split(LINE_END)
    kept = [line for line in lines if not line.lower().startswith(KEPT_OPEN)]
    return LINE_END.join([first, *kept, b"Connection: close"]) + HEAD_END
