"""`tunnel-supervisor bench uplinks`: a client with two uplinks: their sum, and what a pulled cable costs.

    aggregate   one TCP stream each way: by both uplinks, by each alone, and without a tunnel by the better one
    pull        the first of two equal cables is pulled under load, and plugged again; out of the client's socket, or in
                the middle, where packets vanish without a word
    backup      what a backup uplink carries while the main one works, and the gap when that one is pulled
    idle        echoes, with loss on one of two uplinks

Each cable is an emulated link (tools/lab/cables.py), whose queue holds QUEUE_MS at its rate. A load is one of LOADS. It
runs for WARM_UP_SECONDS before anything is measured. A cable carries again when CARRIES_BYTES have come by it in the
direction of the load, which is more than new connections need. The results are in tools/bench/uplinks_report.py.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from tools.bench.command import Log, progress, run_command
from tools.bench.loss_report import gap_ms, mbit, of_pings
from tools.bench.machine import machine
from tools.bench.uplinks_report import Aggregate, Backup, Idle, Path, Pull, Row, UplinksResult, table
from tools.lab import congestion
from tools.lab.cables import DOWN, UP, WHERES, Cable, Cables
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import Overdue, until
from tools.load.flows import TcpFlow, UdpFlow, ping
from tools.load.generators import Sample
from tools.tunnel_pair import CARRIER_PORT, CLIENT_ADDRESS, SERVER_ADDRESS, TunnelPair

AGGREGATES = {
    "40+10": (Path(40, 20), Path(10, 60)),
    "40+40": (Path(40, 20), Path(40, 20)),
    "100+5": (Path(100, 20), Path(5, 60)),
}
PULLED = (Path(40, 20), Path(40, 40))
MAIN_AND_BACKUP = (Path(40, 20), Path(10, 60))
CLEAN_AND_LOSSY = (Path(40, 20), Path(40, 20, loss_percent=2.0))

PARTS = ("aggregate", "pull", "backup", "idle")
CONTROLS = ("cubic", "bbr")
WAYS = {"up": UP, "down": DOWN}
QUEUE_MS = 100.0

WARM_UP_SECONDS = 3.0
CARRIES_BYTES = 20_000
BACK_SECONDS = 60.0
"""A cable that has not carried within this time after the plug counts as lost."""

LAST_SECONDS = 5.0
FLOW_SECONDS = 24 * 3600.0
PINGS_A_SECOND = 50


class Load(NamedTuple):
    """Packets of `size` payload bytes, `rate` a second; a TCP stream without a rate."""

    rate: float
    size: int


LOADS = {"tcp": Load(0, 0), "light": Load(200, 200), "20 Mbit": Load(2000, 1250)}
BACKUP_LOAD = Load(400, 1250)
"""Less than what the backup can carry."""


class Tunnel(NamedTuple):
    """One that is connected, and its lab."""

    lab: Cables
    pair: TunnelPair

    def ends(self, way: str) -> tuple[Node, Node, str]:
        """Source, sink, and the sink's address inside."""
        if way == "up":
            return self.lab.client, self.lab.server, SERVER_ADDRESS
        return self.lab.server, self.lab.client, CLIENT_ADDRESS


