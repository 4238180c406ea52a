"""Which connection carries which shards of a block.

The shards of a block go to the connections as evenly as possible, and each block begins at another connection. A
connection's shards of one block are consecutive and travel as one frame, a run. With at least ceil((n + m) / m)
connections, none carries more than m shards. So the loss or stall of any one connection costs nothing.

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
    most = max(1, (framing.LENGTH_LIMIT - RUN_BYTES) // shard_bytes)
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
