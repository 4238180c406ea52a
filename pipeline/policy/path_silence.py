"""Whether an uplink has fallen silent, so that what was sent on it has to go out on another one. Pure.

A cable that is pulled somewhere behind the next switch says nothing. TCP repeats what it has sent for minutes, less and
less often. But under load acknowledgements come all the time, and on a path that works they never stay away for long:

    allowed         LEAST_NS, or half a round trip, and twice its variation (tcpi_rttvar) besides
    a path          is late if nothing was heard on any of its connections for that time, and something that was sent a
                    round trip before has no answer
    a connection    alone is late after PATIENCE times as much: it waits for the kernel's retransmission
    neither is late once something is heard again

A path that was late without being gone costs bytes that travel twice, and its rate for a while: the stream inside takes
the disorder for loss. So LEAST_NS is half of the time that the other end waits for a block (pipeline.fec.reorder). A
process that waits for a core for a moment makes no path late. Times are in ns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

LEAST_NS = 50_000_000
PATIENCE = 4


class Sample(NamedTuple):
    """A connection now."""

    oldest_ns: int | None  # since the oldest item was sent that has no answer; None: there is none
    heard_ns: int  # since an acknowledgement came, whatever it was for
    rtt_ns: int
    rttvar_ns: int


def late(path: Collection[Sample]) -> list[bool]:
    """Which of the connections on one uplink are late."""
    heard = min((each.heard_ns for each in path), default=0)
    if any(_waits(each, 1) and heard > _allowed(each) for each in path):
        return [True] * len(path)
    return [_waits(each, PATIENCE) for each in path]


def _allowed(sample: Sample) -> int:
    return max(LEAST_NS, sample.rtt_ns // 2) + 2 * sample.rttvar_ns


def _waits(sample: Sample, times: int) -> bool:
    """Whether an answer is overdue by so many times what is allowed."""
    if sample.oldest_ns is None:
        return False
    return min(sample.heard_ns, sample.oldest_ns - sample.rtt_ns) > times * _allowed(sample)
