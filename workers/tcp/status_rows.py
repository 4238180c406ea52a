"""The connections' rows in the peer table, for `status`: given out, and refreshed in turn."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.transport.connection import CLOSED, Connection
from workers.tcp.link_publisher import LinkPublisher

ROWS_PER_REFRESH = 64  # a row costs a system call (TCP_INFO) and an encoding: about 10 us


class StatusRows:
    """A connection without a row has the status row -1."""

    def __init__(self, publisher: LinkPublisher) -> None:
        self._publisher = publisher
        self._queue: list[Connection] = []  # to be refreshed next

    def assign(self, connection: Connection) -> None:
        connection.receive.status_row = self._publisher.acquire_row()

    def release(self, connection: Connection) -> None:
        if connection.receive.status_row >= 0:
            self._publisher.release_row(connection.receive.status_row)

    def write(self, connection: Connection) -> None:
        if connection.receive.status_row >= 0:
            self._publisher.write_rows([connection])

    def refresh(self, connections: Iterable[Connection]) -> None:
        """Refresh some rows, beginning where the last call has ended. `connections`: all that there are."""
        if not self._queue:
            self._queue = list(connections)
        batch, self._queue = self._queue[:ROWS_PER_REFRESH], self._queue[ROWS_PER_REFRESH:]
        self._publisher.write_rows(each for each in batch if each.state is not CLOSED and each.receive.status_row >= 0)
