"""Where connections come in: the listening socket, shared with the other tcp workers, and the gate behind it.

Accepting never blocks, and a lack of descriptors does not spin: the socket is left alone for a moment. Whom the gate
turns away is closed at once, counted; there are most likely more of the kind, and those behind it wait outside for a
moment, to be turned away together.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

from pipeline.counters import ID
from pipeline.policy.handshake_limiter import HandshakeLimiter
from pipeline.transport.connection import Connection

ACCEPT_BURST = 64
ACCEPT_PAUSE_NS = 200_000_000  # after an accept that failed for want of descriptors
REST_NS = 10_000_000  # after somebody was turned away


class Acceptor:
    """`workers`: how many share the limits."""

    def __init__(self, fd: int, settings: dict, workers: int, counters: memoryview, epoll: select.epoll) -> None:
        self._socket = socket.socket(fileno=fd)
        self._gate = HandshakeLimiter(
            settings["max_handshakes"],
            settings["max_handshakes_per_address"],
            settings["connects_per_address"],
            workers,
        )
        self._counters = counters
        self._epoll = epoll
        self.opens_at = 0  # when the socket is looked at again; 0: it is
        epoll.register(fd, select.EPOLLIN)

    def limit(self, settings: dict) -> None:
        """Other limits from now on."""
        self._gate.limit(
            settings["max_handshakes"], settings["max_handshakes_per_address"], settings["connects_per_address"]
        )

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def accept(self, now: int) -> Iterator[tuple[socket.socket, tuple]]:
        """Some of those that wait outside and may come in, with their addresses."""
        turned_away = 0
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    self._counters[ID["tcp.accepts_failed"]] += 1
                    self._shut(now + ACCEPT_PAUSE_NS)
                    return
                break
            refusal = self._gate.opened(address[0], now)
            if refusal:
                self._counters[ID[refusal]] += 1
                turned_away += 1
                sock.close()
            else:
                yield sock, address
        if turned_away:
            self._shut(now + REST_NS)

    def settled(self, connection: Connection, proved: bool) -> None:
        """One that came in is no stranger any more, or has gone."""
        self._gate.settled(connection.host, proved)

    def _shut(self, until: int) -> None:
        self.opens_at = until
        self._epoll.modify(self.fd, 0)

    def open(self) -> None:
        """It has been left alone for long enough."""
        self.opens_at = 0
        self._epoll.modify(self.fd, select.EPOLLIN)

    def close(self) -> None:
        self._socket.close()
