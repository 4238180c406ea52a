"""The outbound rings of a tcp worker: new slots become send items in the queues of their connections.

A slot without a run table has one item, for the tcp worker that its header names. A slot with one has an item for each
run, each for a connection of its own; some of these go out later (`workers.tcp.delayed_items`). A slot that has none
for this worker is finished at once. So is one whose header contradicts itself, because another worker has run amok: it
is counted.

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.fec.shard import RUN_BYTES
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import PEER_INDEX_MASK, RUNS_MAX, SLOT_RUN_HEADERS_END
from pipeline.shm.slot import VOICE, read_header_and_runs, read_marks, read_runs, read_skippable
from pipeline.wire import framing
from workers.tcp.delayed_items import copy_spacing_ns
from workers.tcp.outbound_peers import OutboundPeers
from workers.tcp.peer_sender import PeerSender
from workers.tcp.ring_reader import RingReader
from workers.tcp.send_item import CopiedBlock, SendItem

_SLOT_SPOILT = ID["tcp.dropped_slot_spoilt"]

SCAN_ORDER = ("light", "returned", "plain", "coded", "transit")
"""Of rings, in the order in which they are scanned. Blocks in a returned ring are older than plain ones."""


class RingScanner:
    """`blocked`: in this burst a scan has found a ring with items that wait in it for a connection."""

    def __init__(self, attachment: Attachment, duty: str, peers: OutboundPeers) -> None:
        self.readers = [RingReader(port, kind) for kind in SCAN_ORDER for port in attachment.ports(duty, kind)]
        self._peers = peers
        self._busy = peers.busy
        self._capacity = attachment.peer_table.capacity
        self._counters = attachment.page.counters
        self._has_voice = attachment.settings.has_voice
        self.blocked = False

    def scan(self, now: int) -> int:
        """Visit each new slot, and give its items to their queues. Slots visited."""
        found = 0
        for number, reader in enumerate(self.readers):
            unscanned = reader.unscanned()
            if unscanned < 0:  # mended: the items of slots that were visited do not belong to those slots any more
                self.readers[number] = RingReader(reader.port, reader.kind)
            elif unscanned:
                found += self._scan_ring(reader, unscanned, now)
        return found

    def release(self) -> int:
        """Hand on the slots whose items are all finished. Their number."""
        found = 0
        for reader in self.readers:
            if reader.scanned:
                found += reader.release_finished()
        return found

    def has_unscanned(self) -> bool:
        for reader in self.readers:  # noqa: SIM110 -- asked in a spin, where a generator costs too much
            if reader.port.ready() > reader.scanned:
                return True
        return False

    def is_half_full(self) -> bool:
        """Whether visited slots take up half of a ring or more."""
        return any(2 * reader.scanned >= reader.port.ring.capacity for reader in self.readers)

    def rewind(self) -> None:
        """Visit the slots that have not been handed on once more: their items are in no queue any more."""
        for reader in self.readers:
            reader.scanned = 0

    def _scan_ring(self, reader: RingReader, unscanned: int, now: int) -> int:
        port, unfinished = reader.port, reader.unfinished
        by_handle, busy = self._peers.by_handle, self._busy
        position = port.position
        slot_bytes, capacity = port.ring.slot_bytes, self._capacity
        light = reader.kind == "light"
        marks_class = reader.marks_class
        may_be_voice = light and self._has_voice
        voice = False
        done = 0
        while done < unscanned:
            ahead = reader.scanned
            slot = port.slot(ahead)
            index = port.index(ahead)
            start, length, consumer, peer_handle, runs = read_header_and_runs(slot)
            if marks_class:
                light = read_marks(slot)[0] == framing.LIGHT
            elif may_be_voice:
                voice = read_marks(slot)[0] == VOICE
            if start + length > slot_bytes or runs > RUNS_MAX or peer_handle & PEER_INDEX_MASK >= capacity:
                self._counters[_SLOT_SPOILT] += 1
                unfinished[index] = 0
                reader.scanned += 1
                done += 1
                continue
            peer = by_handle.get(peer_handle) or self._peers.add(peer_handle)
            if runs:
                if not self._scan_table(reader, slot, index, runs, peer, light, voice, now):
                    break
            elif consumer != position:
                unfinished[index] = 0
            else:
                unfinished[index] = 1
                item = SendItem(reader, index, 0, light, length, None, slot[start : start + length], voice)
                if peer.queues:
                    queue = peer.queue_for(item)
                    if voice:
                        queue.put_voice(item)
                    else:
                        (queue.light if light else queue.bulk).append(item)
                    busy[queue] = None
                elif not self._hold_or_drop(peer, item, now):
                    break
            reader.scanned += 1
            done += 1
        return done

    def _scan_table(
        self,
        reader: RingReader,
        slot: memoryview,
        index: int,
        runs: int,
        peer: PeerSender,
        light: bool,
        voice: bool,
        now: int,
    ) -> bool:
        """Visit a slot with a run table. False if it has to wait for a connection."""
        busy = self._busy
        position = reader.port.position
        skippable, skip_owner = read_skippable(slot)
        reader.unfinished[index] = 0
        queues = peer.queues_for(light)
        copies = reader.kind == "light"
        copied = CopiedBlock() if copies and runs > 1 else None
        first = peer.place_of(reader.lane, light) if copies and queues and not peer.has_paths else 0
        spacing = copy_spacing_ns(peer.spacing_ns) if copies else peer.spacing_ns
        row = -1
        droppable = 0  # shards of light runs that wait, here or with another worker, and may be dropped then
        for consumer, ordinal, shards, head, start, length in read_runs(slot, runs):
            row += 1
            waits = spacing and row and (copies or (row == runs - 1 and shards <= skippable))
            if waits and light:
                droppable += shards
            if consumer != position:
                continue
            place = first + ordinal
            if start + length > len(slot) or head > SLOT_RUN_HEADERS_END:
                self._counters[_SLOT_SPOILT] += 1
                continue
            header = slot[head : head + RUN_BYTES] if head else None
            size, body = length + (RUN_BYTES if head else 0), slot[start : start + length]
            item = SendItem(reader, index, shards, light, size, header, body, voice, copied)
            if waits and queues:
                due = now + (row if copies else 1) * spacing
                if self._peers.delayed.add(item, due, peer.peer_handle, place):
                    continue
            reader.unfinished[index] += 1
            if queues:
                is_free = peer.has_paths and not light  # the encoder has chosen the worker alone
                queue = peer.first_to_arrive() if is_free else queues[place % len(queues)]
                if voice:
                    queue.put_voice(item)
                else:
                    (queue.light if light else queue.bulk).append(item)
                busy[queue] = None
            elif not self._hold_or_drop(peer, item, now):
                return False
        reader.skippable[index] = max(0, skippable - droppable) if skip_owner == position else 0
        return True

    def _hold_or_drop(self, peer: PeerSender, item: SendItem, now: int) -> bool:
        if self._peers.hold_or_drop(peer, item, now):
            return True
        self.blocked = True
        return False
