"""A client and the web server that it talks to: bytes of the one go to the other, until one of them has ended.

    watch          the events that the client's socket and the web server's are to be watched for
    step(now)      move what can be moved; False when all is over. OSError: one of the two has broken off;
                   WebServerFailed: the web server could not be reached

Each direction has one piece under way, BUFFER_BYTES at most, and nothing is read while it is not gone. So the slower
end sets the pace, as without us. In TLS the client's bytes are decrypted and the web server's sealed; without a channel
they go as they are.

    the client ends its direction        so does the web server's socket; its answer still arrives
    the web server ends the connection   the client gets the rest, close_notify and FIN, and what it still sends is
                                         read and forgotten for LINGER_NS, since a reset could destroy that rest. If
                                         the web server has said nothing, its patience has ended: as with nginx,
                                         there is no close_notify then
    either of them resets it             so does the other connection

A reset of the client goes unseen while its direction is at an end or stands still. Then the web server's end is the
end of both, or the limit on such clients.
"""

from __future__ import annotations

import os
import select
import socket
from typing import NamedTuple

from pipeline.transport.connection import Connection
from pipeline.transport.tls_channel import RECORDS_MOST

BUFFER_BYTES = 65536
MOVES_PER_STEP = 4  # in each direction, before others have their turn: a millisecond at most
LINGER_NS = 5_000_000_000  # as nginx (lingering_timeout)


class Watch(NamedTuple):
    """Events of epoll for each of the two sockets; 0: it is not watched at all, not even for a reset."""

    client: int
    web: int


class WebServerFailed(OSError):
    """No connection to the web server came about."""


class Splice:
    """`web`: a socket whose connection may still be under way; `to_web`: bytes for it that are here already."""

    def __init__(self, connection: Connection, web: socket.socket, to_web: bytes, now: int) -> None:
        self.connection = connection
        connection.records_at_once = RECORDS_MOST
        self.web = web
        self.client_bytes = self.web_bytes = 0  # that each of them has sent
        self.last_ns = now  # when a byte moved last
        self._to_web, self._to_client = to_web, b""
        self._connected = False  # the web server's socket
        self._client_ended = self._web_told = False
        self._web_ended = self._client_notified = self._client_told = False
        self._linger_until = 0

    @property
    def watch(self) -> Watch:
        channel = self.connection.channel
        client = web = 0
        if not self._connected:
            return Watch(0, select.EPOLLOUT)
        if self._client_told or not (self._client_ended or self._to_web or self._web_ended):
            client |= select.EPOLLIN
        if self._to_client:
            client |= select.EPOLLOUT
        if not (self._web_ended or self._to_client):
            web |= select.EPOLLIN
        if not self._web_ended and (self._to_web or (channel is not None and channel.pending)):
            web |= select.EPOLLOUT
        return Watch(client, web)

    @property
    def is_connecting(self) -> bool:
        return not self._connected

    def step(self, now: int) -> bool:
        if not self._connected and not self._connect():
            return True
        for _ in range(MOVES_PER_STEP):
            if self._client_told:
                return self._linger(now)
            moved = self._from_client() | self._from_web()
            if not moved:
                break
            self.last_ns = now
        self._pass_on_ends(now)
        return True

    def is_over(self, now: int) -> bool:
        """Whether the client has had its time to end a connection that the web server has ended."""
        return self._client_told and now >= self._linger_until

    def _connect(self) -> bool:
        """Whether the web server has taken the connection."""
        error = self.web.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise WebServerFailed(error, os.strerror(error))
        try:
            self.web.getpeername()
        except OSError:
            return False
        self._connected = True
        return True

    # -- client to web server

    def _from_client(self) -> bool:
        moved = False
        if not (self._to_web or self._client_ended or self._web_ended):
            try:
                self._to_web = self._receive()
                self._client_ended = not self._to_web
                self.client_bytes += len(self._to_web)
                moved = True
            except BlockingIOError:
                pass
        if self._to_web and not self._web_ended:
            self._to_web, sent = _send(self.web, self._to_web)
            moved |= sent
        return moved

    def _receive(self) -> bytes:
        connection = self.connection
        try:
            return connection.receive_bytes(BUFFER_BYTES)
        except ConnectionResetError:
            if connection.channel is None:
                raise
            return b""  # the end of the stream without a close_notify, as many clients end it

    # -- web server to client

    def _from_web(self) -> bool:
        moved = False
        connection = self.connection
        if not (self._to_client or self._web_ended):
            try:
                data = self.web.recv(BUFFER_BYTES)
                self._web_ended = not data
                self.web_bytes += len(data)
                if data:
                    self._to_client = connection.seal(data)
                moved = True
            except BlockingIOError:
                if connection.has_tls_output:
                    self._to_client = connection.seal(b"")
        if self._to_client:
            self._to_client, sent = _send(connection.socket, self._to_client)
            moved |= sent
        return moved

    # -- the end

    def _pass_on_ends(self, now: int) -> None:
        if self._client_ended and not (self._to_web or self._web_told or self._web_ended):
            self._web_told = True
            self.web.shutdown(socket.SHUT_WR)
        if self._web_ended and not (self._to_client or self._client_told):
            if not self._client_notified:
                self._client_notified = True
                if self.connection.channel is not None and self.web_bytes:
                    self._to_client, _ = _send(self.connection.socket, self.connection.channel.close_notify())
            if not self._to_client:
                self._client_told = True
                self._linger_until = now + LINGER_NS
                self.connection.socket.shutdown(socket.SHUT_WR)

    def _linger(self, now: int) -> bool:
        """Read and forget. False at the client's end."""
        try:
            return bool(self.connection.socket.recv(BUFFER_BYTES)) and now < self._linger_until
        except BlockingIOError:
            return True


def _send(sock: socket.socket, data: bytes) -> tuple[bytes, bool]:
    """Send what the socket takes: what is left, and whether it took anything."""
    try:
        sent = sock.send(data)
    except BlockingIOError:
        return data, False
    return data[sent:], True
