"""bench pairs: the confidence interval of differences."""

from __future__ import annotations

import pytest

from tools.bench.pairs import interval


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([1.0, 3.0], 2.0, 12.71),
        ([2.0] * 5, 2.0, 0.0),
        ([float(number % 2) for number in range(400)], 0.5, 1.96 * 0.5006 / 20),
    ],
)
def test_an_interval_is_that_of_students_t(values: list[float], mean: float, half: float) -> None:
    assert interval(values) == pytest.approx((mean, half), rel=1e-3)
