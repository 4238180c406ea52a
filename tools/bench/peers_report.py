"""The results of `bench peers`, as values and as tables. schema_version counts up when a field changes its meaning or
goes.

A row is one contender on one path, with the numbers of each round. A table has medians over the rounds, and of what was
lost the mean. MEASURES says what there is on which path, in which unit, and whether more is better.

    join     several results of one machine, made with equal options, as one: the rounds follow each other
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tools.bench.machine import Machine
from tools.lab.namespace import LabError

SCHEMA_VERSION = 1
NOTHING = "-"
CLEAN, LOSSY = "clean", "lossy"
PATHS = (CLEAN, LOSSY)
BARE, OURS, OTHER = "bare", "ours", "other"
"""Kinds of contenders."""


class Measure(msgspec.Struct, frozen=True):
    name: str
    title: str
    head: str
    """Of its column."""
    path: str
    digits: int
    more_is_better: bool = False
    of_bare: bool = False
    """A column says which part of the bare link's it is."""
    summary: Callable[[Sequence[float]], float] = statistics.median


MEASURES = (
    Measure("tcp", "one TCP stream, Gbit/s", "TCP, Gbit/s", CLEAN, 2, more_is_better=True, of_bare=True),
    Measure("tcp_many", "four TCP streams, Gbit/s", "4 streams", CLEAN, 2, more_is_better=True),
    Measure("cpu", "CPU seconds per GB, whole machine", "CPU s/GB", CLEAN, 2),
    Measure("udp", "UDP of 200 bytes, 1000/s", "UDP, 1000/s", CLEAN, 1, more_is_better=True),
    Measure("ping_p50", "idle ping, p50, ms", "ping p50, ms", CLEAN, 2),
    Measure("ping_p99", "idle ping, p99, ms", "p99", CLEAN, 2),
    Measure("ping_p50", "ping alone, p50, ms", "ping p50, ms", LOSSY, 1),
    Measure("ping_p99", "ping alone, p99, ms", "p99", LOSSY, 1),
    Measure("ping_lost", "ping alone, lost, %", "lost, %", LOSSY, 2, summary=statistics.mean),
    Measure("light_p50", "light stream beside bulk, p50, ms", "beside bulk p50, ms", LOSSY, 1),
    Measure("light_p99", "light stream beside bulk, p99, ms", "p99", LOSSY, 1),
    Measure("light_lost", "light stream beside bulk, lost, %", "lost, %", LOSSY, 2, summary=statistics.mean),
    Measure("bulk", "bulk, Mbit/s", "bulk, Mbit/s", LOSSY, 1, more_is_better=True),
)


class Row(msgspec.Struct, kw_only=True):
    path: str
    contender: str
    kind: str
    title: str
    seconds: float
    """Of each measurement."""
    version: str = ""
    mtu: int = 0
    """Inside."""
    note: str = ""
    missing: str = ""
    """Why it is not there, and what to do."""
    error: str = ""
    """Why it is not complete."""
    rounds: list[dict[str, float]] = []
    """By name of MEASURES; without those that failed."""

    def value(self, measure: Measure) -> float | None:
        found = [each[measure.name] for each in self.rounds if measure.name in each]
        return measure.summary(found) if found else None


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal for results to be comparable."""

    machine: Machine
    congestion: str
    """Of all hosts."""
    rate_mbit: float
    rtt_ms: float
    queue_bytes: int
    loss_percent: float
    """In each direction. All four are those of the lossy path; the clean one is a pair of veth devices."""
    settings: list[str] = []
    """For both ends of this tunnel."""


class PeersResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    conditions: Conditions
    rows: list[Row] = []
    took_seconds: float = 0.0
    left_behind: list[str] = []
    """What a contender did not take with it; empty when all is well."""

    @property
    def failed(self) -> bool:
        """A contender that is not here is no failure."""
        return bool(self.left_behind) or any(row.error for row in self.rows)


def of_bare(rows: Sequence[Row], row: Row, measure: Measure) -> float | None:
    """The median of the rounds' ratios to the bare link; None without a round that has both."""
    bare = next((one for one in rows if (one.path, one.kind) == (row.path, BARE)), None)
    if bare is None or bare is row:
        return None
    ratios = [
        ours[measure.name] / theirs[measure.name]
        for ours, theirs in zip(row.rounds, bare.rounds, strict=False)
        if measure.name in ours and theirs.get(measure.name)
    ]
    return statistics.median(ratios) if ratios else None


