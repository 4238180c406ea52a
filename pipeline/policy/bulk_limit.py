"""The limit of what is sent to each peer in the class bulk (`bulk_rate_mbit`): packets beyond it wait here.

    may_pass, spend    a packet that need not wait
    hold               a packet that has to. False: too much waits already
    first, take        the packets whose time has come, in their order

A packet waits behind all of its peer's that wait. So no flow overtakes itself. With rate 0 a peer has no limit.

Bytes that other lanes have sent to a peer count for its rate, too. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace

from pipeline.policy.token_bucket import SECOND, SharedBucket

WAIT_NS = 100_000_000
"""Packets of so much time may wait: TCP notices the limit, and its round trip stays short."""

WAIT_BYTES_LEAST = 4 * 65536
"""At a low rate, still some super-packets."""

PEERS_MOST = 4096
"""Peers that are known; when there are more, those of which nothing waits begin anew."""

FOLLOW_NS = 50_000_000
"""Between two looks at the other lanes."""


class _Peer:
    __slots__ = ("bucket", "followed_ns", "held_bytes", "packets")

    def __init__(self) -> None:
        self.bucket = SharedBucket()
        self.followed_ns = 0
        self.packets: deque[bytes] = deque()
        self.held_bytes = 0


class BulkLimit:
    """`rate_of` tells the bytes a second to the peer of a handle, `elsewhere` what other lanes have sent to it.

    `due_ns`: when the first packet may go; 0 if none waits.
    """

    def __init__(self, rate_of: Callable[[int], int], elsewhere: Callable[[int], int]) -> None:
        self.rate_of = rate_of
        self._elsewhere = elsewhere
        self._peers: dict[int, _Peer] = {}
        self._waiting: list[tuple[int, int, int]] = []  # a heap: time, number in the order of arrival, peer handle
        self._count = 0
        self.due_ns = 0

    def may_pass(self, peer_handle: int, now: int) -> bool:
        peer = self._peers.get(peer_handle) or self._add(peer_handle)
        if now - peer.followed_ns >= FOLLOW_NS:
            peer.followed_ns = now
            self._follow(peer_handle, peer, now)
        return not peer.packets and peer.bucket.in_credit(now)

    def spend(self, peer_handle: int, size: int, now: int) -> None:
        self._peers[peer_handle].bucket.spend(size, now)

    def hold(self, peer_handle: int, packet: bytes) -> bool:
        """Behind may_pass() alone."""
        peer = self._peers[peer_handle]
        if peer.held_bytes + len(packet) > max(WAIT_BYTES_LEAST, peer.bucket.rate * WAIT_NS // SECOND):
            return False
        peer.packets.append(packet)
        peer.held_bytes += len(packet)
        if len(peer.packets) == 1:
            self._wait(peer_handle)
        return True

    def first(self, now: int) -> tuple[int, bytes] | None:
        """The next packet whose time has come, and its peer handle. It stays until take()."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            _, number, peer_handle = waiting[0]
            peer = self._peers[peer_handle]
            if peer.bucket.in_credit(now):
                return peer_handle, peer.packets[0]
            heapreplace(waiting, (peer.bucket.credit_at(), number, peer_handle))  # other lanes have sent to it
        self._find_due()
        return None

    def take(self, now: int) -> None:
        """The packet that first() has told is on its way."""
        _, _, peer_handle = heappop(self._waiting)
        peer = self._peers[peer_handle]
        packet = peer.packets.popleft()
        peer.held_bytes -= len(packet)
        peer.bucket.spend(len(packet), now)
        if peer.packets:
            self._wait(peer_handle)
        self._find_due()

    def _follow(self, peer_handle: int, peer: _Peer, now: int) -> None:
        """Take over the rate of this moment; with another one its first packet has another time."""
        before = peer.bucket.rate
        peer.bucket.update(self.rate_of(peer_handle), self._elsewhere(peer_handle), now)
        if peer.bucket.rate != before and peer.packets:
            at = peer.bucket.credit_at()
            self._waiting = [(at if each[2] == peer_handle else each[0], *each[1:]) for each in self._waiting]
            heapify(self._waiting)
            self._find_due()

    def _wait(self, peer_handle: int) -> None:
        self._count += 1
        heappush(self._waiting, (self._peers[peer_handle].bucket.credit_at(), self._count, peer_handle))
        self._find_due()

    def _find_due(self) -> None:
        self.due_ns = max(1, self._waiting[0][0]) if self._waiting else 0

    def _add(self, peer_handle: int) -> _Peer:
        if len(self._peers) >= PEERS_MOST:
            self._peers = {handle: each for handle, each in self._peers.items() if each.packets}
        peer = self._peers[peer_handle] = _Peer()
        self._follow(peer_handle, peer, 0)
        return peer
