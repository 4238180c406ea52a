"""Which connection carries which shards of a block, written into the slot as a table of runs.

The shards of a block go to the connections in turn, as evenly as they can, and every block begins at another
connection. A connection's shards of one block are consecutive and travel as one frame, a run. With at least
ceil((n + m) / m) connections none carries more than m shards, so the loss or stall of any one of them costs nothing.

The connections of all tcp workers are counted through: `connections` lists (member, ordinal), the tcp worker's
position in its group and the connection's number among its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.fec.shard import RUN_BYTES
from pipeline.shm import layout
from pipeline.wire import framing

assert RUN_BYTES <= layout.RUN_HEAD_BYTES


def connections(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """All connections, given how many each member has."""
    return tuple((member, ordinal) for member, count in enumerate(counts) for ordinal in range(count))


def spread(
    shards: int, shard_bytes: int, over: Sequence[tuple[int, int]], turn: int
) -> list[tuple[int, int, int, int]]:
    """(member, ordinal, first shard, number of shards) of each run; `over` is not empty, `turn` the block's number.

    A run is no longer than a frame may be, so one connection may get several.
    """
    most = max(1, (framing.LENGTH_LIMIT - RUN_BYTES) // shard_bytes)
    runs = max(min(len(over), shards, layout.RUNS_MAX), -(-shards // most))
    each, larger = divmod(shards, runs)
    found = []
    first = 0
    for run in range(runs):
        count = each + (run < larger)
        member, ordinal = over[(turn + run) % len(over)]
        found.append((member, ordinal, first, count))
        first += count
    return found
