"""The segments of one session: unmasked, counted, and put into their blocks.

    add_batch    segments of one size that came with one receive
    add_one      one segment by itself

A batch costs a few calls, however many segments it has. Segments by themselves are those of light blocks, and the last
of a receive where it is shorter.

Segments of a process that no control datagram has named are not counted for reports. Nor are those with a size that no
block has: such are forged.
"""

from __future__ import annotations

import numpy as np

from pipeline.counters import ID
from pipeline.datagram.arriving_block import Block, Single
from pipeline.datagram.assembly import Assembly
from pipeline.datagram.segment import (
    FIELD_BYTES,
    FIELD_WORDS,
    FIELDS,
    HEADER_BYTES,
    ROW,
    ROWS,
    SAMPLE_BYTES,
    TOKEN_BYTES,
)
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.fec.reassembly import BYTES_LIMIT, BYTES_LIMIT_OF_MANY
from pipeline.fec.reorder import WAIT_OF_PATHS_NS
from pipeline.shm.layout import DATAGRAM_EXPIRED, DATAGRAM_RECEIVED_BYTES, DATAGRAM_RECOVERED, RECORD_WORDS
from workers.dgram.control import Sender
from workers.dgram.sessions import Session

SEGMENTS_MOST = 64
"""Segments of one receive: UDP_GRO_CNT_MAX of net/ipv4/udp_offload.c."""

_unpack_row = ROW.unpack_from

_RECEIVED = ID["dgram.segments_received"]
_BYTES = ID["dgram.bytes_received"]
_MALFORMED = ID["dgram.dropped_segment_malformed"]


class Reception:
    """`senders`: of the session, by process. `held`: a block that found no room. `words`: of the peer table.

    `active`: the senders of which something has come since the caller has looked.
    """

    def __init__(
        self,
        session: Session,
        senders: dict[int, Sender],
        codec: Codec,
        counters: memoryview,
        words: memoryview,
        is_one_of_many: bool,
    ) -> None:
        self.session = session
        self.senders = senders
        self.held: Block | Single | None = None
        self.active: dict[int, Sender] = {}
        # repeats are counted on for 150 ms of that: pipeline.policy.datagram_repeats
        self.assembly = Assembly(
            codec, counters, BYTES_LIMIT_OF_MANY if is_one_of_many else BYTES_LIMIT, WAIT_OF_PATHS_NS
        )
        self._mask = session.receive_mask(SEGMENTS_MOST)
        self._fields = np.zeros(SEGMENTS_MOST, ROWS)
        self._unmasked = self._fields.view(np.uint8).reshape(SEGMENTS_MOST, FIELD_BYTES)
        self._field_bytes = self._unmasked.data.cast("B")
        self._words_of_fields = self._fields.view(np.uint32).reshape(SEGMENTS_MOST, FIELD_WORDS)
        self._scratch = np.zeros((SEGMENTS_MOST, FIELD_WORDS), np.uint32)
        self._counters = counters
        self._words = words
        self._at = session.peer * RECORD_WORDS

    def add_batch(self, datagrams: np.ndarray, is_marked: bool, now: int, waited_ns: int = 0) -> None:
        """`datagrams`: of this session, each a row; SEGMENTS_MOST of them at most. `waited_ns`: since they came."""
        count, size = datagrams.shape
        if size < HEADER_BYTES + SAMPLE_BYTES:
            for each in datagrams:
                self.add_one(each.data, is_marked, now, waited_ns)
            return
        self._count(count, count * size)
        rows = datagrams[:, HEADER_BYTES:]
        np.bitwise_xor(datagrams[:, TOKEN_BYTES:HEADER_BYTES], self._mask.of_rows(rows), out=self._unmasked[:count])
        fields, words = self._fields[:count], self._words_of_fields
        first = _unpack_row(self._field_bytes, 0)
        _, process, _, _, block_size, *_ = first
        sender = self.senders.get(process)
        if sender is not None and block_size <= shard.BLOCK_BYTES_MAX and fields["sender"][-1] == process:
            sender.counts.add(fields["sequence"], now - waited_ns)
            self._note(sender, count if is_marked else 0, now)
        at, add_in_order = 0, self.assembly.add_in_order
        while done := add_in_order(first, words[at:count], rows[at:], self._scratch, now):
            at += done
            if at == count:
                return
            first = _unpack_row(self._field_bytes, at * FIELD_BYTES)
        self.assembly.add_rows(fields[at:], rows[at:], now)

    def add_one(self, datagram: memoryview, is_marked: bool, now: int, waited_ns: int = 0) -> None:
        size = len(datagram)
        self._count(1, size)
        if size <= HEADER_BYTES:
            self._counters[_MALFORMED] += 1
            return
        row = datagram[HEADER_BYTES:]
        masked = int.from_bytes(datagram[TOKEN_BYTES:HEADER_BYTES], "big") ^ self._mask.of_row(row)
        sequence, process, stream, number, epoch, block_size, part, n, m, index = FIELDS.unpack(
            masked.to_bytes(FIELD_BYTES, "big")
        )
        sender = self.senders.get(process)
        if sender is not None and block_size <= shard.BLOCK_BYTES_MAX:
            sender.counts.add_one(sequence, now - waited_ns)
            self._note(sender, is_marked, now)
        self.assembly.add_row(
            (sequence, process, stream << 32 | number, epoch, block_size, part, n << 8 | m, index), row, now
        )

    def publish(self) -> None:
        """The blocks that were recovered or given up count for the peer."""
        assembly, words = self.assembly, self._words
        if assembly.recovered or assembly.expired:
            words[self._at + DATAGRAM_RECOVERED] += assembly.recovered
            words[self._at + DATAGRAM_EXPIRED] += assembly.expired
            assembly.recovered = assembly.expired = 0

    def _note(self, sender: Sender, marked: int, now: int) -> None:
        sender.counts.marked += marked
        sender.heard_ns = now
        sender.again = 0
        self.active[sender.counts.sender] = sender

    def _count(self, count: int, size: int) -> None:
        self._counters[_RECEIVED] += count
        self._counters[_BYTES] += size
        self._words[self._at + DATAGRAM_RECEIVED_BYTES] += size
