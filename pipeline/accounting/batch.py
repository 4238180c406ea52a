"""A batch for the book, and the usage that comes back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

from pipeline.policy.quota import Period
from pipeline.policy.traffic_meter import Traffic

Entries = dict[tuple[date, str], Traffic]
"""Bytes to be added to the book, by day and peer."""


class Told(NamedTuple):
    """A mark of a quota that was told."""

    first: date  # of the period
    peer: str
    mark: str  # such as "80 % of 5000000000": another quota is told anew


class Batch(NamedTuple):
    """All that is written at once. `number`: later ones of a writer have higher numbers."""

    writer: str
    number: int
    entries: Entries
    told: list[Told]


class Usage(NamedTuple):
    """The book about one period."""

    period: Period
    traffic: dict[str, Traffic]  # by peer
    told: set[Told]


def add_to(entries: Entries, more: Mapping[tuple[date, str], Traffic]) -> None:
    """Add entries to others."""
    for key, traffic in more.items():
        entries[key] = entries[key] + traffic if key in entries else traffic


def total_of(entries: Mapping[tuple[date, str], Traffic], period: Period) -> dict[str, Traffic]:
    """The bytes of a period in these entries, by peer."""
    totals: dict[str, Traffic] = {}
    for (day, peer), traffic in entries.items():
        if period.first <= day < period.next:
            totals[peer] = totals[peer] + traffic if peer in totals else traffic
    return totals
