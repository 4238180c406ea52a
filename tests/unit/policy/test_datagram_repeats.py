"""How often lost rows go again where they have no parity."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.policy.datagram_parity import WAIT_NS, PathLoss, cut, target
from pipeline.policy.datagram_repeats import ROUNDS_MOST, cost, rounds, times

MS = 1_000_000


@pytest.mark.parametrize("rows", [1, 2, 8, 24, 47])
@pytest.mark.parametrize("loss", [0.005, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("in_time", [1, 2])
def test_no_more_blocks_are_lost_than_the_target(rows: int, loss: float, in_time: int) -> None:
    found = times(rows, loss, in_time)
    if not found:
        assert in_time == 1 and loss > 0.05, "so much is lost that one round is not enough"
        return
    left = np.random.default_rng(3).binomial(rows, loss, 400_000)
    for _ in range(in_time):
        left = np.random.default_rng(4).binomial(left, loss**found)
    assert (left > 0).mean() <= 1.2 * target(loss) + 1e-5


def test_so_many_rounds_are_counted_on_as_fit_in_the_time_that_the_other_end_waits() -> None:
    assert [rounds(rtt * MS) for rtt in (1, 40, 55, 70, 120, 130, 200)] == [2, 2, 2, 1, 1, 0, 0]
    assert all(rounds(rtt * MS) * (rtt * MS) < WAIT_NS for rtt in range(1, 300))
    assert rounds(0) == ROUNDS_MOST
    assert times(8, 0.02, 0) == 0


@pytest.mark.parametrize("loss", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("rows", [2, 8, 24, 47])
def test_repeats_cost_less_than_parity(loss: float, rows: int) -> None:
    parity = cut(rows, PathLoss(loss), 224_000, 45 * MS).overhead
    assert cost(times(rows, loss, 2), loss) < 0.7 * parity