def join(results: Sequence[PeersResult]) -> PeersResult:
    """Rows keep the order in which they are first seen. A row that one result lacks has empty rounds there."""
    first = results[0]
    joined = PeersResult(conditions=first.conditions)
    rows: dict[tuple[str, str], Row] = {}
    for result in results:
        if result.conditions != first.conditions:
            raise LabError(f"--join: expected equal conditions, got {first.conditions} and {result.conditions}")
        _join_rows(rows, result.rows)
        joined.took_seconds += result.took_seconds
        joined.left_behind += result.left_behind
    joined.rows = list(rows.values())
    return joined


def _join_rows(rows: dict[tuple[str, str], Row], more: Iterable[Row]) -> None:
    longest = {path: max((len(row.rounds) for row in rows.values() if row.path == path), default=0) for path in PATHS}
    for row in more:
        known = rows.setdefault((row.path, row.contender), msgspec.structs.replace(row, rounds=[]))
        for name in ("seconds", "version"):
            ours, theirs = getattr(known, name), getattr(row, name)
            if ours != theirs and ours and theirs:
                raise LabError(f"--join: {row.contender} has {name} {ours} in one file, {theirs} in another")
        known.rounds += [{}] * (longest[row.path] - len(known.rounds)) + row.rounds
        if any(row.rounds):
            known.missing = ""
        for name in ("version", "mtu", "note", "error"):
            if not getattr(known, name):
                setattr(known, name, getattr(row, name))


def table(result: PeersResult) -> str:
    """For people."""
    conditions = result.conditions
    lines = [
        str(conditions.machine),
        f"hosts with {conditions.congestion}; {result.took_seconds:.0f} s in all",
    ]
    if conditions.settings:
        lines.append(f"settings of this tunnel: {' '.join(conditions.settings)}")
    for path in PATHS:
        rows = [row for row in result.rows if row.path == path]
        if rows:
            lines += ["", heading(conditions, path, rows), *_table(rows, path)]
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def heading(conditions: Conditions, path: str, rows: Sequence[Row]) -> str:
    rounds = max(sum(map(bool, row.rounds)) for row in rows)
    said = f"{path}: " + (
        "two hosts, one pair of veth devices; ping every 10 ms"
        if path == CLEAN
        else f"{conditions.rate_mbit:g} Mbit/s, RTT {conditions.rtt_ms:g} ms, queue {conditions.queue_bytes} bytes, "
        f"{conditions.loss_percent:g} % lost each way; ping every 20 ms, there and back; beside a TCP transfer (bulk): "
        "50 packets of 200 bytes a second, one way"
    )
    return f"{said}; medians of {rounds} round{'s' * (rounds != 1)}, {rows[0].seconds:g} s for each number"


def _table(rows: Sequence[Row], path: str) -> list[str]:
    measures = [measure for measure in MEASURES if measure.path == path]
    heads = ["", *(head for measure in measures for head in [measure.head, *(["of bare"] * measure.of_bare)])]
    cells = [heads, *(_cells(rows, row, measures) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        text = f"{line[0]:<{widths[0]}}  " + "  ".join(
            f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)
        )
        lines.append(f"{text}  {_about(row)}".rstrip())
    return lines + [f"  {row.title}: {said}" for row in rows for said in _notes(row)]


def _cells(rows: Sequence[Row], row: Row, measures: Sequence[Measure]) -> list[str]:
    cells = [row.title]
    for measure in measures:
        cells.append(number(row.value(measure), measure.digits))
        if measure.of_bare:
            cells.append(number(of_bare(rows, row, measure), 2))
    return cells


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _about(row: Row | None) -> str:
    if row is None:
        return ""
    return ", ".join(filter(None, [row.version, f"MTU {row.mtu}" if row.mtu else "", row.note]))


def _notes(row: Row) -> list[str]:
    return [f"not measured: {row.missing}"] * bool(row.missing) + [f"FAILED: {row.error}"] * bool(row.error)