class Uplinks:
    """One run, which fills `result`. A measurement that fails costs the others nothing."""

    def __init__(self, options: argparse.Namespace, result: UplinksResult, log: Log) -> None:
        self._options = options
        self._result = result
        self._log = log

    def run(self) -> None:
        parts = {"aggregate": self._aggregate, "pull": self._pull, "backup": self._backup, "idle": self._idle}
        for name in self._options.only or PARTS:
            parts[name]()

    # -- aggregate

    def _aggregate(self) -> None:
        controls = self._options.congestion or CONTROLS
        chosen = {name: AGGREGATES[name] for name in self._options.paths or AGGREGATES}
        self._result.paths |= {name: list(paths) for name, paths in chosen.items()}
        for (name, paths), control in itertools.product(chosen.items(), controls):
            total = sum(path.mbit for path in paths)
            rows = {way: Aggregate(paths=name, congestion=control, way=way, sum_mbit=total) for way in WAYS}
            self._result.aggregate += rows.values()
            with _failures(*rows.values()), Cables(*map(spec, paths)) as lab:
                congestion.set_default(lab.nodes, control)
                for way, row in rows.items():
                    self._log(f"aggregate {name} {control} {way}: no tunnel")
                    ends = (lab.client, lab.server) if way == "up" else (lab.server, lab.client)
                    row.bare = self._tcp_mbit(*ends, ends[1].address)
                for cable in lab.cables:
                    with self._tunnel(lab, alone(cable)) as tunnel:
                        for way, row in rows.items():
                            self._log(f"aggregate {name} {control} {way}: {cable.interface} alone")
                            row.alone.append(self._tcp_mbit(*tunnel.ends(way)))
                with self._tunnel(lab, together(lab)) as tunnel:
                    for way, row in rows.items():
                        self._log(f"aggregate {name} {control} {way}: together")
                        row.together = self._tcp_mbit(*tunnel.ends(way))

    def _tcp_mbit(self, source: Node, sink: Node, address: str) -> float:
        with TcpFlow(source, sink, address, seconds=FLOW_SECONDS) as flow:
            flow.wait_for_bytes()
            _pass(WARM_UP_SECONDS)
            begin = time.monotonic_ns()
            _pass(self._options.seconds)
            if not flow.alive:
                raise LabError("the TCP stream has ended")
            return mbit(list(flow.samples), begin, time.monotonic_ns())

    # -- pull

    def _pull(self) -> None:
        self._result.paths["pull"] = list(PULLED)
        for where, traffic, way in itertools.product(WHERES, LOADS, WAYS):
            row = Pull(where=where, traffic=traffic, way=way)
            self._result.pull.append(row)
            self._log(f"pull, {where}, {traffic}, {way}")
            with (
                _failures(row),
                Cables(*map(spec, PULLED)) as lab,
                self._tunnel(lab, together(lab)) as tunnel,
                Running(tunnel, way, LOADS[traffic]) as load,
            ):
                cable = lab.cables[0]
                times = [time.monotonic_ns()]
                _pass(self._options.seconds)
                times.append(time.monotonic_ns())
                cable.pull(where)
                _pass(self._options.seconds)
                times.append(time.monotonic_ns())
                row.back_seconds = plug(cable, WAYS[way])
                _pass(self._options.seconds)
                times.append(time.monotonic_ns())
                row.quiet_gap_ms, row.gap_ms, row.plug_gap_ms = map(load.gap_ms, times, times[1:])
                row.sent, row.lost, row.twice, row.overtaken = load.end()

    # -- backup

    def _backup(self) -> None:
        self._result.paths["backup"] = list(MAIN_AND_BACKUP)
        for where, way in itertools.product(WHERES, WAYS):
            row = Backup(where=where, way=way)
            self._result.backup.append(row)
            self._log(f"backup, {where}, {way}")
            with (
                _failures(row),
                Cables(*map(spec, MAIN_AND_BACKUP)) as lab,
                self._tunnel(lab, together(lab, backup=True)) as tunnel,
                Running(tunnel, way, BACKUP_LOAD) as load,
            ):
                main, backup = lab.cables
                row.main_bytes, row.backup_bytes, row.seconds = self._carried(main, backup)
                pulled = time.monotonic_ns()
                main.pull(where)
                _pass(self._options.seconds)
                row.gap_ms = load.gap_ms(pulled, time.monotonic_ns())
                row.home_seconds = plug(main, WAYS[way])
                _, row.backup_bytes_after, _ = self._carried(main, backup)
                _, row.lost, _, _ = load.end()

    def _carried(self, *cables: Cable) -> tuple[int, int, float]:
        """Bytes of the main and the backup cable, both ways, in so many seconds."""
        began = time.monotonic()
        before = [sum(cable.carried().values()) for cable in cables]
        _pass(self._options.seconds)
        main, backup = (sum(cable.carried().values()) - then for cable, then in zip(cables, before, strict=True))
        return main, backup, time.monotonic() - began

    # -- idle

    def _idle(self) -> None:
        self._result.paths["idle"] = list(CLEAN_AND_LOSSY)
        with Cables(*map(spec, CLEAN_AND_LOSSY)) as lab:
            clean, lossy = lab.cables
            for cable, name in ((clean, "clean"), (lossy, "lossy")):
                self._echo(lab, f"no tunnel, {name}", cable.far_address)
            for name, settings in (
                ("tunnel, clean alone", alone(clean)),
                ("tunnel, lossy alone", alone(lossy)),
                ("tunnel, both", together(lab)),
            ):
                self._echo(lab, name, SERVER_ADDRESS, settings)

    def _echo(self, lab: Cables, name: str, address: str, settings: dict[str, Any] | None = None) -> None:
        self._log(f"idle: {name}")
        row = Idle(by=name)
        self._result.idle.append(row)
        count = max(2, round(self._options.seconds * PINGS_A_SECOND))
        with _failures(row):
            if settings is None:
                row.ping = of_pings(ping(lab.client, address, count=count, interval=1 / PINGS_A_SECOND))
            else:
                with self._tunnel(lab, settings):
                    row.ping = of_pings(ping(lab.client, address, count=count, interval=1 / PINGS_A_SECOND))

    @contextmanager
    def _tunnel(self, lab: Cables, client: dict[str, Any]) -> Iterator[Tunnel]:
        """Every connection is established."""
        pair = TunnelPair(lab.server, lab.client, client=client, overrides=self._options.set)
        try:
            with pair:
                until(
                    lambda: all(one["state"] == "established" for one in pair.client.running()["connections"]),
                    "every connection established",
                )
                yield Tunnel(lab, pair)
        finally:
            self._result.left_behind += pair.left_behind


