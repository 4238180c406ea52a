"""The outbound duty of a fec worker: blocks of its lane's coded and transit rings become shards with parity.

1. wait             sleep on the doorbell until a block is ready
2. work             visit a few ready slots of each ring, then hand them on to the tcp workers together
3. _encode_slot     a block stays plain if it has no number (NO_NUMBER), or if its peer's connections call for no parity
                    and are all on one path
4. _cut             how many data and parity shards, and of how many bytes, for the size of the block
5. _encode_slot     write zeros behind the block; a block too small to be cut is sent as copies, without steps 6 and 7
6. Codec.encode     the parity shards, behind the zeros; then Codec.checksum
7. _spread          which connection carries which shards
8. _write_runs      frame headers and the rows of the run table, in front of the block
9. write_run_count  the last act: it makes the run table valid

The tun worker has numbered the blocks, for each peer and stream. So a successor that finds a slot half done gives the
block the number that its predecessor gave it.
"""

from __future__ import annotations

from os import urandom

from pipeline.counters import ID
from pipeline.fec import shard, stripe
from pipeline.fec.codec import Codec
from pipeline.policy.lane_pairs import told_lane
from pipeline.runtime.link_view import LinkState, LinkView
from pipeline.runtime.port import any_ready
from pipeline.runtime.worker import MORE, NOTHING, Attachment
from pipeline.shm import layout
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.slot import NO_NUMBER, clear_run_table, read_header, read_marks, write_run, write_run_count
from pipeline.wire import framing

BURST_BLOCKS = 4
"""Blocks that are encoded before they are handed on together."""

SIZES_KEPT = 4096
"""Cuts that are kept: one for each size of a block, parity and number of connections."""

_CLASSES = (framing.BULK, framing.LIGHT)

_pack_run_header = shard.RUN.pack_into
_sealed_run_at = shard.SEALED_RUN.unpack_from
_REST_BYTES = shard.RUN_BYTES - framing.LENGTH.size  # of a run's header, behind the length field

_START_MIN = layout.SLOT_RUN_HEADERS_END  # of a block, behind the headers of its runs

_BLOCKS_REFUSED = ID["fec.blocks_refused"]
_BLOCKS_CODED = ID["fec.blocks_coded"]
_BYTES_CODED = ID["fec.bytes_coded"]
_BYTES_ADDED = ID["fec.bytes_added"]


