"""The results of the loss lab, as values and as a table. schema_version counts up when a field changes its meaning or
goes.

A cell is one configuration in one scenario. Delays are one way, from the client's end to the server's, by the clock
that both share; echoes are there and back. Quantiles are over the packets that arrived; `lost` counts the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from tools.bench.kills import longest_silence_ms
from tools.bench.machine import Machine
from tools.load.generators import Arrival, Pings, Sample
from tools.load.quantiles import quantile

SCHEMA_VERSION = 1
NOTHING = "-"
LATE_SHARE = 0.01
"""With more late writes of the emulated link than this, percentile 99 is the machine's."""

PAUSE_MS = 10.0
"""A process that waits longer for a core is seen in percentile 99 or the maximum."""


class Delays(msgspec.Struct):
    """In ms; None when nothing arrived."""

    sent: int
    lost: int
    p50: float | None
    p99: float | None
    max: float | None


class Stream(msgspec.Struct, kw_only=True):
    """The light stream, alone or beside a bulk transfer."""

    light: Delays
    light_gap_ms: float
    """Longest time without an arrival; with an event, from the event on."""
    bulk_mbit: float | None = None
    """Rate at the receiving program, while the light stream ran."""
    bulk_gap_ms: float | None = None
    bulk_survived: bool | None = None
    """Its TCP connection was still there at the end."""
    client_cpu: float | None = None
    """CPU seconds of the client's processes for each 10^9 bytes that the bulk transfer has brought meanwhile."""
    server_cpu: float | None = None
    resumed: bool = True
    """False: still silent when the wait after an event was given up, so a gap is at least as long as said."""
    pause_ms: float = 0.0
    """The longest that a process which wanted to run waited for a core meanwhile."""


class Way(msgspec.Struct):
    """One direction of the emulated link, by its own counters, in segments."""

    offered: int
    lost: int
    """By the loss asked for."""
    queue_full: int
    silenced: int
    """Of the connection that was black-holed."""
    writes: int
    writes_late: int
    """By more than 1 ms: the machine, not the link."""
    worst_late_ms: float

    @property
    def loss_percent(self) -> float:
        """Of what passed the queue."""
        passed = self.offered - self.queue_full
        return 100 * self.lost / passed if passed else 0.0


class Cell(msgspec.Struct, kw_only=True):
    scenario: str
    configuration: str
    error: str = ""
    """Why this is not complete."""
    ping: Delays | None = None
    ping_pause_ms: float = 0.0
    """As in Stream."""
    alone: Stream | None = None
    beside: Stream | None = None
    to_server: Way | None = None
    to_client: Way | None = None
    counters: dict[str, dict[str, int]] = {}
    """By end: the instance's counters that are not 0, of the instance that carried the stream beside the bulk."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    loss_percent: float = 0.0
    """In each direction."""
    burst: float = 1.0
    """Mean length of a loss, in segments."""
    burst_ms: float = 0.0
    """Mean length of a loss in time, in place of `burst`; 0: it is counted in segments."""
    reorder_percent: float = 0.0
    """Segments that are held back REORDER_MS longer than the others."""
    event: str = ""
    """"cut" or "black-hole": what happens to the busiest connection."""


class Configuration(msgspec.Struct, frozen=True):
    name: str
    overrides: tuple[str, ...] | None
    """None: no tunnel, the bare link."""
    in_datagrams: bool = False
    """Its blocks are in no connection."""


class LossResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    rate_mbit: float
    rtt_ms: float
    queue_bytes: int
    congestion: str
    """Of both hosts: of the bulk transfer, and of the tunnel's connections unless their setting says otherwise."""
    seconds: float
    seed: int
    settings: list[str]
    """For every tunnel, beside its configuration's."""
    scenarios: list[Scenario]
    configurations: list[Configuration]
    cells: list[Cell] = []
    took_seconds: float = 0.0
    left_behind: list[str] = []
    """Names that the instances did not take with them; empty when all is well."""

    @property
    def failed(self) -> bool:
        return bool(self.left_behind) or any(cell.error for cell in self.cells)


def delays(sent: int, lost: int, values: Sequence[float]) -> Delays:
    if not values:
        return Delays(sent=sent, lost=lost, p50=None, p99=None, max=None)
    return Delays(sent=sent, lost=lost, p50=quantile(values, 0.5), p99=quantile(values, 0.99), max=max(values))


def of_pings(pings: Pings) -> Delays:
    return delays(pings.sent, len(pings.lost), pings.rtts_ms)


def of_arrivals(sent: int, arrivals: Sequence[Arrival]) -> Delays:
    """A packet that came twice counts by its first arrival."""
    first: dict[int, float] = {}
    for arrival in arrivals:
        first.setdefault(arrival.number, arrival.delay_ms)
    return delays(sent, sent - len(first), list(first.values()))


def gap_ms(samples: list[Sample], since: int, end: int) -> float:
    """The longest silence that touches since..end, all of it if nothing ever came."""
    return longest_silence_ms(samples, since, end) if samples else (end - since) / 1e6


def mbit(samples: Sequence[Sample], begin: int, end: int) -> float:
    """The arrivals from `begin` to `end`, in 10^6 bits a second."""

    def by(when: int) -> int:
        return max((sample.bytes for sample in samples if sample.time_ns <= when), default=0)

    return (by(end) - by(begin)) * 8 / ((end - begin) / 1e9) / 1e6


