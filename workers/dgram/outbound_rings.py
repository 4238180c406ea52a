"""The outbound rings of all lanes, as a dgram worker reads them: blocks out of slots that name it as their consumer.

A slot has one sealed run of one shard, or several one behind the other. Each is taken at once, and its slot is free, or
the ring waits for it. Light rings come first. A slot that contradicts itself, because another worker has run amok, is
counted and passed by.

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.runtime.port import Port
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.slot import read_header_and_runs
from pipeline.wire import framing
from workers.dgram.outbound_peers import OutboundPeers

READ_ORDER = ("light", "transit", "plain")

_SLOT_SPOILT = ID["dgram.dropped_slot_spoilt"]

_SIZE_MOST = shard.BLOCK_BYTES_MAX

_run_at = shard.SEALED_RUN.unpack_from


class OutboundRings:
    """`waiting`: the rings whose first slot waits for room."""

    def __init__(self, attachment: Attachment, duty: str, peers: OutboundPeers) -> None:
        self._ports = [(port, kind != "transit") for kind in READ_ORDER for port in attachment.ports(duty, kind)]
        self._peers = peers
        self._capacity = attachment.peer_table.capacity
        self._counters = attachment.page.counters
        self._waiting: list[Port] = []

    def read(self, now: int) -> int:
        """Take the blocks of all slots for which there is room. Slots handed on."""
        self._waiting.clear()
        found = 0
        for port, may_wait in self._ports:
            ready = port.ready()
            if ready:
                done = self._read_ring(port, ready, may_wait, now)
                found += done
                if done:
                    port.advance(done)
                if done < ready:
                    self._waiting.append(port)
        return found

    def has_ready(self) -> bool:
        """Whether a ring has a slot that does not wait for room."""
        for port, _ in self._ports:  # noqa: SIM110 -- asked in a spin, where a generator costs too much
            if port.ready() and port not in self._waiting:
                return True
        return False

    def _read_ring(self, port: Port, ready: int, may_wait: bool, now: int) -> int:
        position = port.position
        for ahead in range(ready):
            slot = port.slot(ahead)
            start, length, consumer, peer_handle, runs = read_header_and_runs(slot)
            if consumer != position or runs:
                continue
            if start + length > len(slot) or peer_handle & PEER_INDEX_MASK >= self._capacity:
                self._counters[_SLOT_SPOILT] += 1
            elif not self._take_runs(slot, start, start + length, peer_handle, may_wait, now):
                return ahead
        return ready

    def _take_runs(self, slot: memoryview, at: int, end: int, peer_handle: int, may_wait: bool, now: int) -> bool:
        """Take each run of a slot. False if it waits. Bulk alone waits, and such a slot has one run."""
        while at < end:
            if end - at < shard.RUN_BYTES:
                break
            length, kind, stream, number, n, _, _, _, size, epoch, _ = _run_at(slot, at)
            after = at + framing.LENGTH.size + length
            body = at + shard.RUN_BYTES
            if kind != framing.RUN or n != 1 or after > end or after - body != size or not 0 < size <= _SIZE_MOST:
                break
            if not self._peers.take(peer_handle, stream, number, epoch, slot[body:after], may_wait, now):
                return False
            at = after
        if at != end:
            self._counters[_SLOT_SPOILT] += 1
        return True
