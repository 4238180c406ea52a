"""The history that the graphs show: rates and states of the last minutes and hours, in arrays of a fixed size. Pure.

    History.add(counters, state, now)    once in REST_SECONDS at least, with the counters of that moment
    History.columns(span)                the samples of a span, oldest first

Two spans: every second for ten minutes, every minute for a day. A sample is that of all seconds since the one before:
while nobody looks there are few. A point is NaN where nothing was measured: before the start, and while the exporter
or the machine stood still. A minute is the mean of its seconds, but for the worst round trip, which is the highest of
them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.counters import BYTES_RECEIVED, BYTES_SENT

COUNTED = {
    "received": BYTES_RECEIVED,
    "sent": BYTES_SENT,
    "packets_in": ("tun.packets_written",),
    "packets_out": ("tun.packets_read",),
    "recovered": (*(f"fec.blocks_recovered_{missing}" for missing in range(1, 7)), "dgram.blocks_recovered"),
    "given_up": ("fec.blocks_expired", "dgram.blocks_expired"),
}
"""Rates a second, each of the sum of some counters. `dropped`: of all drops; `resent`: of segments."""

SERIES = (*COUNTED, "dropped", "resent", "rtt", "rtt_worst", "peers")
WORST = ("rtt_worst",)
REST_SECONDS = 10  # between two samples while nobody looks
LATE_MAX = REST_SECONDS + 3  # seconds; a sample that comes so late stands for those before it, a later one has no rate
LEAST_SECONDS = 0.2


class Span(NamedTuple):
    """Points of `seconds` each."""

    seconds: int
    points: int


SPANS = {"minutes": Span(1, 600), "day": Span(60, 1440)}


class State(NamedTuple):
    """Values that are no counters. Round trips in seconds, NaN without a connection."""

    rtt: float
    rtt_worst: float
    peers: int
    resent: int  # segments, a number that grows


class _Ring:
    """The points of one span. `end`: the number of the next point since the beginning of time."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.end = 0
        self._columns = {name: array("f", [math.nan]) * span.points for name in SERIES}

    def put(self, number: int, values: Mapping[str, float]) -> None:
        """Write a point; those that were left out since the last one become NaN."""
        points = self.span.points
        missed = range(max(self.end, number - points + 1), number)
        for name, column in self._columns.items():
            for each in missed:
                column[each % points] = math.nan
            column[number % points] = values[name]
        self.end = number + 1

    def columns(self) -> dict[str, list[float | None]]:
        """Oldest first, None for NaN; three digits are enough for a graph."""
        at = self.end % self.span.points
        return {
            name: [_rounded(value) for value in (*column[at:], *column[:at])] for name, column in self._columns.items()
        }


def _rounded(value: float) -> float | None:
    if math.isnan(value):
        return None
    if value == 0:
        return 0
    digits = 3 - math.floor(math.log10(abs(value)))
    return round(value, digits) if digits > 0 else round(value)


class History:
    """Counters that fall back, as after a restart of the supervisor, give no rate."""

    def __init__(self) -> None:
        self._rings = {name: _Ring(span) for name, span in SPANS.items()}
        self._before: tuple[dict[str, int], float] | None = None
        self._minute: list[dict[str, float]] = []  # the seconds of the minute that is not over
        self._minute_number = 0
        self.latest: dict[str, float | None] = dict.fromkeys(SERIES)

    def add(self, counters: Mapping[str, int], state: State, now: float) -> None:
        """`now`: CLOCK_BOOTTIME seconds, which go on while the machine sleeps."""
        counts = {name: sum(counters.get(each, 0) for each in names) for name, names in COUNTED.items()}
        counts["dropped"] = sum(value for name, value in counters.items() if ".dropped_" in name)
        counts["resent"] = state.resent
        values = {"rtt": state.rtt, "rtt_worst": state.rtt_worst, "peers": float(state.peers)}
        values |= self._rates(counts, now)
        self._before = counts, now
        self.latest = {name: _rounded(value) for name, value in values.items()}
        number, end = int(now), self._rings["minutes"].end
        for each in range(end if number - end <= LATE_MAX else number, number + 1):
            self._add_second(each, values)

    def _add_second(self, number: int, values: dict[str, float]) -> None:
        self._rings["minutes"].put(number, values)
        minute = number // SPANS["day"].seconds
        if self._minute and minute != self._minute_number:
            self._rings["day"].put(self._minute_number, _joined(self._minute))
            self._minute.clear()
        self._minute_number = minute
        self._minute.append(values)

    def columns(self, span: str) -> dict[str, list[float | None]]:
        return self._rings[span].columns()

    def end(self, span: str) -> int:
        """The number of the point behind the last one: times its seconds, the time at which that one ended."""
        return self._rings[span].end

    def _rates(self, counts: Mapping[str, int], now: float) -> dict[str, float]:
        if self._before is None:
            return dict.fromkeys(counts, math.nan)
        before, at = self._before
        passed = now - at
        if not LEAST_SECONDS < passed <= LATE_MAX + 1:
            return dict.fromkeys(counts, math.nan)
        return {
            name: (value - before[name]) / passed if value >= before[name] else math.nan
            for name, value in counts.items()
        }


def _joined(seconds: list[dict[str, float]]) -> dict[str, float]:
    joined = {}
    for name in SERIES:
        known = [each[name] for each in seconds if not math.isnan(each[name])]
        joined[name] = math.nan if not known else max(known) if name in WORST else sum(known) / len(known)
    return joined
