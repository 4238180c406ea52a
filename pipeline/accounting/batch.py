"""A batch for the book, and the usage that comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class Forgiven(NamedTuple):
    """Bytes that do not count for a quota in a period, although they were carried; below 0, more count than were."""

    first: date  # of the period
    peer: str
    size: int


class Batch(NamedTuple):
    """All that is written at once. `number`: later ones of a writer have higher numbers."""

    writer: str
    number: int
    entries: Entries
    told: list[Told]
    forgiven: list[Forgiven]


class Usage(NamedTuple):
    """The book about one period."""

    period: Period
    traffic: dict[str, Traffic]  # by peer
    told: set[Told]
    forgiven: dict[str, int]  # by peer

    @property
    def counted(self) -> dict[str, int]:
        """The bytes of each peer that count for its quota."""
        return {
            peer: (self.traffic[peer].total if peer in self.traffic else 0) - self.forgiven.get(peer, 0)
            for peer in {*self.traffic, *self.forgiven}
        }


def add_to(entries: Entries, more: Mapping[tuple[date, str], Traffic]) -> None:
    """Add entries to others."""
    for key, traffic in more.items():
        entries[key] = entries[key] + traffic if key in entries else traffic


def forgiven_in(forgiven: Iterable[Forgiven], period: Period) -> dict[str, int]:
    """The bytes that are forgiven in a period, by peer."""
    sizes: dict[str, int] = {}
    for each in forgiven:
        if each.first == period.first:
            sizes[each.peer] = sizes.get(each.peer, 0) + each.size
    return sizes


def total_of(entries: Mapping[tuple[date, str], Traffic], period: Period) -> dict[str, Traffic]:
    """The bytes of a period in these entries, by peer."""
    totals: dict[str, Traffic] = {}
    for (day, peer), traffic in entries.items():
        if period.first <= day < period.next:
            totals[peer] = totals[peer] + traffic if peer in totals else traffic
    return totals
