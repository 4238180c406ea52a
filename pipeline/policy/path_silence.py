"""Whether an uplink has fallen silent, so that what was sent on it has to go out on another one. Pure.

A cable that is pulled somewhere behind the next switch says nothing. TCP repeats what it has sent for minutes, less and
less often. But under load acknowledgements come all the time. How long they stay away on a path that works, the path
itself shows: where little is sent, they are delayed by 40 ms and more (RFC 9293, 3.8.6.3); where much is sent, hardly.

    waits           how long a connection has heard nothing, as far as something waits for longer than a round trip
    gap             the longest wait of late that ended; it fades while something is outstanding
    allowed         LEAST_NS, half a round trip, or GAPS times the gap; and twice the variation of the round trip
    a path          is late if nothing was heard on any of its connections for longer, and one of them waits
    a connection    alone is late after PATIENCE times as much: it waits for the kernel's retransmission. It is late as
                    well if something has waited for OVERDUE_NS and two of the shortest round trips: its uplink has
                    become slow, and holds more than it delivers in time

A path that was late without being gone costs bytes that travel twice, and the stream inside its rate for a while. Times
are in ns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

LEAST_NS = 15_000_000
GAPS = 1.5
GAP_FIRST_NS, GAP_MOST_NS = 60_000_000, 100_000_000
FADING = 0.99  # of the gap, with each look: by half in a third of a second
PATIENCE = 4
OVERDUE_NS = 250_000_000


class Sample(NamedTuple):
    """A connection now."""

    oldest_ns: int | None  # since the oldest item was sent that has no answer; None: there is none
    heard_ns: int  # since an acknowledgement came, whatever it was for
    rtt_ns: int
    rttvar_ns: int
    least_rtt_ns: int = 0


class PathSilence:
    """The connections on one uplink. Looked at in short intervals while anything is outstanding."""

    def __init__(self) -> None:
        self.gap_ns: float = GAP_FIRST_NS
        self._waited = 0  # at the last look

    def late(self, path: Collection[Sample]) -> list[bool]:
        """Which of the connections are late."""
        waits = max((_waits(each) for each in path), default=0)
        if waits < self._waited:
            self.gap_ns = max(self.gap_ns, min(self._waited, GAP_MOST_NS))
        self._waited = waits
        if any(each.oldest_ns is not None for each in path):
            self.gap_ns *= FADING
        heard = min((each.heard_ns for each in path), default=0)
        if any(_waits(each) > self._allowed(each) < heard for each in path):
            return [True] * len(path)
        return [_waits(each) > PATIENCE * self._allowed(each) or _is_overdue(each) for each in path]

    def _allowed(self, sample: Sample) -> int:
        return int(max(LEAST_NS, sample.rtt_ns // 2, GAPS * self.gap_ns)) + 2 * sample.rttvar_ns


def _waits(sample: Sample) -> int:
    if sample.oldest_ns is None:
        return 0
    return max(0, min(sample.heard_ns, sample.oldest_ns - sample.rtt_ns))


def _is_overdue(sample: Sample) -> bool:
    return sample.oldest_ns is not None and sample.oldest_ns > OVERDUE_NS + 2 * sample.least_rtt_ns
