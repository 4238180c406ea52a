"""What a tcp worker tells the others in the peers segment: its carrier lines and its connection rows.

    tun, fec workers     which tcp worker has how many connections to a peer, which offloads and shards it accepts
    supervisor           who is connected; the rows, for `status`

Written by the inbound duty of the tcp worker alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import (
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_PARITY,
    LINK_RECEIVED_BYTES,
    RECORD_WORDS,
)
from pipeline.transport.connection import Connection
from pipeline.wire import framing


class LinkPublisher:
    """This tcp worker's lines and rows; a predecessor's are cleared."""

    def __init__(self, attachment: Attachment) -> None:
        self._peers = attachment.peers
        self._lane = attachment.me.lane
        self._words = attachment.peers.links[self._lane]
        self._offloads = attachment.settings["offloads"]
        self._free_rows = list(range(self._peers.rows))[::-1]
        for row in self._free_rows:
            self._peers.write_row(self._lane, row, None)
        for peer in range(self._peers.capacity):
            self.write(peer, ())
            self.call_for(peer, 0)

    def write(self, peer: int, established: Collection[Connection]) -> None:
        """Say what is established with a peer now. The count comes last: who reads it finds the rest in place."""
        words, at = self._words, peer * RECORD_WORDS
        offloads = self._offloads
        for connection in established:
            offloads &= connection.offloads
        words[at + LINK_OFFLOADS] = offloads
        words[at + LINK_LIGHT] = sum(connection.traffic_class == framing.LIGHT for connection in established)
        words[at + LINK_ACCEPTS_SHARDS] = bool(established) and all(
            connection.accepts_shards for connection in established
        )
        words[at + LINK_ESTABLISHED] = len(established)

    def call_for(self, peer: int, parity: int) -> None:
        """Say how many parity shards the state of a peer's connections calls for."""
        self._words[peer * RECORD_WORDS + LINK_PARITY] = parity

    def received(self, peer: int, size: int) -> None:
        self._words[peer * RECORD_WORDS + LINK_RECEIVED_BYTES] += size

    def current(self, connection: Connection) -> bool:
        """Whether a connection is of the current seat of its index."""
        return self._peers.peer_handle(connection.peer) == connection.peer_handle

    # -- rows

    def take_row(self) -> int:
        """A row for a connection, -1 if all are taken."""
        return self._free_rows.pop() if self._free_rows else -1

    def write_rows(self, connections: Iterable[Connection]) -> None:
        for connection in connections:
            self._peers.write_row(self._lane, connection.row, connection.report())

    def give_back(self, row: int) -> None:
        self._peers.write_row(self._lane, row, None)
        self._free_rows.append(row)
