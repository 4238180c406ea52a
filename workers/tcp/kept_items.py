"""The items that a connection on one of several uplinks has sent, until the other end's kernel has acknowledged them.

Bytes that a socket has taken are lost to us with its connection. And they are late by many round trips if its uplink
has gone without a word. So on a client with several uplinks, and at its server, each connection keeps a copy of every
item until it is acknowledged. If the uplink falls silent, or the connection ends, others send the items once more
(`workers.tcp.path_watch`). Blocks are numbered, and the other end drops what it has already.

An item is acknowledged when the bytes that the kernel still holds (SIOCOUTQ) are fewer than those given to it since
the item's end. The other end's process may not have read it yet, and never will if the connection ends. So an item
stays for READ_NS after that, for the end of the connection alone. Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, NamedTuple

from pipeline.transport.connection import Connection
from pipeline.transport.tcp_info import unacknowledged_bytes
from workers.tcp.send_item import SendItem

READ_NS = 100_000_000
"""A process that reads has read what arrived so long ago."""


UNSENT = 16384  # bytes that may wait in the kernel, so that it never waits for us
FIRST_ROOM = 10 * 1460 + UNSENT  # of the initial window (RFC 6928)


class KeptSource:
    """The holder of copies that stand in no slot and count nowhere."""

    in_ring: ClassVar[bool] = False
    lane = 0

    def finish(self, item: SendItem) -> None:
        """Nothing waits for it."""


KEPT = KeptSource()


class _Kept(NamedTuple):
    end: int  # of the item, in bytes given to the socket
    sent_ns: int
    item: SendItem


class KeptItems:
    """Those of one connection, in the order in which they were sent."""

    def __init__(self, connection: Connection) -> None:
        self._socket = connection.socket
        self._given = 0  # bytes to the socket
        self._acknowledged = 0  # of these, when it was last asked
        self._kept: deque[_Kept] = deque()
        self._arrived: deque[tuple[int, SendItem]] = deque()  # acknowledged; when that was noticed
        self.room = FIRST_ROOM  # bytes that it can have on their way, and a few that wait for that
        self.rtt_us = 0
        self.now = 0  # of the burst, CLOCK_MONOTONIC ns

    def __len__(self) -> int:
        """Items that are not acknowledged."""
        return len(self._kept)

    @property
    def is_empty(self) -> bool:
        """Whether there is no item that may have to be sent again."""
        return not (self._kept or self._arrived)

    @property
    def oldest_ns(self) -> int:
        """When the oldest one was sent. There is one."""
        return self._kept[0].sent_ns

    @property
    def is_answered(self) -> bool:
        """Whether the other end's kernel has acknowledged all that the socket has taken."""
        return not unacknowledged_bytes(self._socket)

    @property
    def outstanding(self) -> int:
        """Bytes that the socket has taken, and that were not acknowledged at the last look."""
        return self._given - self._acknowledged

    def room_left(self) -> int:
        """Bytes up to `room`, or none. The kernel is asked whether that has changed, if there are none."""
        if self.outstanding >= self.room:
            self._acknowledged = self._given - unacknowledged_bytes(self._socket)
        return max(0, self.room - self.outstanding)

    def note_given(self, sent: int) -> None:
        """The socket has taken so many bytes; note_finished() follows for the items that end among them."""
        self._given += sent

    def note_finished(self, item: SendItem, behind: int) -> None:
        """The socket has taken all of an item, and so many bytes behind it; less than 0: these are yet to come."""
        self._kept.append(_Kept(self._given - behind, self.now, copy_of(item)))

    def drop_acknowledged(self, now: int) -> None:
        kept = self._kept
        acknowledged = self._acknowledged = self._given - unacknowledged_bytes(self._socket)
        while kept and kept[0].end <= acknowledged:
            self._arrived.append((now, kept.popleft().item))
        while self._arrived and now - self._arrived[0][0] > READ_NS:
            self._arrived.popleft()

    def take(self) -> list[tuple[int, SendItem]]:
        """All that is not acknowledged, and when it was sent; it is kept no longer."""
        items = [(each.sent_ns, each.item) for each in self._kept]
        self._kept.clear()
        return items

    def take_arrived(self) -> list[SendItem]:
        """All that was acknowledged, and that the other end's process may not have read."""
        items = [item for _, item in self._arrived]
        self._arrived.clear()
        return items


def copy_of(item: SendItem) -> SendItem:
    """A copy that needs no slot."""
    return item._replace(source=KEPT, head=item.head and bytes(item.head), body=bytes(item.body))
