"""How many parity shards a loss calls for: as many as a block is likely to lose. The rest of the path carries data.

TCP repeats what parity does not make up for, so a block that has lost more is late, and no more than that. A burst of
losses, or a connection that stands still, is another matter: pipeline.policy.adaptive_parity.
"""

from __future__ import annotations

from math import comb

LATE_MOST = 0.005
"""Share of the blocks that may lose more than their parity, if each shard were one segment.

At 10 data shards: one parity shard up to 1 %, two up to 3 %. A shard of a full block is five segments, and a lost one
holds up its connection, so more are late than that. A transfer inside takes it for congestion: with one shard at 2 %
Cubic got 10 to 38 of 50 Mbit/s, with two 35 to 40, with three 34 to 38.
"""


def parity_for_loss(loss: float, data_shards: int, most: int) -> int:
    """The fewest parity shards, one to `most`, with which at most LATE_MOST of the blocks lose more shards than that.
    `loss`: share of the segments."""
    for parity in range(1, most):
        if _more_than(parity, data_shards + parity, loss) <= LATE_MOST:
            return parity
    return most


def _more_than(lost: int, shards: int, loss: float) -> float:
    """The probability that so many shards lose more than `lost`, each by itself."""
    return 1 - sum(comb(shards, count) * loss**count * (1 - loss) ** (shards - count) for count in range(lost + 1))