class Running:
    """A load in one direction of a tunnel, which has warmed up."""

    def __init__(self, tunnel: Tunnel, way: str, load: Load) -> None:
        source, sink, address = tunnel.ends(way)
        self._flow: TcpFlow | UdpFlow
        if load.rate:
            self._flow = UdpFlow(source, sink, address, rate=load.rate, size=load.size)
        else:
            self._flow = TcpFlow(source, sink, address, seconds=FLOW_SECONDS)

    def __enter__(self) -> Running:
        try:
            until(self._arrived, "the load's first packet")
            _pass(WARM_UP_SECONDS)
        except BaseException:
            self._flow.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._flow.close()

    def gap_ms(self, begin: int, end: int) -> float:
        """The longest silence that touches begin..end, in monotonic ns."""
        return gap_ms(self._arrived(), begin, end)

    def end(self) -> tuple[int | None, int | None, int | None, int | None]:
        """No more is sent: packets sent, lost, arrived twice, overtaken. None of a TCP stream, which must be alive."""
        if isinstance(self._flow, TcpFlow):
            if not self._flow.alive:
                raise LabError("the TCP stream has ended")
            return None, None, None, None
        sent = self._flow.end()
        self._flow.wait_for_all(time.monotonic() + LAST_SECONDS)
        numbers = [arrival.number for arrival in list(self._flow.arrivals)]
        highest = itertools.accumulate(numbers, max)
        overtaken = sum(number < most for number, most in zip(numbers, highest, strict=True))
        return sent, self._flow.missing(), len(numbers) - len(set(numbers)), overtaken

    def _arrived(self) -> list[Sample]:
        if isinstance(self._flow, TcpFlow):
            return list(self._flow.samples)
        return [Sample(arrival.time_ns, 0) for arrival in list(self._flow.arrivals)]


def spec(path: Path) -> LinkSpec:
    """Of both directions of a cable."""
    return LinkSpec(
        rate_mbit=path.mbit,
        delay_ms=path.rtt_ms / 2,
        loss_percent=path.loss_percent,
        queue_packets=None,
        queue_bytes=round(path.mbit * 1e6 / 8 * QUEUE_MS / 1e3),
    )


def alone(cable: Cable) -> dict[str, Any]:
    """Settings of a client that uses one cable, as any client does."""
    return {"remote_addr": f"{cable.far_address}:{CARRIER_PORT}"}


def together(lab: Cables, backup: bool = False) -> dict[str, Any]:
    """Settings of a client with an uplink for each cable; the last one may be a backup."""
    uplinks: list[Any] = [cable.interface for cable in lab.cables]
    if backup:
        uplinks[-1] = {"interface": uplinks[-1], "role": "backup"}
    return {"uplinks": uplinks}


def plug(cable: Cable, way: str) -> float | None:
    """Plug it. Seconds until it carries the load; None if it does not."""
    began = time.monotonic()
    cable.plug()
    before = cable.carried()[way]
    try:
        until(partial(_has_carried, cable, way, before + CARRIES_BYTES), "packets by the plugged cable", BACK_SECONDS)
    except Overdue:
        return None
    return time.monotonic() - began


def _has_carried(cable: Cable, way: str, count: int) -> bool:
    return cable.carried()[way] >= count


def _pass(seconds: float) -> None:
    """Let the traffic run."""
    time.sleep(seconds)


@contextmanager
def _failures(*rows: Row) -> Iterator[None]:
    try:
        yield
    except (LabError, Overdue) as error:
        for row in rows:
            row.error = str(error)


def run(options: argparse.Namespace) -> UplinksResult:
    """Measure all that `options` choose."""
    for control in options.congestion or (CONTROLS if "aggregate" in (options.only or PARTS) else ()):
        congestion.require(control)
    result = UplinksResult(machine=machine(), seconds=options.seconds, settings=options.set, paths={})
    with progress(options) as log:
        Uplinks(options, result, log).run()
    return result


def main(argv: list[str]) -> int:
    return run_command("bench uplinks", _parser().parse_args(argv), run, table)


def _seconds(text: str) -> float:
    if not 0.1 <= (value := float(text)) <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench uplinks",
        description="Measure a client with two uplinks: together, beside each alone, and when a cable is pulled. "
        "All of it takes about 15 minutes.",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="N", help="length of each measurement (%(default)s)"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument(
        "--paths", choices=[*AGGREGATES], action="append", help="aggregate: these paths alone; may be repeated"
    )
    parser.add_argument(
        "--congestion",
        action="append",
        metavar="NAME",
        help="aggregate: congestion control of both hosts; may be repeated (cubic and bbr)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both ends of every tunnel"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser
