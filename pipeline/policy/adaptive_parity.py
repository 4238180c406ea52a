"""How much parity the state of the connections calls for, in mode "auto".

TCP hides loss and shows stalls instead, so what is watched is what the kernel does about loss: segments sent again
(tcpi_total_retrans against tcpi_data_segs_out), timeouts in progress (tcpi_retransmits), and connections that ended.

    timeout in progress, or a connection ended     all of the parity
    share of segments sent again in WINDOW         from LOSS_LEAST one parity shard, from LOSS_FULL on all
    quiet for QUIET_NS                             one shard less, and so on, down to none

A congestion control that probes for bandwidth loses segments on a perfect path, too; LOSS_LEAST is above what it loses.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WINDOW = 10  # looks, ten a second
LOSS_LEAST = 0.003
LOSS_FULL = 0.01
QUIET_NS = 15_000_000_000


class LossSample(NamedTuple):
    """What the kernel says about one connection; the counts are since it was made."""

    serial: int
    timeouts: int  # tcpi_retransmits: retransmission timeouts since the last progress
    resent: int  # tcpi_total_retrans, segments
    sent: int  # tcpi_data_segs_out, segments


class AdaptiveParity:
    """`most`: parity shards of a full block. `parity` is what is called for now."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._before: dict[int, LossSample] = {}
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._since = 0
        self.parity = 0

    def look(self, connections: list[LossSample], ended: int, now: int) -> int:
        """The parity called for, given all connections, how many have ended since the last look, and the time in ns."""
        resent = sent = timeouts = 0
        for seen in connections:
            before = self._before.get(seen.serial, seen)
            resent += seen.resent - before.resent
            sent += seen.sent - before.sent
            timeouts += seen.timeouts
        self._before = {seen.serial: seen for seen in connections}
        self._window.append((resent, sent))
        wanted = self._most if timeouts or ended else self._for_loss()
        if wanted > self.parity:
            self.parity = wanted
        if wanted >= self.parity:
            self._since = now
        elif now - self._since > QUIET_NS:
            self.parity -= 1
            self._since = now
        return self.parity

    def _for_loss(self) -> int:
        resent = sum(entry[0] for entry in self._window)
        share = resent / max(1, sum(entry[1] for entry in self._window))
        if share < LOSS_LEAST:
            return 0
        return min(self._most, 1 + int((self._most - 1) * (share - LOSS_LEAST) / (LOSS_FULL - LOSS_LEAST)))
