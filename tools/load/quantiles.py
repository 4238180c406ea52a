"""Quantiles of what was measured."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """Of a non-empty sequence, without interpolation."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
