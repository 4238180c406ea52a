"""Congestion control: which algorithm the connections to one peer call for, with congestion "auto".

Cubic and Reno take each loss for a full queue. However much the path carries, such a control sends no more than
SEGMENT_BITS * 1.22 / (RTT * sqrt(loss)) (RFC 3649, 2): at 2 % and 40 ms, 2.5 Mbit/s. BBR goes on there. On a fast path
without losses BBR's pacing costs 15 to 25 % of the throughput, and there what the host has is better.

    losses in HURT_UPDATES updates of WINDOW that hold    BBR
    such a control below FAST_BITS
    no such loss for the calm time, in which              what the host has
    CALM_SEGMENTS were sent
    after the calm time, at more than FAST_BITS           what the host has, on trial: BBR may lose by itself, where
                                                          queues are short
    BBR again within RELAPSE_NS                           the calm time doubles, up to CALM_MOST_NS; else it begins anew

Losses of one moment call for nothing: the end of a slow start, a change of the way, an end that did not run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from math import sqrt
from typing import NamedTuple

from pipeline.policy.segment_counts import grown

AUTO = "auto"
LOSSY = "bbr"
CALM = "cubic"  # where the host has an algorithm that paces

COST_OF_LOSS = "where the path loses packets, bulk gets a sixth of what it could (2 % loss, 40 ms)"

SEGMENT_BITS = 8 * 1448
WINDOW = 50  # updates, ten a second: light flows lose something now and then
HURT_UPDATES = 3
FAST_BITS = 1e9  # a second, of one connection: at less pacing costs nothing that a machine would miss
CALM_LEAST_NS = 15_000_000_000
CALM_MOST_NS = 960_000_000_000
CALM_SEGMENTS = 10_000  # of which one loss in a thousand would have taken ten
RELAPSE_NS = 120_000_000_000


class LossCounts(NamedTuple):
    """The kernel's numbers of one connection; it counts from the connection's beginning."""

    serial: int
    resent: int  # segments sent again that had not arrived (TcpInfo.lost_segments)
    sent: int  # segments
    rtt_ns: int  # the shortest; 0: unknown


def cure(name: str) -> str:
    """How an algorithm is got that the kernel does not have, for people."""
    return f"Load its module on the host (modprobe tcp_{name}), or use a kernel with CONFIG_TCP_CONG_{name.upper()}."


def algorithm(host: str, lossy: bool) -> str:
    """The algorithm of a connection for which the host has chosen `host`."""
    paces = host.startswith(LOSSY)  # versions of it have longer names
    if lossy:
        return host if paces else LOSSY
    return CALM if paces else host


class PathLoss:
    """`lossy`: the path loses so much that a control which takes loss for a full queue is held up."""

    def __init__(self) -> None:
        self.lossy = False
        self._before: dict[int, LossCounts] = {}
        self._window: deque[tuple[int, int, int]] = deque(maxlen=WINDOW)  # of an update: resent, sent, when it began
        self._updated_at = 0
        self._hurt_at = 0  # when a loss was seen that hurts
        self._sent_since = 0  # segments sent since then
        self._changed_at = 0
        self._calm_ns = CALM_LEAST_NS

    def update(self, connections: Collection[LossCounts], now: int) -> bool:
        """Whether the path is lossy, given all connections and the time in ns."""
        resent = sent = 0
        for sample in connections:
            before = self._before.get(sample.serial, sample)
            resent += sample.resent - before.resent  # below 0 when it turns out later that they had arrived
            sent += grown(sample.sent, before.sent)
        self._before = {sample.serial: sample for sample in connections}
        self._window.append((resent, sent, self._updated_at or now))
        self._updated_at = now
        self._sent_since += sent
        rtt_ns = min((sample.rtt_ns for sample in connections if sample.rtt_ns), default=0)
        if resent > 0 and self._hurts(rtt_ns):
            self._hurt_at, self._sent_since = now, 0
        if self.lossy:
            if self._may_calm(now):
                self._change(False, now)
        elif sum(entry[0] > 0 for entry in self._window) >= HURT_UPDATES and self._hurts(rtt_ns):
            relapsed = self._changed_at and now - self._changed_at < RELAPSE_NS
            self._calm_ns = min(2 * self._calm_ns, CALM_MOST_NS) if relapsed else CALM_LEAST_NS
            self._change(True, now)
        return self.lossy

    def _hurts(self, rtt_ns: int) -> bool:
        """Whether the losses of the window hold a control that takes them for a full queue below FAST_BITS."""
        resent = sum(entry[0] for entry in self._window)
        sent = sum(entry[1] for entry in self._window)
        if resent <= 0 or sent <= 0:
            return False
        return FAST_BITS * rtt_ns * sqrt(resent / sent) > SEGMENT_BITS * 1.22e9

    def _may_calm(self, now: int) -> bool:
        if now - self._changed_at <= self._calm_ns:
            return False
        if now - self._hurt_at > self._calm_ns and self._sent_since >= CALM_SEGMENTS:
            return True
        return self.is_fast

    @property
    def is_fast(self) -> bool:
        """Whether the connections have carried more than FAST_BITS in the window."""
        if not self._window:
            return False
        sent = sum(entry[1] for entry in self._window)
        return sent * SEGMENT_BITS * 1e9 > FAST_BITS * (self._updated_at - self._window[0][2])

    def _change(self, lossy: bool, now: int) -> None:
        self.lossy = lossy
        self._changed_at = self._hurt_at = now
        self._sent_since = 0
        self._window.clear()  # they were losses of the other control
