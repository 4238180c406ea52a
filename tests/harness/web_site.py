"""A web server of a test's own: it answers each connection as a function says, in a thread, and keeps what it got."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

ANSWER = b"HTTP/1.1 400 Bad Request\r\nServer: site\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsorry"
SECONDS = 10.0


def answer_at_once(connection: socket.socket) -> bytes:
    """Take the first bytes, answer, and end. Those bytes."""
    first = connection.recv(1 << 20)
    if first:
        connection.sendall(ANSWER)
    return first


class WebSite:
    """`serve(connection)` returns what there is to keep; the connection is closed then."""

    def __init__(self, serve: Callable[[socket.socket], bytes] = answer_at_once) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.got: list[bytes] = []
        """Of the connections that have said anything, in the order of their ends."""
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        """accept() would reserve a descriptor while it waits, which a worker that maps memory may need."""
        with suppress(OSError):
            while select.select([self._listener], [], []):
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._run, args=(connection,)))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        with connection, suppress(OSError):
            if kept := self._serve(connection):
                self.got.append(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._connections):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
