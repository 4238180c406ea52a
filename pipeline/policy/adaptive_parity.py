"""Adaptive parity: how much parity the state of the connections calls for, with fec "auto".

TCP hides loss and shows stalls instead. So the input is what the kernel does about loss: segments sent again
(tcpi_total_retrans against tcpi_data_segs_out), timeouts in progress (tcpi_retransmits), and connections that ended.
Segments that had arrived before they were sent again (tcpi_dsack_dups) are none: a machine was late, and not the path.
A connection that the other end does not read says nothing about the path; parity cannot help it.

    timeout in progress, or a connection ended     all of the parity
    share of segments sent again in LOSS_WINDOW    one parity shard from LOSS_LEAST on, all from LOSS_FULL on
    nothing of that for CALM_NS                    one shard less, and so on, down to none

A congestion control that probes for bandwidth loses segments on a perfect path, too; LOSS_LEAST is above that loss.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

LOSS_WINDOW = 10  # updates, ten a second
LOSS_LEAST = 0.003
LOSS_FULL = 0.01
CALM_NS = 15_000_000_000


class LossSample(NamedTuple):
    """The kernel's numbers of one connection; it counts from the connection's beginning."""

    serial: int
    timeouts: int  # tcpi_retransmits: retransmission timeouts since the last progress
    resent: int  # segments sent again that had not arrived: tcpi_total_retrans without tcpi_dsack_dups
    sent: int  # tcpi_data_segs_out, segments
    unread: bool = False  # the other end has not read most of what it got


class AdaptiveParity:
    """`most`: parity shards of a full block. `parity`: those that the connections call for now."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._before: dict[int, LossSample] = {}
        self._window: deque[tuple[int, int]] = deque(maxlen=LOSS_WINDOW)
        self._since = 0
        self.parity = 0

    def update(self, connections: list[LossSample], ended: int, now: int) -> int:
        """The parity called for, given all connections, the number that ended since the last update, the time in ns."""
        resent = sent = timeouts = 0
        for sample in connections:
            before = self._before.get(sample.serial, sample)
            if not sample.unread:
                resent += sample.resent - before.resent  # below 0 when it turns out later that they had arrived
                sent += sample.sent - before.sent
                timeouts += sample.timeouts
        self._before = {sample.serial: sample for sample in connections}
        self._window.append((resent, sent))
        wanted = self._most if timeouts or ended else self._for_loss()
        if wanted > self.parity:
            self.parity = wanted
        if wanted >= self.parity:
            self._since = now
        elif now - self._since > CALM_NS:
            self.parity -= 1
            self._since = now
        return self.parity

    def _for_loss(self) -> int:
        resent = sum(entry[0] for entry in self._window)
        share = resent / max(1, sum(entry[1] for entry in self._window))
        if share < LOSS_LEAST:
            return 0
        return min(self._most, 1 + int((self._most - 1) * (share - LOSS_LEAST) / (LOSS_FULL - LOSS_LEAST)))
