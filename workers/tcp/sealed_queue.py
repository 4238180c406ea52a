"""The send queue of a connection with sealed records.

A frame goes out as records (`pipeline.sealing.records`). Its header is sealed for this connection, and for this place
in its stream. So a frame of which the socket has taken a byte stays as it was sealed. One of which it has taken none is
sealed anew the next time, and another may go before it.

Owned by the outbound duty.
"""

from __future__ import annotations

from itertools import chain

from pipeline.fec.shard import RUN_BYTES
from pipeline.sealing.records import RecordWriter
from pipeline.transport.connection import Connection
from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import BURST_VIEWS, Offered, Pieces, SendQueue


class SealedSendQueue(SendQueue):
    """`_rest`: what is left to send of the partial item."""

    def __init__(self, connection: Connection, writer: RecordWriter) -> None:
        super().__init__(connection)
        self._writer = writer
        self._rest: Pieces = []

    def send(self, bulk: bool = True) -> tuple[int, int, bool]:
        views: Pieces = [self.unsent_tail] if self.unsent_tail else []
        views += self._rest
        size = sum(map(len, views))
        offered: list[tuple[SendItem, int, int]] = []  # an item, where its pieces begin, and their bytes
        for item in chain(self.light, self.bulk) if bulk else self.light:
            if size >= self.burst_bytes or len(views) >= BURST_VIEWS:
                break
            head, body = item.head, item.body
            if head is None:
                head, body = body[:RUN_BYTES], memoryview(body)[RUN_BYTES:]
            pieces, length = self._writer.pieces(len(offered), head, body)
            offered.append((item, len(views), length))
            views += pieces
            size += length
        sent = self.connection.socket.sendmsg(views)
        return sent, self._advance_records(sent, offered, views), sent == size

    def put_behind(self, data: bytes) -> None:
        """Send the one record of a frame without a body behind the frame that has begun, and before all others."""
        if self.partial is not None:
            self._rest = [*self._rest, data]
        else:
            self.unsent_tail = b"".join([self.unsent_tail, data])

    def send_tail(self) -> int:
        """Send what goes before all items, unless a frame has begun. Bytes sent; OSError if the socket takes none."""
        if self.partial is not None:
            return 0
        sent = self.connection.socket.send(self.unsent_tail)
        self._advance_tail(sent)
        return sent

    def frames_of(self, bodies: list[memoryview]) -> tuple[Pieces, int, Offered]:
        if len(bodies) == 1:
            pieces, size = self._writer.pieces(0, bodies[0][:RUN_BYTES], bodies[0][RUN_BYTES:])
            return pieces, size, [(0, size)]
        views: Pieces = []
        offered: Offered = []
        for ahead, body in enumerate(bodies):
            pieces, size = self._writer.pieces(ahead, body[:RUN_BYTES], body[RUN_BYTES:])
            offered.append((len(views), size))
            views += pieces
        return views, sum(size for _, size in offered), offered

    def note_sent(self, frames: int) -> None:
        self._writer.started(frames)

    def note_partly_sent(self, items: list[SendItem], sent: int, pieces: Pieces, offered: Offered) -> int:
        for item in items:
            self.of_class(item.light).append(item)
        return self._advance_records(sent, [(item, *place) for item, place in zip(items, offered, strict=True)], pieces)

    def _advance_records(self, sent: int, offered: list[tuple[SendItem, int, int]], views: Pieces) -> int:
        """Note that the first `sent` bytes are gone. Items finished."""
        done, left = 0, sent
        if self.kept is not None:
            self.kept.note_given(sent)
        if self.unsent_tail:
            left = self._advance_tail(left)
            if self.unsent_tail:
                return 0
        partial = self.partial
        if partial is not None:
            rest = sum(map(len, self._rest))
            if left < rest:
                self._rest = _behind(self._rest, left)
                return 0
            left -= rest
            self._finish(partial, left)
            self.partial, self._rest = None, []
            done = 1
        started = 0
        for item, begin, length in offered:
            if not left:
                break
            (self.light if self.light and self.light[0] is item else self.bulk).popleft()
            started += 1
            if left < length:
                end = offered[started][1] if started < len(offered) else len(views)
                self.partial, self._rest = item, _behind(views[begin:end], left)
                break
            left -= length
            self._finish(item, left)
            done += 1
        self._writer.started(started)
        return done

    def copy_out_partial(self) -> None:
        partial = self.partial
        if partial is not None:
            self.unsent_tail = b"".join([self.unsent_tail, *self._rest])
            self._finish(partial, -len(self.unsent_tail))
            self.partial, self._rest = None, []
            self.tail_is_block = True


def _behind(pieces: Pieces, sent: int) -> Pieces:
    """The pieces behind their first `sent` bytes."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []
