"""The approach: the talk with a proxy between "TCP is connected" and our own handshake. Pure.

    begin()       the bytes to send first
    feed(data)    bytes of the proxy have come: a Step, which may have bytes to send
    closed()      the proxy has closed the connection: why, as far as that can be told

An approach takes no byte behind the proxy's answer: those belong to the other end, and `Step.used` says where they
begin. The proxy looks the server's name up, so that a client needs no DNS of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, Protocol

HTTPS_PORT = 443


class Step(NamedTuple):
    """The consequences of bytes of the proxy. `failure`: why there will be no connection, in words."""

    used: int  # of the bytes given; the rest is the other end's, or comes again with more
    send: bytes = b""
    done: bool = False  # the connection leads to the server from here on
    failure: str = ""


BRIDGED = "bridge"
"""The scheme of our own bridge, which workers dial in place of what is behind it."""


class Proxy(NamedTuple):
    """A proxy between a client and its server."""

    scheme: str  # "http", "https" or "socks5"; to workers also BRIDGED
    host: str  # an address or a name
    port: int
    login: tuple[str, str] | None = None  # user and password; of the bridge its token
    way: str = ""  # behind the bridge, in words

    def __str__(self) -> str:
        """Where it is, or what is behind the bridge."""
        return self.way or f"proxy {self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Approach(Protocol):
    """One for each connection."""

    def begin(self) -> bytes: ...

    def feed(self, data: bytes) -> Step: ...

    def closed(self) -> str: ...


Talk = Generator[tuple[bytes, int], bytes, str]
"""An approach in which each answer has a known length: it yields what to send and how many bytes to wait for, and
returns the failure, "" for none."""


class Conversation:
    """Feeds a Talk exactly what it waits for, in however many pieces that comes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._wanted = 0
        self._got = b""

    def begin(self) -> bytes:
        send, self._wanted = next(self._talk)
        return send

    def feed(self, data: bytes) -> Step:
        used, send = 0, b""
        while True:
            piece = data[used : used + self._wanted - len(self._got)]
            used += len(piece)
            self._got += piece
            if len(self._got) < self._wanted:
                return Step(used, send)
            got, self._got = self._got, b""
            try:
                more, self._wanted = self._talk.send(got)
            except StopIteration as end:
                return Step(used, send, not end.value, end.value)
            send += more


SILENT = "the proxy takes connections and says nothing: is it this proxy's port?"
CLOSED = "the proxy has closed the connection without an answer: is it this proxy's port, and may this machine use it?"
NO_LOGIN = "the proxy wants a user and a password (setting: proxy_login_file)"
FORBIDDEN = "the proxy forbids this server"
WRONG_LOGIN = "the proxy does not accept this user and password"


def forbidden(port: int) -> str:
    """The proxy does not let us go there."""
    return FORBIDDEN if port == HTTPS_PORT else f"{FORBIDDEN} or this port: many proxies allow port 443 alone"
