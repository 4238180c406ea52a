"""Which connection carries which shards of a block.

The shards of a block go to the connections as evenly as possible, and each block begins at another connection. A
connection's shards of one block are consecutive and travel as one frame, a run. With at least ceil((n + m) / m)
connections, none carries more than m shards. So the loss or stall of any one connection costs nothing.

Connections on uplinks of different rates carry shares of different sizes (`Shares`), as closely as whole shards allow.

The connections of all tcp workers form one list of (consumer, ordinal). Consumer is the tcp worker's position in its
group, and ordinal is the connection's number among that worker's connections.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.fec.shard import RUN_BYTES
from pipeline.shm import layout
from pipeline.wire import framing

assert RUN_BYTES <= layout.RUN_HEADER_STRIDE


def connections(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The list of all connections, given how many each consumer has."""
    return tuple((consumer, ordinal) for consumer, count in enumerate(counts) for ordinal in range(count))


def spread(
    shards: int, shard_bytes: int, over: Sequence[tuple[int, int]], turn: int
) -> list[tuple[int, int, int, int]]:
    """(consumer, ordinal, first shard, number of shards) of each run. `turn`: the block's number; `over` is not empty.

    A run is no longer than a frame may be, so one connection may get several runs of a block.
    """
    most = _longest_run(shard_bytes)
    runs = max(min(len(over), shards, layout.RUNS_MAX), -(-shards // most))
    each, larger = divmod(shards, runs)
    found = []
    first = 0
    for run in range(runs):
        count = each + (run < larger)
        consumer, ordinal = over[(turn + run) % len(over)]
        found.append((consumer, ordinal, first, count))
        first += count
    return found


class Shares:
    """Connections that carry shares of different sizes. `shares`: of each in `over`, one in all.

    Each is owed its share of the bytes of every block, and gets as many shards as it is owed. A difference
    counts for the next block.
    """

    def __init__(self, over: Sequence[tuple[int, int]], shares: Sequence[float]) -> None:
        self._over = over
        self._shares = shares
        self._owed = [0.0] * len(over)

    def spread(self, shards: int, shard_bytes: int) -> list[tuple[int, int, int, int]]:
        """(consumer, ordinal, first shard, number of shards) of each run."""
        owed, most, size = self._owed, _longest_run(shard_bytes), shards * shard_bytes
        for place, share in enumerate(self._shares):
            owed[place] += share * size
        found = []
        first = 0
        for place, count in self._counts(shards, shard_bytes):
            owed[place] -= count * shard_bytes
            while count:
                run = min(count, most)
                found.append((*self._over[place], first, run))
                first += run
                count -= run
        return found

    def _counts(self, shards: int, shard_bytes: int) -> list[tuple[int, int]]:
        """The shards of each connection that gets some: its place and their number; at most RUNS_MAX connections."""
        owed = sorted(((owed / shard_bytes, place) for place, owed in enumerate(self._owed)), reverse=True)
        counts: list[tuple[int, int]] = []
        left = shards
        for due, place in owed[: layout.RUNS_MAX // 2]:
            if counts and due <= 0:
                break
            count = min(left, max(1, round(due)))
            counts.append((place, count))
            left -= count
            if not left:
                return counts
        place, count = counts[0]
        counts[0] = place, count + left
        return counts


def _longest_run(shard_bytes: int) -> int:
    """Shards of the longest run that fits a frame."""
    return max(1, (framing.LENGTH_LIMIT - RUN_BYTES) // shard_bytes)