class Encoder:
    """The encoder of one lane. The blocks of each ring are streams of their own: two duties number them."""

    name = "outbound"

    def __init__(self, attachment: Attachment) -> None:
        self._ports = attachment.ports(self.name, "coded") + attachment.ports(self.name, "transit")
        self._doorbell = attachment.doorbells[self.name]
        self._counters = attachment.page.counters
        self._links = LinkView(attachment)
        self._codec = Codec()
        run, lane, lanes = int(attachment.plan.run_id, 16), attachment.worker.lane, attachment.plan.lanes
        self._sealed = attachment.settings.seals
        self._least = 2 if self._sealed else 1  # copies of a sealed block would be equal on the wire
        self._lane, self._lanes = lane, lanes
        self._streams = [  # of each ring, by the lane that a peer is told, and traffic class
            [[shard.stream(run ^ index, told, traffic_class) for traffic_class in _CLASSES] for told in range(lanes)]
            for index in range(len(self._ports))
        ]
        self._ready = any_ready(self._ports)
        self._own_connection = ((lane, 0),)  # for a peer that has lost all connections meanwhile
        self._capacity = attachment.peer_table.capacity
        self._data_shards = attachment.settings.fec_data
        self._parity_shards = attachment.settings.fec_parity
        self._cuts: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._shares: dict[int, tuple[LinkState, stripe.Shares]] = {}  # by peer index

    def wait(self, seconds: float) -> None:
        self._doorbell.wait(self._ready, seconds)

    def work(self) -> int:
        """Encode a few ready blocks of each ring."""
        found = NOTHING
        for port, streams in zip(self._ports, self._streams, strict=True):
            ready = min(port.ready(), BURST_BLOCKS)
            for ahead in range(ready):
                self._encode_slot(port.slot(ahead), streams)
            if ready:
                port.advance(ready)
                found = MORE
        return found

    def drained(self) -> bool:
        return True

    def _encode_slot(self, slot: memoryview, streams: list[list[int]]) -> None:
        start, size, _, peer_handle = read_header(slot)
        traffic_class, number = read_marks(slot)
        peer = peer_handle & PEER_INDEX_MASK
        if not (_START_MIN <= start <= layout.SLOT_BODY_AT and 0 < size <= shard.BLOCK_BYTES_MAX) or (
            traffic_class not in _CLASSES or peer >= self._capacity
        ):
            self._counters[_BLOCKS_REFUSED] += 1
            clear_run_table(slot)
            return
        link = self._links.state(peer)
        parity = link.parity
        if not link.is_coded or number == NO_NUMBER or (self._sealed and size <= shard.RUN_BYTES):
            clear_run_table(slot)
            return
        connections = (
            link.light_connections if traffic_class == framing.LIGHT else link.bulk_connections
        ) or self._own_connection
        if self._sealed:
            _, _, stream, number, _, _, _, _, size, epoch, _ = _sealed_run_at(slot, start)
            content = epoch << 16  # its tag is worth more than a checksum
            start += shard.RUN_BYTES
        else:
            stream, content = streams[told_lane(self._lane, peer, self._lanes)][traffic_class], 0
        n, m, shard_bytes = self._cut(size, parity, len(connections))
        if n == 1:
            step = 0  # the shards are copies: each is the block itself
            runs = stripe.spread(1 + m, shard_bytes, connections, number)
        else:
            step = shard_bytes
            end = start + n * shard_bytes
            slot[start + size : end] = (urandom if self._sealed else bytes)(end - start - size)
            area = slot[start : end + m * shard_bytes]
            if m:
                self._codec.encode(area, n, m, shard_bytes)
                if not self._sealed:
                    content = self._codec.checksum(area, n, m, shard_bytes)
            runs = self._spread(peer, link, connections, n + m, shard_bytes, number)
        _write_runs(slot, runs, (stream, number, n, m, size, content), start, step, shard_bytes)
        write_run_count(slot, len(runs), m, connections[number % len(connections)][0])
        counters = self._counters
        counters[_BLOCKS_CODED] += 1
        counters[_BYTES_CODED] += size
        counters[_BYTES_ADDED] += m * shard_bytes

    def _spread(
        self,
        peer: int,
        link: LinkState,
        connections: tuple[tuple[int, int], ...],
        shards: int,
        shard_bytes: int,
        number: int,
    ) -> list[tuple[int, int, int, int]]:
        """The runs of a block: by the rates of the uplinks, or as evenly as possible."""
        if not link.shares or connections is not link.bulk_connections:
            return stripe.spread(shards, shard_bytes, connections, number)
        of_peer = self._shares.get(peer)
        if of_peer is None or of_peer[0] is not link:
            of_peer = self._shares[peer] = link, stripe.Shares(connections, link.shares)
        return of_peer[1].spread(shards, shard_bytes)

    def _cut(self, size: int, parity: int, connections: int) -> tuple[int, int, int]:
        """Data shards, parity shards and bytes of a shard."""
        key = size, parity, connections
        cut = self._cuts.get(key)
        if cut is None:
            if len(self._cuts) >= SIZES_KEPT:
                self._cuts.clear()
            n = max(self._least, shard.data_shards(size, self._data_shards))
            parity = min(parity, self._parity_shards)
            m = shard.parity_shards(n, parity, connections) if n > 1 else min(1, parity, connections - 1)
            cut = self._cuts[key] = n, m, shard.shard_bytes(size, n, m)
        return cut


def _write_runs(
    slot: memoryview,
    runs: list[tuple[int, int, int, int]],
    block: tuple[int, int, int, int, int, int],
    start: int,
    step: int,
    shard_bytes: int,
) -> None:
    """Write the frame header and the table row of each run. Shard i begins at start + i * step."""
    stream, number, n, m, size, content = block
    row_at, header_at = layout.SLOT_RUN_TABLE_AT, layout.SLOT_RUN_HEADERS_AT
    for consumer, ordinal, first, count in runs:
        length = count * shard_bytes
        rest = _REST_BYTES + length
        _pack_run_header(slot, header_at, rest, framing.RUN, stream, number, n, m, first, count, size, content)
        write_run(slot, row_at, consumer, ordinal, count, header_at, start + first * step, length)
        row_at += layout.RUN_ROW_BYTES
        header_at += layout.RUN_HEADER_STRIDE
