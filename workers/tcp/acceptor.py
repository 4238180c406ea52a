"""The listening socket of a server's tcp worker, behind the handshake limiter. Other tcp workers have it as well.

accept() never blocks. A connection that the limiter rejects is closed at once and counted. After a rejection accepting
pauses for REJECTED_PAUSE_NS: a flood waits in the kernel's queue meanwhile, and is rejected in batches. After an accept
that failed, most likely for want of descriptors, accepting pauses for FAILED_PAUSE_NS, so that it does not spin.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

from pipeline.counters import ID
from pipeline.policy.handshake_limiter import HandshakeLimiter
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.address import SocketAddress

ACCEPT_BURST = 64  # connections accepted on one event, before others have their turn
FAILED_PAUSE_NS = 200_000_000
REJECTED_PAUSE_NS = 10_000_000

NOTHING_WRONG = (errno.EAGAIN, errno.ECONNABORTED)  # nothing waits; a client has given up


class Acceptor:
    """`workers`: how many share the limits. Times are CLOCK_MONOTONIC ns."""

    def __init__(
        self, fd: int, settings: WorkerSettings, workers: int, counters: memoryview, epoll: select.epoll
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        self._limiter = HandshakeLimiter(
            settings.max_handshakes, settings.max_handshakes_per_address, settings.connects_per_address, workers
        )
        self._counters = counters
        self._epoll = epoll
        self._resume_at = 0  # 0: not paused
        epoll.register(fd, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def set_limits(self, settings: WorkerSettings) -> None:
        self._limiter.set_limits(
            settings.max_handshakes, settings.max_handshakes_per_address, settings.connects_per_address
        )

    def accept(self, now: int) -> Iterator[tuple[socket.socket, SocketAddress]]:
        """The connections that wait and may begin a handshake; at most ACCEPT_BURST are looked at."""
        rejected = False
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = self._socket.accept()
            except OSError as error:
                if error.errno not in NOTHING_WRONG:
                    self._counters[ID["tcp.accepts_failed"]] += 1
                    self._pause(now + FAILED_PAUSE_NS)
                    return
                break
            rejection = self._limiter.try_begin(address[0], now)
            if rejection:
                self._counters[ID[rejection]] += 1
                rejected = True
                sock.close()
            else:
                yield sock, address
        if rejected:
            self._pause(now + REJECTED_PAUSE_NS)

    def handshake_done(self, host: str, proved: bool) -> None:
        """The handshake of an accepted connection is over: the client has proved who it is, or the connection has
        ended."""
        self._limiter.handshake_done(host, proved)

    def tick(self, now: int) -> None:
        """Call often: it ends a pause."""
        if self._resume_at and now >= self._resume_at:
            self._resume_at = 0
            self._epoll.modify(self.fd, select.EPOLLIN)

    def _pause(self, until: int) -> None:
        self._resume_at = until
        self._epoll.modify(self.fd, 0)

    def close(self) -> None:
        self._socket.close()
