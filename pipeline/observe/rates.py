"""Everything that moves, per second: made out of two snapshots. Pure.

A counter that went down was begun anew: its rate is 0. So is every rate of a first snapshot, of another run, and of two
snapshots at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

LEAST_NS = 1_000_000  # between two snapshots


class PeerRates(NamedTuple):
    """Bytes a second, and segments and blocks a second."""

    sent: float = 0.0
    received: float = 0.0
    resent: float = 0.0
    recovered: float = 0.0


class Rates(NamedTuple):
    """`counters`: totals by name; `workers`: the same by worker; `peers`: by the peer's name."""

    seconds: float
    counters: dict[str, float]
    workers: dict[str, dict[str, float]]
    peers: dict[str, PeerRates]

    def worker(self, name: str, counter: str) -> float:
        return self.workers.get(name, {}).get(counter, 0.0)

    def of_all(self, counters: Iterable[str]) -> float:
        """The sum of these totals."""
        return sum(self.counters.get(name, 0.0) for name in counters)


NO_RATES = Rates(0.0, {}, {}, {})


def between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Rates:
    """The rates from one snapshot to a later one."""
    if before is None or before["pid"] != after["pid"] or after["taken_ns"] - before["taken_ns"] < LEAST_NS:
        return NO_RATES
    seconds = (after["taken_ns"] - before["taken_ns"]) / 1e9
    workers = {each["name"]: each["counters"] for each in before["workers"]}
    peers = {each["name"]: each for each in before["peers"]}
    return Rates(
        seconds,
        _per_second(before["counters"], after["counters"], seconds),
        {
            each["name"]: _per_second(workers.get(each["name"], {}), each["counters"], seconds)
            for each in after["workers"]
        },
        {each["name"]: _peer(peers[each["name"]], each, seconds) for each in after["peers"] if each["name"] in peers},
    )


def _per_second(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> dict[str, float]:
    return {name: max(0, value - before.get(name, value)) / seconds for name, value in after.items()}


def _peer(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> PeerRates:
    if after["peer"] != before["peer"] or (after["session_seconds"] or 0) < (before["session_seconds"] or 0):
        return PeerRates()  # another session, or none
    pairs = (
        (before["sent_bytes"], after["sent_bytes"]),
        (before["received_bytes"], after["received_bytes"]),
        (before["resent_segments"], after["resent_segments"]),
        (before["recovered_blocks"], after["recovered_blocks"]),
    )
    return PeerRates(*(max(0, new - old) / seconds for old, new in pairs))
