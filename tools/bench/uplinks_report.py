"""The results of `bench uplinks`, as values and as tables. schema_version counts up when a field changes its meaning or
goes.

A row is one measurement, with its error if it could not be made. "Up" is from the client to the server. Gaps are the
longest time between two arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from tools.bench.loss_report import Delays
from tools.bench.machine import Machine

SCHEMA_VERSION = 1
NOTHING = "-"


class Path(msgspec.Struct, frozen=True):
    """A cable of the lab, with these figures in each direction."""

    mbit: float
    rtt_ms: float
    loss_percent: float = 0.0


class Aggregate(msgspec.Struct, kw_only=True):
    """One TCP stream, in Mbit/s."""

    paths: str
    congestion: str
    way: str
    error: str = ""
    bare: float | None = None
    """By the first path, without a tunnel."""
    alone: list[float] = []
    """Through a tunnel by each path alone."""
    together: float | None = None
    """Through a tunnel with all of them as uplinks."""
    sum_mbit: float

    @property
    def share(self) -> float | None:
        """Of the paths' sum."""
        return None if self.together is None else self.together / self.sum_mbit


class Pull(msgspec.Struct, kw_only=True):
    """The first of two cables is pulled under load, and plugged again later."""

    where: str
    traffic: str
    way: str
    error: str = ""
    sent: int | None = None
    """Packets; None for a TCP stream, whose bytes all arrive or whose connection ends."""
    lost: int | None = None
    twice: int | None = None
    """Packets that arrived more than once."""
    overtaken: int | None = None
    """Packets that arrived after one with a higher number."""
    quiet_gap_ms: float | None = None
    """Before the cable was pulled, for comparison."""
    gap_ms: float | None = None
    """From the pull on, until the cable was plugged."""
    plug_gap_ms: float | None = None
    """From then on."""
    back_seconds: float | None = None
    """From the plug until the cable carried the load's packets again; None: it did not within the time."""


class Backup(msgspec.Struct, kw_only=True):
    """A main uplink and a backup, under a stream of packets."""

    where: str
    way: str
    error: str = ""
    main_bytes: int | None = None
    backup_bytes: int | None = None
    """Both while the main uplink worked, both ways together."""
    seconds: float | None = None
    """Of that time."""
    lost: int | None = None
    gap_ms: float | None = None
    """After the main uplink was pulled."""
    home_seconds: float | None = None
    """From the plug until the main uplink carried the packets again."""
    backup_bytes_after: int | None = None
    """What the backup carried in as long a time as `seconds`, from then on."""


class Idle(msgspec.Struct, kw_only=True):
    """Echoes and nothing else."""

    by: str
    error: str = ""
    ping: Delays | None = None


Row = Aggregate | Pull | Backup | Idle


class UplinksResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    seconds: float
    settings: list[str]
    """For every tunnel."""
    paths: dict[str, list[Path]]
    aggregate: list[Aggregate] = []
    pull: list[Pull] = []
    backup: list[Backup] = []
    idle: list[Idle] = []
    left_behind: list[str] = []
    """Names that the instances did not take with them; empty when all is well."""

    def rows(self) -> list[Row]:
        return [*self.aggregate, *self.pull, *self.backup, *self.idle]

    @property
    def failed(self) -> bool:
        return bool(self.left_behind) or any(row.error for row in self.rows())


class Column(NamedTuple):
    head: str
    width: int
    """Of a name if it is negative."""
    value: Callable[[Any], str]


def _number(digits: int, of: Callable[[Any], float | int | None]) -> Callable[[Any], str]:
    def text(row: Any) -> str:
        value = of(row)
        return NOTHING if value is None else f"{value:.{digits}f}"

    return text


AGGREGATE = (
    Column("TCP, Mbit/s", -14, lambda row: row.paths),
    Column("control", -9, lambda row: row.congestion),
    Column("way", -5, lambda row: row.way),
    Column("bare, first", 12, _number(1, lambda row: row.bare)),
    Column("each alone", 14, lambda row: " ".join(f"{one:.1f}" for one in row.alone) or NOTHING),
    Column("together", 9, _number(1, lambda row: row.together)),
    Column("of the sum", 11, _number(2, lambda row: row.share)),
)
PULL = (
    Column("pulled", -8, lambda row: row.where),
    Column("load", -8, lambda row: row.traffic),
    Column("way", -5, lambda row: row.way),
    Column("sent", 7, _number(0, lambda row: row.sent)),
    Column("lost", 6, _number(0, lambda row: row.lost)),
    Column("twice", 6, _number(0, lambda row: row.twice)),
    Column("overtaken", 10, _number(0, lambda row: row.overtaken)),
    Column("gap before", 11, _number(0, lambda row: row.quiet_gap_ms)),
    Column("after, ms", 10, _number(0, lambda row: row.gap_ms)),
    Column("plugged", 8, _number(0, lambda row: row.plug_gap_ms)),
    Column("back, s", 8, _number(2, lambda row: row.back_seconds)),
)
BACKUP = (
    Column("pulled", -8, lambda row: row.where),
    Column("way", -5, lambda row: row.way),
    Column("main, bytes", 12, _number(0, lambda row: row.main_bytes)),
    Column("backup", 10, _number(0, lambda row: row.backup_bytes)),
    Column("in s", 6, _number(1, lambda row: row.seconds)),
    Column("lost", 6, _number(0, lambda row: row.lost)),
    Column("gap, ms", 8, _number(0, lambda row: row.gap_ms)),
    Column("home, s", 8, _number(2, lambda row: row.home_seconds)),
    Column("backup then", 12, _number(0, lambda row: row.backup_bytes_after)),
)
IDLE = (
    Column("ping, ms", -24, lambda row: row.by),
    Column("p50", 8, _number(1, lambda row: row.ping and row.ping.p50)),
    Column("p99", 8, _number(1, lambda row: row.ping and row.ping.p99)),
    Column("max", 8, _number(1, lambda row: row.ping and row.ping.max)),
    Column("sent", 6, _number(0, lambda row: row.ping and row.ping.sent)),
    Column("lost", 6, _number(0, lambda row: row.ping and row.ping.lost)),
)


def table(result: UplinksResult) -> str:
    """For people."""
    lines = [
        f"{result.machine}; {result.seconds:g} s each",
        f"settings: {' '.join(result.settings) or 'defaults'}",
    ]
    for name, paths in result.paths.items():
        lines.append(f"  {name:<10}" + ", ".join(map(_path, paths)))
    for columns, rows in (
        (AGGREGATE, result.aggregate),
        (PULL, result.pull),
        (BACKUP, result.backup),
        (IDLE, result.idle),
    ):
        if rows:
            lines += ["", *_rows(columns, rows)]
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def _rows(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "".join(
            f"{cell:<{-column.width}}" if column.width < 0 else f"{cell:>{column.width}}"
            for column, cell in zip(columns, cells, strict=True)
        ).rstrip()

    found = [line([column.head for column in columns])]
    for row in rows:
        found.append(line([column.value(row) for column in columns]))
        if row.error:
            found.append(f"  FAILED: {row.error}")
    return found


def _path(path: Path) -> str:
    loss = f", {path.loss_percent:g} % loss" if path.loss_percent else ""
    return f"{path.mbit:g} Mbit/s {path.rtt_ms:g} ms{loss}"
