"""The HTTP server: one thread and one selector for all viewers and scrapers; every number in it is bounded.

    Server(listener, answer)    `answer` makes an Answer of a Request; it must not wait
    turn(seconds)               serve what is ready, wait so long at most

    request          REQUEST_BYTES_MAX bytes and REQUEST_SECONDS, from its first byte to its last
    answer           ANSWER_SECONDS from the first byte to the last: a reader that is slower is dropped
    silence          IDLE_SECONDS between two requests
    connections      CONNECTIONS_MAX. For one more, the one that has been silent longest ends, or else the slowest

A body may be shared by many connections, and is not copied for them. A client that is slow, or sends a byte now and
then, costs a descriptor and a few hundred bytes for so long.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

from pipeline.exporter.request import REQUEST_BYTES_MAX, Refused, Request, take
from pipeline.log import LOG, printable

CONNECTIONS_MAX = 64
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 20.0
IDLE_SECONDS = 75.0
END_SECONDS = 1.0
FAULTS_LOGGED = 10
TEXT = "text/plain; charset=utf-8"
ACCEPTS_A_TURN = 16
NO_ROOM_SECONDS = 0.1  # a connection that cannot be accepted stays readable, and must not take a core
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Answer(NamedTuple):
    """`headers`: beside those that every answer has."""

    status: int
    kind: str  # Content-Type
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _Connection:
    """`until`: when it ends unless something happens. `sending`: what is left of answers, or nothing."""

    def __init__(self, sock: socket.socket, address: str, now: float) -> None:
        self.sock = sock
        self.address = address
        self.received = b""
        self.sending: list[memoryview] = []
        self.is_last = False  # it ends once everything is sent
        self.is_ending = False  # everything is sent: what still arrives is thrown away
        self.until = now + REQUEST_SECONDS

    @property
    def is_idle(self) -> bool:
        return not self.received and not self.sending


class Server:
    """`common`: headers of every answer."""

    def __init__(
        self, listener: socket.socket, answer: Callable[[Request, str], Answer], common: Mapping[str, str]
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._common = "".join(f"{name}: {value}\r\n" for name, value in common.items())
        self._connections: dict[socket.socket, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._faults = 0
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def turn(self, seconds: float) -> None:
        """Serve what is ready."""
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data.sock in self._connections:  # an earlier event may have ended it
                self._serve(key.data, events)
        now = time.monotonic()
        for connection in [each for each in self._connections.values() if each.until < now]:
            self._end(connection)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._end(connection)
        self._selector.close()
        self._listener.close()

    # -- connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    continue  # the client has gone already
                if not self._make_room():
                    time.sleep(NO_ROOM_SECONDS)
                return
            if len(self._connections) >= CONNECTIONS_MAX:
                self._make_room()
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(sock, str(address[0]), time.monotonic())
            self._connections[sock] = connection
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _make_room(self) -> bool:
        """End the connection that is missed least, if there is one: an idle one, or the one that ends first anyway."""
        if not self._connections:
            return False
        self._end(min(self._connections.values(), key=lambda each: (not each.is_idle, each.until)))
        return True

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._receive(connection):
                self._end(connection)
            elif not connection.is_ending:
                self._advance(connection)
        except OSError:
            self._end(connection)

    def _receive(self, connection: _Connection) -> bool:
        """Whether the connection goes on. While an answer is being sent, nothing is read."""
        if connection.sending:
            return True
        try:
            data = connection.sock.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return True
        if connection.is_ending:
            return bool(data)
        if not connection.received:
            connection.until = time.monotonic() + REQUEST_SECONDS
        connection.received += data
        return bool(data)

    def _advance(self, connection: _Connection) -> None:
        """Answer the requests that have arrived, one after the other, as far as the client takes the answers."""
        while True:
            if connection.sending and not self._send(connection):
                self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
                return
            if connection.is_last:
                self._begin_end(connection)
                return
            found = take(connection.received)
            if found is None:
                break
            self._begin_answer(connection, found)
        if not connection.received:
            connection.until = time.monotonic() + IDLE_SECONDS
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _begin_answer(self, connection: _Connection, found: tuple[Request, int] | Refused) -> None:
        if isinstance(found, Refused):
            allow = {"Allow": "GET, HEAD"} if found.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
            answer = Answer(found.status, TEXT, f"{found.reason}\n".encode(), allow)
            connection.is_last, has_body, keeps = True, True, False
        else:
            request, length = found
            connection.received = connection.received[length:]
            answer = self._answer_surely(request, connection.address)
            connection.is_last, has_body, keeps = not request.keeps_alive, request.method != "HEAD", request.keeps_alive
        connection.until = time.monotonic() + ANSWER_SECONDS
        connection.sending = [memoryview(self._head(answer, keeps))]
        if has_body and answer.body:
            connection.sending.append(memoryview(answer.body))

    def _answer_surely(self, request: Request, address: str) -> Answer:
        """An exception is a fault of this program. It costs this answer, and is in the log the first few times."""
        try:
            return self._answer(request, address)
        except Exception as error:
            self._faults += 1
            if self._faults <= FAULTS_LOGGED:
                LOG.error("the answer to %s failed", printable(request.path), exc_info=True)
            return Answer(500, TEXT, f"a fault of the exporter: {type(error).__name__}; its log has more\n".encode())

    def _head(self, answer: Answer, keeps: bool) -> bytes:
        more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        return (
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            f"Connection: {'keep-alive' if keeps else 'close'}\r\n"
            f"{self._common}{more}\r\n"
        ).encode("latin-1")

    def _send(self, connection: _Connection) -> bool:
        """Whether everything has been sent."""
        while connection.sending:
            part = connection.sending[0]
            try:
                sent = connection.sock.sendmsg(connection.sending)
            except BlockingIOError:
                return False
            while connection.sending and sent >= len(part):
                sent -= len(part)
                connection.sending.pop(0)
                part = connection.sending[0] if connection.sending else part
            if connection.sending and sent:
                connection.sending[0] = part[sent:]
        return True

    def _begin_end(self, connection: _Connection) -> None:
        """Say that nothing follows, and wait for the client to close: unread bytes would destroy the answer (RST)."""
        connection.is_ending = True
        connection.until = time.monotonic() + END_SECONDS
        connection.sock.shutdown(socket.SHUT_WR)
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _end(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock]
        connection.sock.close()