def table(result: LossResult) -> str:
    """For people."""
    lines = [
        str(result.machine),
        (
            f"link {result.rate_mbit:g} Mbit/s, RTT {result.rtt_ms:g} ms, queue {result.queue_bytes} bytes, "
            f"congestion control {result.congestion}; {result.seconds:g} s each, seed {result.seed}; "
            f"{result.took_seconds:.0f} s in all"
        ),
    ]
    if result.settings:
        lines.append(f"settings: {' '.join(result.settings)}")
    lines += [
        f"  {one.name:<10}{'no tunnel' if one.overrides is None else ' '.join(one.overrides)}"
        for one in result.configurations
    ]
    lines.append(
        "delays and gaps in ms; ping there and back, the light stream one way, from client to server (up), as "
        "the bulk transfer"
    )
    for scenario in result.scenarios:
        cells = [cell for cell in result.cells if cell.scenario == scenario.name]
        if cells:
            lines += ["", *_scenario(scenario, cells)]
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


class Part(NamedTuple):
    """A group of columns."""

    title: str
    heads: tuple[str, ...]
    width: int
    values: Callable[[Cell], Sequence[str] | None]
    """None: not measured."""

    def row(self, cells: Sequence[str] | None) -> str:
        return " ".join(f"{cell:>{self.width}}" for cell in cells or [NOTHING] * len(self.heads))


def _scenario(scenario: Scenario, cells: list[Cell]) -> list[str]:
    parts = EVENT_PARTS if scenario.event else LOSS_PARTS
    titles = [f"{part.title:<{len(part.row(part.heads))}}" for part in parts]
    lines = [
        f"{scenario.name:<12} " + " | ".join(titles),
        f"{'':12} " + " | ".join(part.row(part.heads) for part in parts),
    ]
    notes = []
    for cell in cells:
        lines.append(f"  {cell.configuration:<10} " + " | ".join(part.row(part.values(cell)) for part in parts))
        notes += [f"  {cell.configuration}: {note}" for note in _notes(cell)]
    return [line.rstrip() for line in lines + notes]


def _notes(cell: Cell) -> list[str]:
    notes = [f"FAILED: {cell.error}"] if cell.error else []
    for what, stream in (("alone", cell.alone), ("beside a bulk transfer", cell.beside)):
        if stream and not stream.resumed:
            notes.append(f"{what}: not everything flowed again when the wait ended; its gap is at least so long")
        if stream and stream.bulk_survived is False:
            notes.append("the bulk transfer's connection broke")
    pauses = {
        "ping": cell.ping_pause_ms,
        "alone": cell.alone.pause_ms if cell.alone else 0.0,
        "beside": cell.beside.pause_ms if cell.beside else 0.0,
    }
    if long := [f"{what} {pause:.0f} ms" for what, pause in pauses.items() if pause > PAUSE_MS]:
        notes.append(f"the machine was busy, a process waited for a core: {', '.join(long)}")
    ways = [way for way in (cell.to_server, cell.to_client) if way]
    late = sum(way.writes_late for way in ways)
    if late > LATE_SHARE * sum(way.writes for way in ways):
        notes.append(
            f"the machine was busy, {late} writes of the emulated link came late, the worst by "
            f"{max(way.worst_late_ms for way in ways):.0f} ms"
        )
    return notes


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def _quantiles(found: Delays | None) -> list[str] | None:
    return None if found is None else [_ms(found.p50), _ms(found.p99), _ms(found.max), str(found.lost)]


def _light(stream: Stream | None) -> list[str] | None:
    return None if stream is None else _quantiles(stream.light)


def _light_and_gap(stream: Stream | None) -> list[str] | None:
    quantiles = _light(stream)
    return None if stream is None or quantiles is None else [*quantiles, _whole(stream.light_gap_ms)]


def _bulk(stream: Stream | None) -> list[str] | None:
    return None if stream is None else [_ms(stream.bulk_mbit), _whole(stream.bulk_gap_ms)]


def _cpu(stream: Stream | None) -> list[str] | None:
    return None if stream is None else [_ms(stream.client_cpu), _ms(stream.server_cpu)]


def _link(cell: Cell) -> list[str] | None:
    """Lost of what passed the queue, in percent, and what the queue dropped."""
    if cell.to_server is None or cell.to_client is None:
        return None
    return [f"{cell.to_server.loss_percent:.2f}", f"{cell.to_client.loss_percent:.2f}", str(cell.to_server.queue_full)]


QUANTILES = ("p50", "p99", "max", "lost")
LOSS_PARTS = (
    Part("ping alone", QUANTILES, 5, lambda cell: _quantiles(cell.ping)),
    Part("light stream alone", QUANTILES, 5, lambda cell: _light(cell.alone)),
    Part("light beside bulk", QUANTILES, 5, lambda cell: _light(cell.beside)),
    Part("bulk Mbit/s", ("", "gap"), 5, lambda cell: _bulk(cell.beside)),
    Part("CPU s/GB", ("client", "server"), 6, lambda cell: _cpu(cell.beside)),
    Part("link lost %", ("up", "down", "full"), 4, _link),
)
EVENT_PARTS = (
    Part("light stream alone", (*QUANTILES, "gap"), 5, lambda cell: _light_and_gap(cell.alone)),
    Part("light beside bulk", (*QUANTILES, "gap"), 5, lambda cell: _light_and_gap(cell.beside)),
    Part("bulk Mbit/s", ("", "gap"), 5, lambda cell: _bulk(cell.beside)),
)
