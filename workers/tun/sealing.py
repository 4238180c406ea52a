"""Blocks of a duty of the tun worker, sealed into their slots, or opened out of them.

    BlockSealing    outbound, and from peer to peer: plaintext from a private buffer into the slot
    BlockOpening    inbound: from the slot into a private buffer

Plaintext is in private memory alone: other workers map the slots, too. Each duty has objects of its own. They count the
blocks that they seal (docs/security.md, "No nonce repeats"). They keep the keys of a session until the key table has
others.

A client that goes to another server has another session at once, while blocks of the one before are under way. So its
duties keep the keys of the one session before: to open what still comes, and to seal what was begun. Those of a partner
end at once.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.packet.vnet import PACKET_BYTES_MAX
from pipeline.policy.lane_pairs import told_lane
from pipeline.runtime.worker import Attachment
from pipeline.sealing import aead, kinds
from pipeline.sealing.block_seal import BlockOpener, BlockSealer
from pipeline.sealing.replay_window import ReplayWindows
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import (
    PEER_INDEX_MASK,
    RECORD_WORDS,
    SERVER,
    SLOT_CONNECTION_AT,
    TRANSIT_EPOCH_ACKNOWLEDGED,
    TRANSIT_EPOCH_OPENED,
    TRANSIT_UNOPENED,
)
from pipeline.wire import framing

UNNEEDED = -2
"""Of BlockOpening.open(): the block has been opened, and came once more as it may."""

_NUMBERS = 1 << 32
BLOCKS_MOST = 1 << 30
"""Blocks of a kind that a process seals for a peer with one key. The supervisor changes the key before that."""

EPOCH_BITS = 16  # of a header, and of a word of the peer table beside the handle

_NOT_OPENED = ID["tun.dropped_not_opened"]
_EPOCH_UNKNOWN = ID["tun.dropped_epoch_unknown"]
_REPLAYED = ID["tun.dropped_replayed"]
_BLOCKS_UNNEEDED = ID["tun.blocks_unneeded"]
_COPIES_UNNEEDED = ID["tun.copies_unneeded"]

UNOPENED_BITS = 16  # of the word of a connection with unopened blocks: how many in a row; above, lane and serial number
_SERIAL_BITS = 40
_SERIAL_MASK = (1 << _SERIAL_BITS) - 1
_connection_at = struct.Struct(f"<{SLOT_CONNECTION_AT}xQ").unpack_from

_HALF = 1 << EPOCH_BITS - 1
_acknowledged_at = struct.Struct(">H").unpack_from
_ACKNOWLEDGED_BYTES = 2

_run_at = shard.SEALED_RUN.unpack_from
_pack_run = shard.SEALED_RUN.pack_into


class _SealingSession:
    """A session for which a duty seals."""

    __slots__ = ("epoch", "first", "numbers", "sealer", "streams", "version", "version_word")

    def __init__(self, numbers: list[int], streams: dict[int, int], version_word: int) -> None:
        self.version_word = version_word  # of the key table
        self.version = -1
        self.epoch = -1
        self.sealer: BlockSealer | None = None
        self.numbers = numbers  # next of each kind
        self.streams = streams  # by kind
        self.first = [0] * kinds.KINDS  # number of each kind with which this epoch has begun


class BlockSealing:
    """`process`: the number of this process, which no other of this run has. `own`: the kinds that this duty seals, and
    no other duty."""

    def __init__(self, attachment: Attachment, keys: KeyTable, process: int, own: Iterable[int], no_key: int) -> None:
        self._keys = keys
        self._no_key = no_key  # the counter
        self._words = attachment.peer_table.transit_numbers[attachment.worker.lane]
        self._counters = attachment.page.counters
        self._process, self._own = process, tuple(own)
        self._lane, self._lanes = attachment.worker.lane, attachment.plan.lanes
        self._kept = 1 if attachment.plan.mode == "client" else 0  # sessions before the present one
        self._sessions: dict[int, _SealingSession] = {}  # by peer handle, the latest last
        self._numbers: dict[int, list[int]] = {}  # next of each kind, by peer index: they never go back, in no session

    def seal(
        self,
        slot: memoryview,
        at: int,
        peer_handle: int,
        kind: int,
        plaintext: memoryview,
        packets: int,
        copies: int = 1,
    ) -> tuple[int, int]:
        """Seal a block, once for each copy, one behind the other: each a run header and the sealed block, from slot[at]
        on. Its number, and the bytes of one; 0 bytes, counted, if there is no key."""
        session = self._sessions.get(peer_handle)
        if session is None or session.version != self._keys.words[session.version_word]:
            session = self._follow(peer_handle)
        sealer, numbers = session.sealer, session.numbers
        number = numbers[kind]
        if sealer is None or number - session.first[kind] >= BLOCKS_MOST:
            self._counters[self._no_key] += 1
            return 0, 0
        numbers[kind] = number + 1
        number %= _NUMBERS
        stream = session.streams[kind]
        size = len(plaintext) + aead.TAG_BYTES
        length = shard.RUN_BYTES + size
        m, counted = (copies - 1, 0) if copies > 1 else (0, packets)
        for copy in range(copies):
            _pack_run(
                slot, at, length - framing.LENGTH.size, framing.RUN,
                stream, number, 1, m, copy, 1, size, session.epoch & 0xFFFF, counted,
            )  # fmt: skip
            sealer.seal(stream, number, copy, plaintext, slot[at + shard.RUN_BYTES : at + length])
            at += length
        return number, length

    def acknowledged(self, peer_handle: int) -> int:
        """The latest epoch of the peer of which this lane has opened a block: it goes into each block to the peer."""
        word: int = self._words[(peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_EPOCH_OPENED]
        return word & 0xFFFF if word >> EPOCH_BITS == peer_handle else 0

    def _follow(self, peer_handle: int) -> _SealingSession:
        """Read the keys of a session, which is new or has others."""
        peer = peer_handle & PEER_INDEX_MASK
        numbers = self._numbers.setdefault(peer, [0] * kinds.KINDS)
        session = self._sessions.get(peer_handle)
        if session is None:
            ended = [handle for handle in self._sessions if handle & PEER_INDEX_MASK == peer]
            for other in ended[: len(ended) - (self._kept if peer == SERVER else 0)]:
                del self._sessions[other]
            told = told_lane(self._lane, peer, self._lanes)
            streams = {kind: kinds.stream(self._process, told, kind) for kind in self._own}
            session = _SealingSession(numbers, streams, self._keys.version_word(peer_handle))
            self._sessions[peer_handle] = session
        version = self._keys.version(peer_handle)
        keys = self._keys.read(peer_handle)
        if version & 1 or version != self._keys.version(peer_handle):
            return session  # they are written just now: the ones before serve a moment longer
        if keys is None:
            session.sealer = session.sealer if self._kept and peer == SERVER else None
        else:
            session.sealer = BlockSealer(aead.aead(keys.suite, keys.send))
            if keys.send_epoch != session.epoch:
                session.epoch = keys.send_epoch
                session.first = list(numbers)
        session.version = version
        return session


class _OpeningSession:
    """A session whose blocks a duty opens."""

    __slots__ = ("acknowledged", "opened", "openers", "peer_handle", "version")

    def __init__(self, peer_handle: int) -> None:
        self.peer_handle = peer_handle
        self.version = -1
        self.opened = 0  # the latest epoch of which this duty has opened a block, modulo 2^16
        self.acknowledged = 0  # the latest of ours of which the peer has, modulo 2^16
        self.openers: dict[int, BlockOpener] = {}  # by epoch, modulo 2^16


class BlockOpening:
    """`windows`: of this lane."""

    def __init__(self, attachment: Attachment, keys: KeyTable, windows: ReplayWindows) -> None:
        self._keys = keys
        self._windows = windows
        self._keeps_late = attachment.plan.mode == "client"
        self._has_datagrams = bool(attachment.peer_table.datagrams_in)  # blocks that nobody reported come again by TCP
        self._late: _OpeningSession | None = None  # the session before the present one
        self._late_windows = windows
        self._counters = attachment.page.counters
        self._words = attachment.peer_table.transit_numbers[attachment.worker.lane]
        self._sessions: dict[int, _OpeningSession] = {}
        self.owed: deque[int] = deque()  # peer handles: they wait to hear that a block of their new epoch was opened
        self.unopened: set[int] = set()  # peer handles: a connection of theirs has brought a block that was not opened
        self.packets = 0  # that the header of the block says it has; 0: it does not say
        self.plaintext = memoryview(bytearray(shard.BLOCK_BYTES_MAX + PACKET_BYTES_MAX))

    def open(self, slot: memoryview, at: int, after: int, peer_handle: int) -> int:
        """Open the run frame in slot[at:after]. Bytes of the block, which is in `plaintext` then; UNNEEDED or -1,
        counted, if that cannot be."""
        counters = self._counters
        _, _, stream, number, _, copies, copy, _, _, epoch, self.packets = _run_at(slot, at)
        session = self._sessions.get(peer_handle & PEER_INDEX_MASK)
        if session is None or session.peer_handle != peer_handle or session.version != self._keys.version(peer_handle):
            session = self._follow(peer_handle)
        windows = self._windows if session is not self._late else self._late_windows
        if not windows.may_open(peer_handle, stream, number):
            if copies or self._has_datagrams:
                counters[_COPIES_UNNEEDED if copies else _BLOCKS_UNNEEDED] += 1
                return UNNEEDED
            counters[_REPLAYED] += 1
            return -1
        opener = session.openers.get(epoch)
        if opener is None:
            counters[_EPOCH_UNKNOWN] += 1
            return -1
        found = opener.open(stream, number, copy, slot[at + shard.RUN_BYTES : after], self.plaintext)
        if found < 0:
            counters[_NOT_OPENED] += 1
            return -1
        acknowledged = _acknowledged_at(self.plaintext)[0] if found >= _ACKNOWLEDGED_BYTES else session.acknowledged
        if (epoch != session.opened or acknowledged != session.acknowledged) and session is not self._late:
            self._note(session, epoch, acknowledged)
        windows.mark(peer_handle, stream, number)
        return found

    def note_source(self, peer_handle: int, size: int, lane: int, slot: memoryview) -> None:
        """A block of the inbound ring of a lane has been opened (`size` is not below 0), or could not be.

        The tcp worker ends a connection that brings many in a row which cannot be.
        """
        source = lane << _SERIAL_BITS | _connection_at(slot)[0] & _SERIAL_MASK
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + TRANSIT_UNOPENED
        before, count = divmod(self._words[at], 1 << UNOPENED_BITS)
        if size >= 0:
            if before == source:
                self._words[at] = 0
                self.unopened.discard(peer_handle)
            return
        count = min(count + 1, (1 << UNOPENED_BITS) - 1) if before == source else 1
        self._words[at] = source << UNOPENED_BITS | count
        self.unopened.add(peer_handle)

    def _note(self, session: _OpeningSession, epoch: int, acknowledged: int) -> None:
        """Tell the supervisor of a later epoch than any before: of the peer's blocks, or of ours that it has opened."""
        at = (session.peer_handle & PEER_INDEX_MASK) * RECORD_WORDS
        if 0 < (epoch - session.opened & 0xFFFF) < _HALF:
            session.opened = epoch
            self._words[at + TRANSIT_EPOCH_OPENED] = session.peer_handle << EPOCH_BITS | epoch
            if epoch:  # nobody waits for the first one
                self._owe(session.peer_handle)
        if 0 < (acknowledged - session.acknowledged & 0xFFFF) < _HALF:
            session.acknowledged = acknowledged
            self._words[at + TRANSIT_EPOCH_ACKNOWLEDGED] = session.peer_handle << EPOCH_BITS | acknowledged

    def _owe(self, peer_handle: int) -> None:
        if peer_handle not in self.owed:
            self.owed.append(peer_handle)

    def _follow(self, peer_handle: int) -> _OpeningSession:
        """Read the keys of a session, which is new or has others."""
        session = self._sessions.get(peer_handle & PEER_INDEX_MASK)
        keeps_late = self._keeps_late and peer_handle & PEER_INDEX_MASK == SERVER
        version = self._keys.version(peer_handle)
        keys = self._keys.read(peer_handle)
        if session is None or session.peer_handle != peer_handle:
            if keys is None and self._late is not None and self._late.peer_handle == peer_handle:
                return self._late
            if keys is None and session is not None:
                return _OpeningSession(peer_handle)  # of no present session, such as one in reserve
            if session is not None and keeps_late:
                self._late, self._late_windows = session, self._windows.copy()
            session = self._sessions[peer_handle & PEER_INDEX_MASK] = _OpeningSession(peer_handle)
        if version & 1 or version != self._keys.version(peer_handle):
            return session  # they are written just now: the ones before serve a moment longer
        if keys is None and session.openers and keeps_late:
            session.version = version  # another session is the present one, and nothing of it has come yet
            return session
        if keys is not None and not session.openers:  # a worker may be younger than the session
            session.opened, session.acknowledged = keys.open_epoch - 1 & 0xFFFF, keys.send_epoch - 1 & 0xFFFF
        elif session.opened:
            self._owe(peer_handle)  # once more: the news may have been lost with its connection
        session.openers = {}
        if keys is not None:
            for ahead, key in enumerate((keys.open_before, keys.open_now, keys.open_after), -1):
                if any(key):
                    session.openers[keys.open_epoch + ahead & 0xFFFF] = BlockOpener(aead.aead(keys.suite, key))
        session.version = version
        return session
