"""Counts of 32 bits that grow: across their end, and where the kernel says nothing."""

from __future__ import annotations

import pytest

from pipeline.policy.segment_counts import grown

END = 1 << 32


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(0, 0, 0), (5, 9, 4), (END - 3, 4, 7), (END - 1, 0, 1), (1000, 0, 0), (0, END // 2 - 1, END // 2 - 1)],
)
def test_a_count_grows_across_its_end_and_never_falls(before: int, now: int, expected: int) -> None:
    assert grown(now, before) == expected
