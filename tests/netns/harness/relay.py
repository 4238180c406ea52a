"""Somebody on the path: a relay on a node that records every byte of each connection that it passes on."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from contextlib import suppress
from itertools import count
from types import TracebackType

from tools.lab.network import Node


class Relay:
    """Accepts connections at `address` of a node and records what it passes on to `target`, by direction."""

    def __init__(self, node: Node, target: tuple[str, int]) -> None:
        self._node, self._target = node, target
        self._listener = node.socket()
        self._listener.bind((node.address, 0))
        self._listener.listen(64)
        self.address = f"{node.address}:{self._listener.getsockname()[1]}"
        self.recorded: dict[tuple[int, str], bytearray] = defaultdict(bytearray)
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Relay:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        for number in count():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = self._node.socket()
            far.connect(self._target)
            self._sockets += [near, far]
            for source, sink, direction in ((near, far, "to server"), (far, near, "to client")):
                thread = threading.Thread(target=self._pump, args=(source, sink, (number, direction)), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, key: tuple[int, str]) -> None:
        try:
            while data := source.recv(65536):
                self.recorded[key] += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one end is gone: so is its connection for the other
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
