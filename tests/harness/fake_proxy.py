"""Proxies of a test's own. FakeProxy takes connections, reads a request and answers as it is told, byte by byte if need
be. ForwardingProxy connects with the server that a request names.

    with FakeProxy(answer) as proxy:    proxy.port, and proxy.asked: the first bytes of each connection
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

REQUEST_BYTES_MAX = 4096


class FakeProxy:
    """`answer`: to the first bytes of a connection; None: silence. `closes`: hang up behind it."""

    def __init__(self, answer: bytes | None, *, in_pieces: bool = False, closes: bool = False) -> None:
        self._answer, self._in_pieces, self._closes = answer, in_pieces, closes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[bytes] = []
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)
        for sock in (self._listener, *self._taken):
            sock.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._taken.append(sock)
                sock.settimeout(10.0)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._converse(sock)

    def _converse(self, sock: socket.socket) -> None:
        with suppress(OSError):
            self.asked.append(sock.recv(REQUEST_BYTES_MAX))
            answer = self._answer or b""
            for piece in [answer[at : at + 1] for at in range(len(answer))] if self._in_pieces else [answer]:
                sock.sendall(piece)
            if self._closes:
                sock.shutdown(socket.SHUT_RDWR)


class ForwardingProxy:
    """It connects everybody who asks, as an HTTP proxy does, with `asked` for the first lines of requests."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[str] = []
        self._taken: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> ForwardingProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10.0)
        for sock in self._taken:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(10.0)
        for sock in (self._listener, *self._taken):
            sock.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._taken.append(near)
                line = near.recv(REQUEST_BYTES_MAX).decode().partition("\r\n")[0]
                self.asked.append(line)
                host, _, port = line.split()[1].rpartition(":")
                far = socket.create_connection((host, int(port)), 10.0)
                self._taken.append(far)
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for source, sink in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._carry, args=(source, sink)))
                    self._threads[-1].start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
