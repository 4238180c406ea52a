"""The sealed sessions of an end: their keys are in the key table, and their epochs go on.

    begin(peer_handle, session)        before anything is sent to the peer
    end(peer_handle)                   nothing is sealed or opened any more, within a burst of the tun workers
    tick(now)                          once a second: epochs; whether one has changed
    use_datagrams(peer_handle, ...)    whether blocks of the session may travel in datagrams, and to where

The peer table has what tun workers have seen: the latest epoch of the peer that they have opened, and the latest of
ours that the peer has.
"""

from __future__ import annotations

from pipeline.policy.epochs import KEEP_BEFORE_NS, SendEpoch
from pipeline.sealing.session import SealedSession
from pipeline.shm.datagram_secrets import NO_PLACES, DatagramSecrets, DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import BlockKeys, KeyTable
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS, TRANSIT_EPOCH_ACKNOWLEDGED, TRANSIT_EPOCH_OPENED
from pipeline.shm.peer_table import PeerTable

TICK_NS = 1_000_000_000
_EPOCH_BITS = 16
_EPOCH_MASK = (1 << _EPOCH_BITS) - 1


class _Kept:
    def __init__(self, session: SealedSession, now: int, sent_bytes: int) -> None:
        self.session = session
        self.server: DatagramServer | None = None  # to which datagrams go; None: there are none
        self.sending = SendEpoch(now, sent_bytes)
        # when the epoch before is forgotten; 0: there is none, but in a session that goes on in other memory
        self.before_until_ns = now + KEEP_BEFORE_NS if session.has_before else 0


class SealedSessions:
    """`peers`: the peer table of this time. `datagrams`: the table of their secrets; None where there are none."""

    def __init__(self, table: KeyTable, peers: PeerTable, datagrams: DatagramSecretTable | None = None) -> None:
        self._table = table
        self._datagrams = datagrams
        self._peers = peers
        self._kept: dict[int, _Kept] = {}  # by peer handle
        self._next_tick_ns = 0

    def begin(self, peer_handle: int, session: SealedSession, now: int) -> None:
        peer = peer_handle & PEER_INDEX_MASK
        for other in [each for each in self._kept if each & PEER_INDEX_MASK == peer]:
            self._forget(other)
        self._kept[peer_handle] = _Kept(session, now, self._peers.sent_bytes(peer))
        self._write(peer_handle, session)

    def end(self, peer_handle: int) -> None:
        if peer_handle in self._kept:
            self._forget(peer_handle)
            self._table.erase(peer_handle)

    def _forget(self, peer_handle: int) -> None:
        self.use_datagrams(peer_handle, None)
        del self._kept[peer_handle]

    def uses_datagrams(self, peer_handle: int) -> bool:
        return peer_handle in self._kept and self._kept[peer_handle].server is not None

    def use_datagrams(self, peer_handle: int, server: DatagramServer | None, places: bytes = NO_PLACES) -> None:
        """Let blocks of this session travel in datagrams, which a client sends to `server`; None: not any more.

        `places`: where a partner may be.
        """
        kept = self._kept.get(peer_handle)
        if self._datagrams is None or kept is None or kept.server == server:
            return
        kept.server = server
        if server is None:
            self._datagrams.erase(peer_handle)
        else:
            suite, send, receive = kept.session.datagram_secrets()
            host, port, scope, fake_tcp_port = server
            self._datagrams.write(
                DatagramSecrets(peer_handle, suite, host, port, send, receive, scope, fake_tcp_port, places)
            )

    def tick(self, now: int) -> bool:
        if now < self._next_tick_ns:
            return False
        self._next_tick_ns = now + TICK_NS
        changed = [each for each, kept in self._kept.items() if self._go_on(each, kept, now)]
        for peer_handle in changed:
            self._write(peer_handle, self._kept[peer_handle].session)
        return bool(changed)

    def _go_on(self, peer_handle: int, kept: _Kept, now: int) -> bool:
        """Whether the keys have changed."""
        session, peer = kept.session, peer_handle & PEER_INDEX_MASK
        changed = False
        if self._has_seen(peer_handle, TRANSIT_EPOCH_OPENED, session.open_epoch + 1):
            session.open_next()
            kept.before_until_ns = now + KEEP_BEFORE_NS
            changed = True
        elif kept.before_until_ns and now >= kept.before_until_ns:
            session.forget_before()
            kept.before_until_ns = 0
            changed = True
        acknowledged = session.send_epoch == 0 or self._has_seen(
            peer_handle, TRANSIT_EPOCH_ACKNOWLEDGED, session.send_epoch
        )
        if kept.sending.is_over(now, self._peers.sent_bytes(peer), acknowledged):
            session.send_next()
            changed = True
        return changed

    def _has_seen(self, peer_handle: int, word: int, epoch: int) -> bool:
        """Whether a tun worker has written this epoch for this session."""
        at = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + word
        expected = peer_handle << _EPOCH_BITS | epoch & _EPOCH_MASK
        return any(words[at] == expected for words in self._peers.transit_numbers)

    def _write(self, peer_handle: int, session: SealedSession) -> None:
        self._table.write(BlockKeys(peer_handle, *session.keys()))
