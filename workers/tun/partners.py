"""A client with partners (docs/direct.md): which of two ways a packet takes, and what is taken from a partner.

    packet from TUN         for a partner's network, while its path is open: to the partner; else to the server
    packet of a partner     from its own network, for one of ours: for the kernel; else dropped and counted
    packet of the server    as ever
    block of ours           that no datagram has brought to a partner: its packets go by the server, sealed anew

The routes of the peer table have the networks of partners and, as OWN, ours. A route stays while the path is dark.
"""

from __future__ import annotations

import struct
from typing import Any

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.packet.ip import destination, source
from pipeline.packet.route_table import OWN
from pipeline.runtime.worker import Attachment
from pipeline.sealing import aead
from pipeline.sealing.block_seal import BlockOpener
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import PEER_INDEX_MASK, SERVER, SLOT_CONNECTION_AT, SLOT_TAKEN_BACK
from pipeline.shm.peer_table import PeerTable
from pipeline.wire import block
from workers.tun.bulk_packer import BulkPacker
from workers.tun.classed_packer import ClassedPacker
from workers.tun.writer import TunWriter

_connection_at = struct.Struct(f"<{SLOT_CONNECTION_AT}xQ").unpack_from

_NOT_TAKEN_BACK = ID["tun.dropped_not_taken_back"]
_SOURCE_REFUSED = ID["tun.dropped_source_refused"]
_NOT_OURS = ID["tun.dropped_destination_refused"]


def has_partners(attachment: Attachment) -> bool:
    return attachment.plan.mode == "client" and attachment.peer_table.capacity > 1


class PartnerPacker(BulkPacker):
    """A BulkPacker of a client that may have partners."""

    _table: PeerTable

    def __init__(self, attachment: Attachment, *rest: object) -> None:
        super().__init__(attachment, *rest)  # type: ignore[arg-type]
        self._table = attachment.peer_table

    def _receiver(self, slot: memoryview, at: int) -> int:
        address = destination(slot, at)
        peer_handle = self._routes.cache.get(address)
        if peer_handle is None:
            peer_handle = self._routes.longest_match(address)
        if peer_handle > 0:
            peer = peer_handle & PEER_INDEX_MASK
            if peer != SERVER and self._links.state(peer).by_datagrams:
                return peer_handle
        return self._table.peer_handle(SERVER)


class ClassedPartnerPacker(PartnerPacker, ClassedPacker):
    """That with rules for classes."""


class OwnBlocks:
    """Opens blocks that this client has sealed itself, as long as they are of the present epoch."""

    def __init__(self, keys: KeyTable) -> None:
        self._keys = keys
        self._openers: dict[int, tuple[int, int, BlockOpener]] = {}  # by peer index: handle, version

    def open(self, slot: memoryview, at: int, after: int, peer_handle: int, into: memoryview) -> int:
        """Bytes of the block; -1 if there is no key of it any more."""
        _, _, stream, number, *_, epoch, _ = shard.SEALED_RUN.unpack_from(slot, at)
        version = self._keys.version(peer_handle)
        found = self._openers.get(peer_handle & PEER_INDEX_MASK)
        if found is None or found[:2] != (peer_handle, version):
            keys = self._keys.read(peer_handle)
            if keys is None or keys.send_epoch & 0xFFFF != epoch:
                return -1
            found = peer_handle, version, BlockOpener(aead.aead(keys.suite, keys.send))
            self._openers[peer_handle & PEER_INDEX_MASK] = found
        return found[2].open(stream, number, 0, slot[at + shard.RUN_BYTES : after], into)


class PartnerWriter(TunWriter):
    """A TunWriter of a client that may have partners. `keys`: of their sessions."""

    def __init__(self, attachment: Attachment, *rest: Any, keys: KeyTable) -> None:
        super().__init__(attachment, *rest)
        self._own = OwnBlocks(keys)
        self._table = attachment.peer_table

    def _write_sealed(self, slot: memoryview, at: int, after: int, peer_handle: int, traffic_class: int) -> None:
        if peer_handle & PEER_INDEX_MASK == SERVER or _connection_at(slot)[0] != SLOT_TAKEN_BACK:
            super()._write_sealed(slot, at, after, peer_handle, traffic_class)
            return
        assert self._opening is not None
        plaintext = self._opening.plaintext
        size = self._own.open(slot, at, after, peer_handle, plaintext) if after - at > shard.RUN_BYTES else -1
        if size < 0 or self._forwarder is None:
            self._counters[_NOT_TAKEN_BACK] += 1
            return
        at, lengths = block.table_lengths(plaintext, block.EPOCH_BYTES, size)
        server = self._table.peer_handle(SERVER)
        for length in lengths:
            self._forwarder.forward(plaintext, at, length, peer_handle, server, traffic_class)
            at += length

    def _is_for_kernel(self, slot: memoryview, at: int, peer_handle: int) -> bool:
        if peer_handle & PEER_INDEX_MASK == SERVER:
            return super()._is_for_kernel(slot, at, peer_handle)
        lookup = self._routes.lookup
        return lookup(source(slot, at)) == peer_handle and lookup(destination(slot, at)) == OWN

    def _route(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> bool:
        lookup = self._routes.lookup
        if lookup(source(slot, at)) != peer_handle:
            self._counters[_SOURCE_REFUSED] += 1
            return False
        if lookup(destination(slot, at)) != OWN:
            self._counters[_NOT_OURS] += 1
            return False
        return True
