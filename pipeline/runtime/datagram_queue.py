"""Datagrams that wait until the other end of a socket pair has room for them.

The kernel's queue of such a pair has the bytes of SO_SNDBUF: a few hundred short datagrams. A burst of connections may
have more to ask than that, while the other end is busy.
"""

from __future__ import annotations

import socket
from collections import deque


class DatagramQueue:
    """`limit`: datagrams that may wait here. The socket does not block."""

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._socket = sock
        self._limit = limit
        self._waiting: deque[bytes] = deque()

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def send(self, data: bytes) -> bool:
        """Send a datagram after those that wait. False if it is lost, since too many wait. OSError as flush()."""
        if len(self._waiting) >= self._limit:
            return False
        self._waiting.append(data)
        self.flush()
        return True

    def flush(self) -> None:
        """Send those for which there is room. OSError if the other end is closed, or cannot take the next one at all:
        that one is lost."""
        waiting = self._waiting
        while waiting:
            try:
                self._socket.send(waiting[0])
            except BlockingIOError:
                return
            except OSError:
                waiting.popleft()
                raise
            waiting.popleft()
