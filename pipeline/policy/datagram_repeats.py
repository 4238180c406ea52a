"""How often a lost row of bulk goes again, where repeats take the place of parity. Pure.

Parity costs most where blocks have few rows: a third of the data and more, at 50 Mbit/s. While bulk leaves a path room,
that costs nothing, and no block is late. While bulk fills the path, parity is paid for in throughput. A repeat costs no
more than what was lost. But its block is late, and so are the blocks of its stream behind it.

A round is the time from a lost row to its repeat. So many rounds fit in the time that the other end waits, and bulk
needs no more than ROUNDS_MOST of them. If repeats are lost too often even so, each of them goes several times.
"""

from __future__ import annotations

from functools import lru_cache

from pipeline.policy.datagram_parity import REPORT_NS, WAIT_NS, target

ROUNDS_MOST = 2
TIMES_MOST = 3
PATIENCE_SHARE = 8  # of a round trip that a row may be overtaken: workers.dgram.path_feedback
LATE_NS = 5_000_000  # two ends, each of which may get its processor late


def rounds(rtt_ns: int) -> int:
    """That are counted on."""
    return min(ROUNDS_MOST, WAIT_NS // (rtt_ns + rtt_ns // PATIENCE_SHARE + REPORT_NS + LATE_NS))


@lru_cache(maxsize=1024)
def times(rows: int, loss: float, rounds: int) -> int:
    """Of each lost row of a block of so many, in each of the rounds; 0: too many blocks would be lost in any case."""
    for found in range(1, TIMES_MOST + 1):
        left = loss ** (1 + found * rounds)
        if rounds and 1 - (1 - left) ** rows <= target(loss):
            return found
    return 0


def cost(times: int, loss: float) -> float:
    """Rows that go again for each data row, about."""
    return times * loss
