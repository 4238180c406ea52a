"""As many parity shards as a block is likely to lose: against losses that are drawn, and at its edges."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.parity_size import LATE_MOST, parity_for_loss

BLOCKS = 4000


def late(loss: float, data_shards: int, parity: int) -> float:
    """The share of blocks that lose more shards than they have parity."""
    chance = random.Random(1)
    lost = (sum(chance.random() < loss for _ in range(data_shards + parity)) for _ in range(BLOCKS))
    return sum(count > parity for count in lost) / BLOCKS


@pytest.mark.parametrize(
    ("loss", "parity"), [(0.0, 1), (0.003, 1), (0.009, 1), (0.011, 2), (0.02, 2), (0.03, 2), (0.032, 3), (1.0, 3)]
)
def test_a_block_gets_parity_for_what_it_is_likely_to_lose(loss: float, parity: int) -> None:
    assert parity_for_loss(loss, 10, 3) == parity


@pytest.mark.parametrize("loss", [0.01, 0.02, 0.03, 0.05, 0.08, 0.12])
@pytest.mark.parametrize("data_shards", [4, 10, 20])
def test_few_blocks_lose_more_than_their_parity_and_with_less_more_would(loss: float, data_shards: int) -> None:
    parity = parity_for_loss(loss, data_shards, 99)
    assert late(loss, data_shards, parity) < 2 * LATE_MOST
    if parity > 1:
        assert late(loss, data_shards, parity - 1) > LATE_MOST / 2


@given(st.floats(0, 1), st.integers(1, 37), st.integers(0, 6))
def test_more_loss_never_calls_for_less_and_never_for_more_than_there_is(
    loss: float, data_shards: int, most: int
) -> None:
    parity = parity_for_loss(loss, data_shards, most)
    assert min(1, most) <= parity <= most
    assert parity_for_loss(loss / 2, data_shards, most) <= parity
