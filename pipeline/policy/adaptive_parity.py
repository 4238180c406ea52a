"""Adaptive parity: how much parity the state of the connections calls for, and how many copies of light packets.

TCP hides loss and shows stalls instead. So the input is what the kernel does about loss, ten times a second.

    sign                                                    with fec "auto" it calls for
    share of segments that were sent again                  from LOSS_LEAST on, as many parity shards as a block is
                                                            likely to lose (pipeline.policy.parity_size), and a copy
                                                            of each light packet; from LOSS_FULL on, two
    the first losses, whose share is not known well, a      all of the parity, for STALL_NS, and two copies
    timeout in progress, an end for want of an answer
    losses within CALM_NS                                   as much as then
    losses within REMEMBER_NS                               a copy of each light packet

The share is that of the last LOSS_WINDOW updates, which sees a change at once. If these sent less than LOSS_SEGMENTS,
it is that of the last LOSS_SEGMENTS where this is higher. So losses that have stopped show in segments that arrive, and
not in time that passes. While nothing is sent, nothing is called for.

No sign of the path, and so ignored:

    a segment that had arrived before it was sent again     a machine was late (tcpi_dsack_dups). News of that may be
                                                            late, so a loss counts one update after it was seen
    losses of a connection that has ended since             its other end was killed: there is nobody to answer
    a connection that the other end does not read           parity cannot help it
    a connection that was closed, reset or replaced         a worker, or a whole end, was started again
    a share below LOSS_LEAST                                a congestion control that looks for bandwidth
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pipeline.policy.parity_size import parity_for_loss
from pipeline.policy.segment_counts import grown

LOSS_WINDOW = 10  # updates, ten a second
LOSS_SEGMENTS = 2000  # enough to tell LOSS_LEAST from nothing: six losses
LOSS_LEAST = 0.003
LOSS_FULL = 0.01
CALM_NS = 3_000_000_000  # losses of 0.3 % are a second apart where little is sent
STALL_NS = 1_000_000_000  # a connection that stands still goes on, or is dead and left out; at 2 % one often does
REMEMBER_NS = 600_000_000_000  # a path that has lost packets will do so again
REMEMBERED_LEAST = 2  # losses: a single one happens on any path

COPIES_MOST = 2
"""Copies beyond the first: with three connections, 2 % of losses and 50 packets a second, one of 10 000 is late."""


class LossSample(NamedTuple):
    """The kernel's numbers of one connection; it counts from the connection's beginning."""

    serial: int
    timeouts: int  # tcpi_retransmits: retransmission timeouts since the last progress
    resent: int  # segments sent again that had not arrived: tcpi_total_retrans without tcpi_dsack_dups
    sent: int  # tcpi_data_segs_out, segments
    unread: bool = False  # the other end has not read most of what it got


class AdaptiveParity:
    """`most`: parity shards of a full block, which has so many `data_shards`. `parity`: what the connections call for.

    `copies`: of each light packet, beyond the first one.
    """

    def __init__(self, most: int, data_shards: int) -> None:
        self._most = most
        self._data_shards = data_shards
        self._copies_most = min(most, COPIES_MOST)
        self._before: dict[int, LossSample] = {}
        self._unconfirmed: dict[int, int] = {}  # losses seen in the last update, by connection
        self._window: deque[tuple[int, int]] = deque(maxlen=LOSS_WINDOW)  # resent, sent
        self._lost = self._sent = 0.0  # segments, the last LOSS_SEGMENTS of them
        self._called_at = [-CALM_NS] * most  # when each parity shard was called for last
        self._copied_at = [-CALM_NS] * self._copies_most  # when each copy was
        self._all_until = 0  # all of the parity is called for
        self._remembered_until = 0
        self.parity = 0
        self.copies = 0

    def update(self, connections: list[LossSample], ended: int, now: int) -> int:
        """The parity called for, given all connections, and how many ended for want of an answer since the last
        update. `now`: ns."""
        timeouts = sum(sample.timeouts for sample in connections if not sample.unread)
        self._count(connections)
        parity, copies = self._for_loss()
        if parity and self._lost >= REMEMBERED_LEAST:
            self._remembered_until = now + REMEMBER_NS
        if timeouts or ended or (parity and not self.parity):
            copies = self._copies_most
            self._all_until = now + STALL_NS
        self._called_at[:parity] = [now] * parity
        self._copied_at[:copies] = [now] * copies
        called = sum(now - called_at < CALM_NS for called_at in self._called_at)
        self.parity = self._most if now < self._all_until else called
        self.copies = max(
            sum(now - copied_at < CALM_NS for copied_at in self._copied_at), int(now < self._remembered_until)
        )
        return self.parity

    def _count(self, connections: list[LossSample]) -> None:
        """Count segments sent, and losses that were seen in the update before and have not been taken back since."""
        resent = sent = 0
        unconfirmed = {}
        for sample in connections:
            before = self._before.get(sample.serial, sample)
            lost = sample.resent - before.resent  # below 0 when it turns out that they had arrived
            resent += self._unconfirmed.get(sample.serial, 0) + min(0, lost)
            if not sample.unread:
                unconfirmed[sample.serial] = max(0, lost)
                sent += grown(sample.sent, before.sent)
        self._before = {sample.serial: sample for sample in connections}
        self._unconfirmed = unconfirmed
        self._window.append((resent, sent))
        kept = max(0.0, 1 - sent / LOSS_SEGMENTS)
        self._lost = max(0.0, self._lost * kept + resent)
        self._sent = self._sent * kept + sent

    def _for_loss(self) -> tuple[int, int]:
        """The parity shards and the copies that the share of losses calls for."""
        sent = sum(entry[1] for entry in self._window)
        if not sent:
            return 0, 0
        share = sum(entry[0] for entry in self._window) / sent
        if sent < LOSS_SEGMENTS and self._lost >= REMEMBERED_LEAST:
            share = max(share, self._lost / self._sent)
        if share < LOSS_LEAST:
            return 0, 0
        copies = COPIES_MOST if share >= LOSS_FULL else 1
        return parity_for_loss(share, self._data_shards, self._most), min(copies, self._copies_most)
