"""The established connections of a tcp worker, as its two duties share them.

The inbound duty adds and removes: each time it replaces the tuple and counts `version` up. The outbound duty notes in
`seen_version` which version it works with. A removed connection is retired: its socket is closed once the outbound
duty has seen a version without it. Otherwise the kernel might give the closed socket's number to the next one at once.
"""

from __future__ import annotations

from collections import deque

from pipeline.transport.connection import Connection

NOTES_WAITING = 256


class ConnectionList:
    """Times are CLOCK_MONOTONIC ns."""

    def __init__(self, now: int) -> None:
        # inbound duty
        self.established: tuple[Connection, ...] = ()
        self.version = 0
        self.empty_since_ns = now
        self.probe_ns = 0  # a connection that has sent nothing since then sends a keepalive: is the other end there?
        self.question_ns = 0  # an end that answers, and was not asked since then, is asked whether its program is there
        self.leaving = False  # this end is about to stop, and tells each other end
        self.notes: deque[tuple[int, bytes]] = deque(maxlen=NOTES_WAITING)  # to peer handles; the outbound duty pops
        self._retired: list[tuple[int, Connection]] = []  # with the version that is the first without it
        # outbound duty
        self.seen_version = 0

    def add(self, connection: Connection) -> None:
        self.established += (connection,)
        self.version += 1

    def remove(self, connection: Connection, now: int) -> None:
        """Take a connection off the list; close_retired() closes its socket later."""
        self.established = tuple(c for c in self.established if c is not connection)
        if not self.established:
            self.empty_since_ns = now
        self.version += 1
        self._retired.append((self.version, connection))

    def close_retired(self) -> None:
        """Close the sockets of removed connections that the outbound duty cannot use any more."""
        if not self._retired:
            return
        seen = self.seen_version
        for version, connection in self._retired:
            if seen >= version:
                connection.socket.close()
        self._retired = [item for item in self._retired if seen < item[0]]

    def close_all(self) -> None:
        """Close every socket, once neither duty runs any more."""
        for connection in (*self.established, *(retired for _, retired in self._retired)):
            connection.socket.close()
