"""The send queue of one connection: what waits for its socket, and how far that has been sent.

    unsent_tail    bytes that stand in no slot, ahead of everything else
    partial        the item of which a part has been sent; it is finished before any other
    light, bulk    whole items; light ones go first

The items (`workers.tcp.send_item`) are sent from their slots.
On a connection with an uplink, items are kept until they are acknowledged (`workers.tcp.kept_items`).

In TLS, which is compat's, an item counts as sent once it is sealed: its ciphertext waits in `unsent_tail`, and its slot
goes on.

Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from pipeline.transport.connection import Connection
from workers.tcp.kept_items import KeptItems
from workers.tcp.send_item import SendItem

BURST_VIEWS = 64  # pieces in one sendmsg; IOV_MAX is 1024 (linux/uio.h)
BURST_BYTES = 262144  # and their bytes: more would not fit a socket's unsent limit anyway
SEAL_BYTES = 65536  # the limit in TLS: sealed bytes stand ahead of all that comes later


Pieces = list[bytes | bytearray | memoryview]
"""For one sendmsg."""

Offered = list[tuple[int, int]]
"""Of each frame among the pieces of a sendmsg, if its records are sealed: which piece is its first, and its bytes."""


class SendQueue:
    """The items that wait for one connection, and bytes without a slot."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.light: deque[SendItem] = deque()
        self.bulk: deque[SendItem] = deque()
        self.partial: SendItem | None = None
        self.partial_sent = 0  # bytes of `partial`
        self.unsent_tail: bytes | memoryview = b""
        self.tail_is_block = False  # the tail is the rest of a block whose slot has gone on
        self.full_since = 0
        self.retry_at = 0  # when a connection that has been full for long is tried again
        self.stalled = False  # full for so long that others carry what waits
        self.broken = False  # a write failed: the inbound duty will take the connection off the list
        self.burst_bytes = BURST_BYTES  # in one call
        self.mixed = False  # copied items may stand behind items that are in slots
        self.kept: KeptItems | None = None  # what was sent and is not acknowledged, if the connection has an uplink

    @property
    def idle(self) -> bool:
        return not (self.light or self.bulk or self.partial or self.unsent_tail)

    @property
    def path(self) -> int:
        """The number of its uplink."""
        uplink = self.connection.uplink
        return uplink.number if uplink is not None else 0

    @property
    def late(self) -> bool:
        """Whether its uplink is silent: it gets nothing more, unless all are."""
        return self.connection.send.late

    @property
    def rtt_us(self) -> int:
        """The round trip on its uplink at the last look; 0 without one."""
        return self.kept.rtt_us if self.kept is not None else 0

    @property
    def load(self) -> float:
        """On an uplink, how much it holds of what it can have on its way; with 1 or more it is full."""
        kept = self.kept
        if kept is None:
            return 0.0
        return (kept.outstanding + sum(item.size for item in self.bulk)) / kept.room

    def of_class(self, light: bool) -> deque[SendItem]:
        return self.light if light else self.bulk

    def send(self, bulk: bool = True) -> tuple[int, int, bool]:
        """Send what one call takes: bytes sent, items finished, and whether the socket took all that was offered.

        Without `bulk`, light items alone, behind what has begun.

        BlockingIOError if the socket takes nothing, OSError if the connection is broken.
        """
        channel = self.connection.channel
        if channel is None:
            views, size, items = self._gather(self.burst_bytes, bulk)
            sent = self.connection.socket.sendmsg(views)
            return sent, self._advance(sent, items), sent == size
        done = 0
        pieces: Sequence[bytes | memoryview] = [self.unsent_tail] if self.unsent_tail else []
        if not pieces:
            views, size, items = self._gather(SEAL_BYTES, bulk)
            pieces = channel.seal_records(views)
            done = self._advance(size, items)
        sent = 0
        try:
            sent = self.connection.socket.sendmsg(pieces)
        except BlockingIOError:
            if not done:
                raise
        finally:
            self.unsent_tail = _join_unsent(pieces, sent)
        return sent, done, not self.unsent_tail

    def frames_of(self, bodies: list[memoryview]) -> tuple[Pieces, int, Offered]:
        """The pieces of these blocks, which would be the next of an idle queue; their bytes; and a part of what
        note_partly_sent() needs."""
        return list(bodies), sum(map(len, bodies)), []

    def note_sent(self, frames: int) -> None:
        """The socket has taken all of so many blocks."""

    def note_partly_sent(self, items: list[SendItem], sent: int, pieces: Pieces, offered: Offered) -> int:
        """The socket has taken `sent` bytes of them. The rest waits here, as items. Items finished."""
        for item in items:
            self.of_class(item.light).append(item)
        return self._advance(sent, len(items))

    def put_control(self, data: bytes) -> None:
        """Send a keepalive, or bytes of the channel itself, next. The queue is idle."""
        self.unsent_tail = data

    def _gather(self, limit: int, bulk: bool) -> tuple[list[bytes | memoryview], int, int]:
        """The next call's pieces, how many bytes they are, and how many items of the deques they are."""
        views: list[bytes | memoryview] = []
        size = 0
        tail = self.unsent_tail
        if tail:
            views.append(tail)
            size = len(tail)
        partial = self.partial
        if partial is not None:
            views += _unsent_part(partial, self.partial_sent)
            size += partial.size - self.partial_sent
        items = 0
        for item in chain(self.light, self.bulk) if bulk else self.light:
            if size >= limit or len(views) >= BURST_VIEWS:
                break
            if item.head is not None:
                views.append(item.head)
            views.append(item.body)
            size += item.size
            items += 1
        return views, size, items

    def _advance(self, sent: int, items: int) -> int:
        """Note that the first `sent` bytes of what was gathered are gone. Items finished."""
        done = 0
        left = sent
        if self.kept is not None:
            self.kept.note_given(sent)
        if self.unsent_tail:
            left = self._advance_tail(left)
            if self.unsent_tail:
                return 0
        partial = self.partial
        if partial is not None:
            if left < partial.size - self.partial_sent:
                self.partial_sent += left
                return 0
            left -= partial.size - self.partial_sent
            self._finish(partial, left)
            self.partial = None
            done = 1
        for queue in (self.light, self.bulk):
            while items and queue:
                item = queue[0]
                if left < item.size:
                    if left:
                        self.partial = queue.popleft()
                        self.partial_sent = left
                    return done
                queue.popleft()
                left -= item.size
                self._finish(item, left)
                items -= 1
                done += 1
        return done

    def _finish(self, item: SendItem, behind: int) -> None:
        """The socket has taken all of an item, and so many bytes behind it; less than 0: these are yet to come."""
        if item.copied is not None:
            item.copied.gone_on = self.connection
        if self.kept is not None:
            self.kept.note_finished(item, behind)
        item.source.finish(item)

    def _advance_tail(self, sent: int) -> int:
        """Note that the first `sent` bytes, the tail's before all others, are gone. Those of them behind the tail."""
        gone = min(sent, len(self.unsent_tail))
        self.unsent_tail = memoryview(self.unsent_tail)[gone:]
        if not self.unsent_tail:
            self.tail_is_block = False
        return sent - gone

    def put_voice(self, item: SendItem) -> None:
        """Put an item of voice ahead of the other light items, and behind those of voice."""
        light = self.light
        place = len(light)
        while place and not light[place - 1].voice:
            place -= 1
        self.mixed |= place < len(light)
        light.insert(place, item)

    # -- items that this queue does not send from their slots

    def copy_out_partial(self) -> None:
        """Copy the unsent part of the partial item, so that its slot need not wait."""
        partial = self.partial
        if partial is not None:
            self.unsent_tail = b"".join([self.unsent_tail, *_unsent_part(partial, self.partial_sent)])
            self._finish(partial, -len(self.unsent_tail))
            self.partial = None
            self.tail_is_block = True

    def append_moved(self, item: SendItem) -> None:
        """Append an item that was in another queue."""
        self.of_class(item.light).append(item)
        self.mixed = True

    def remove_plain(self) -> list[SendItem]:
        """Remove the plain blocks, light ones first."""
        plain = [item for item in chain(self.light, self.bulk) if not item.shards]
        if plain:
            self.light = deque(item for item in self.light if item.shards)
            self.bulk = deque(item for item in self.bulk if item.shards)
        return plain

    def drain(self) -> Iterator[SendItem]:
        """Remove every item: the partial one first, to be sent from its beginning, and then the others in order."""
        if self.partial is not None:
            yield self.partial
            self.partial = None
        for queue in (self.light, self.bulk):
            yield from queue
            queue.clear()


def _join_unsent(pieces: Sequence[bytes | memoryview], sent: int) -> bytes | memoryview:
    """The bytes that are left of the pieces once `sent` bytes are gone."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            unsent = memoryview(piece)[sent:]
            return unsent if index == len(pieces) - 1 else b"".join((unsent, *pieces[index + 1 :]))
        sent -= len(piece)
    return b""


def _unsent_part(item: SendItem, sent: int) -> list[bytes | memoryview]:
    """The bytes of an item behind its first `sent` bytes."""
    if item.head is None:
        return [item.body[sent:]]
    if sent < len(item.head):
        return [item.head[sent:], item.body]
    return [item.body[sent - len(item.head) :]]
