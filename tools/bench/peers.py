"""`tunnel-supervisor bench peers`: this tunnel beside other programs, in the same nodes of the same run.

Each path has one lab for all: two nodes that a veth pair joins (clean), or an emulated link that loses packets (lossy).
In a round every contender is opened, measured and closed, one after the other. Every second round goes backwards, so a
machine that changes its speed changes all of them. A contender that is not here, or fails, is a row that says why.

    clean    ping alone, every 10 ms; one TCP stream, with the CPU time of the whole machine; several streams;
             UDP packets of 200 bytes as fast as one sender can
    lossy    ping alone, every 20 ms; 50 packets of 200 bytes a second beside one TCP transfer, both one way

The lossy link loses nothing until a contender is open. In a round all meet equal losses, from one seed. Hosts have the
congestion control of --congestion, whatever this machine's is. Contenders are in tools/bench/contenders.py and
tools/bench/other_programs.py, results in tools/bench/peers_report.py, the plot in tools/bench/peers_plot.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tools.bench import measure, peers_plot
from tools.bench.command import DONE, FAILED, Log, print_result, progress, run_command
from tools.bench.contenders import BARE, OURS, Contender, Site
from tools.bench.loss import (
    LIGHT_BYTES,
    LIGHT_RATE,
    ONE_WAY_MS,
    PATIENCE_SECONDS,
    RATE_MBIT,
    WARM_UP_SECONDS,
)
from tools.bench.loss_report import mbit, of_arrivals, of_pings
from tools.bench.machine import machine
from tools.bench.other_programs import PROGRAMS
from tools.bench.peers_report import CLEAN, LOSSY, PATHS, Conditions, PeersResult, Row, join, table
from tools.bench.programs import PACKAGES, NotHere, Programs, fetched
from tools.lab import congestion
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab, Node
from tools.lab.waiting import Overdue, until
from tools.load.flows import TcpFlow, UdpFlow, ping
from tools.load.quantiles import quantile

CONTENDERS = (BARE, *OURS, *PROGRAMS)
SECONDS = {CLEAN: 3, LOSSY: 12}
"""Of each measurement. With loss, percentile 99 needs 600 packets."""

STREAMS = 4
QUEUE_MS = 100.0
SETTLE_SECONDS = 1.0
"""After a start: the threads and helpers of any program have come to rest."""

GONE_SECONDS = 5.0
BULK_SECONDS = 24 * 3600.0
START_SECONDS = 2.5
"""For the estimate: a contender opens and closes."""

FAILURES = (LabError, Overdue, OSError, subprocess.SubprocessError)

Numbers = dict[str, float]
Measuring = Callable[[Site, str, float], Numbers]
"""Of an open contender: the site, the server's address inside, and for how many seconds."""


def echoes(site: Site, address: str, seconds: float) -> Numbers:
    found = measure.ping_idle(site.client, site.server, address, seconds).rtts_ms
    if not found:
        raise LabError("no echo came back")
    return {"ping_p50": quantile(found, 0.5), "ping_p99": quantile(found, 0.99)}


def one_stream(site: Site, address: str, seconds: float) -> Numbers:
    def gbit() -> float:
        return measure.tcp_gbit(site.client, site.server, address, seconds)

    rate, _, used = measure.cpu_per_gigabyte({}, gbit, seconds)
    return {"tcp": rate, "cpu": used}


def many_streams(site: Site, address: str, seconds: float) -> Numbers:
    return {"tcp_many": measure.tcp_gbit(site.client, site.server, address, seconds, STREAMS)}


def small_packets(site: Site, address: str, seconds: float) -> Numbers:
    return {"udp": measure.udp_packets(site.client, site.server, address, seconds) / 1000}


def echoes_with_loss(site: Site, address: str, seconds: float) -> Numbers:
    count = max(1, round(seconds * LIGHT_RATE))
    found = of_pings(ping(site.client, address, count=count, interval=1 / LIGHT_RATE, timeout=PATIENCE_SECONDS))
    return _quantiles("ping", found.sent, found.lost, found.p50, found.p99)


def beside_bulk(site: Site, address: str, seconds: float) -> Numbers:
    with TcpFlow(site.client, site.server, address, seconds=BULK_SECONDS) as bulk:
        bulk.wait_for_bytes()
        time.sleep(WARM_UP_SECONDS)
        with UdpFlow(site.client, site.server, address, rate=LIGHT_RATE, size=LIGHT_BYTES) as light:
            until(lambda: light.arrivals, "a packet of the light stream")
            begin = time.monotonic_ns()
            time.sleep(seconds)
            end = time.monotonic_ns()
            sent = light.end()
            light.wait_for_all(time.monotonic() + PATIENCE_SECONDS)
            found = of_arrivals(sent, list(light.arrivals))
        rate = mbit(list(bulk.samples), begin, end)
    return {"bulk": rate, **_quantiles("light", found.sent, found.lost, found.p50, found.p99)}


def _quantiles(name: str, sent: int, lost: int, p50: float | None, p99: float | None) -> Numbers:
    if p50 is None or p99 is None:
        raise LabError(f"none of {sent} packets arrived")
    return {f"{name}_p50": p50, f"{name}_p99": p99, f"{name}_lost": 100 * lost / sent}


STEPS: dict[str, dict[str, Measuring]] = {
    CLEAN: {"ping": echoes, "TCP": one_stream, f"{STREAMS} streams": many_streams, "UDP": small_packets},
    LOSSY: {"ping": echoes_with_loss, "beside bulk": beside_bulk},
}


class Meeting:
    """All contenders on one path, round by round; `result` gets their rows."""

    def __init__(
        self, path: str, lab: Lab, rows: dict[Contender, Row], site: Site, result: PeersResult, log: Log
    ) -> None:
        self._path = path
        self._lab = lab
        self._site = site
        self._left_behind = result.left_behind
        self._log = log
        self._rows = rows
        self._out: set[Contender] = set()
        """Those that could not be opened: they are not tried again."""
        result.rows += rows.values()
        congestion.set_default(lab.nodes, result.conditions.congestion)
        self._quiet = self._inside()

    def round(self, number: int, lossy: LinkSpec) -> None:
        rows = list(self._rows.items())
        for contender, row in rows if lossy.seed % 2 else rows[::-1]:
            row.rounds.append({})
            if contender not in self._out:
                self._log(f"{self._path}: round {number + 1}, {row.title}")
                self._meet(contender, row, lossy)

    def _meet(self, contender: Contender, row: Row, lossy: LinkSpec) -> None:
        try:
            row.version = contender.version(self._site.programs)
            with contender.open(self._site) as opened:
                row.note, row.mtu = opened.note, _mtu(self._site.client, opened.address)
                time.sleep(SETTLE_SECONDS)
                self._change_link(lossy)
                self._measure(row, opened.address)
                self._change_link(_without_loss(lossy))
        except NotHere as reason:
            row.missing = str(reason)
            self._out.add(contender)
        except FAILURES as error:
            row.error = row.error or str(error)
            self._out.add(contender)
            self._change_link(_without_loss(lossy))
        self._expect_nothing_left(contender)

    def _measure(self, row: Row, address: str) -> None:
        for what, measuring in STEPS[self._path].items():
            try:
                row.rounds[-1] |= measuring(self._site, address, row.seconds)
            except FAILURES as error:
                row.error = row.error or f"{what}: {error}"

    def _change_link(self, spec: LinkSpec) -> None:
        for link in self._lab.links:
            link.change(spec)

    def _expect_nothing_left(self, contender: Contender) -> None:
        try:
            until(lambda: self._inside() <= self._quiet, "nothing left", GONE_SECONDS)
        except Overdue:
            left = sorted(self._inside() - self._quiet)
            self._left_behind += [f"{contender.name}: {name}" for name in left]
            self._quiet |= set(left)

    def _inside(self) -> set[str]:
        """Processes and devices in the nodes."""
        return {
            f"{what} in {node.name!r}"
            for node in self._lab
            for what in [*node.devices(), *(f"process {pid}" for pid in node.processes())]
        }


def _mtu(node: Node, address: str) -> int:
    """Of the device that packets to `address` enter."""
    (route,) = json.loads(node.run(["ip", "-json", "route", "get", address]).stdout)
    (device,) = json.loads(node.run(["ip", "-json", "link", "show", "dev", route["dev"]]).stdout)
    mtu: int = device["mtu"]
    return mtu


def _without_loss(spec: LinkSpec) -> LinkSpec:
    return msgspec.structs.replace(spec, loss_percent=0.0)


def new_row(path: str, contender: Contender, seconds: float) -> Row:
    return Row(path=path, contender=contender.name, kind=contender.kind, title=contender.title, seconds=seconds)


def _seconds(options: argparse.Namespace, path: str) -> float:
    seconds: float = options.seconds or SECONDS[path]
    return seconds


def about_seconds(options: argparse.Namespace, contenders: int) -> float:
    """How long it will take if all contenders are here."""
    warm_up = {CLEAN: 0.0, LOSSY: WARM_UP_SECONDS}
    each = [
        len(STEPS[path]) * _seconds(options, path) + warm_up[path] + SETTLE_SECONDS + START_SECONDS
        for path in options.path or PATHS
    ]
    return options.rounds * contenders * sum(each)


def run(options: argparse.Namespace) -> PeersResult:
    """Measure all that `options` choose, and draw it if they say so."""
    measure.require_iperf3()
    contenders = [one for one in CONTENDERS if one.name in (options.only or [one.name])]
    result = PeersResult(
        conditions=Conditions(
            machine=machine(),
            congestion=options.congestion,
            rate_mbit=RATE_MBIT,
            rtt_ms=2 * ONE_WAY_MS,
            queue_bytes=round(RATE_MBIT * 1e6 / 8 * QUEUE_MS / 1e3),
            loss_percent=options.loss,
            settings=options.set,
        )
    )
    print(f"bench peers: about {about_seconds(options, len(contenders)) / 60:.0f} minutes", file=sys.stderr)
    began = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context(progress(options))
        named = dict(options.program)
        programs = Programs(named)
        if options.fetch:
            log("fetching")
            programs = stack.enter_context(fetched(named, [word for one in contenders for word in one.commands]))
        for path in options.path or PATHS:
            _meet_on(path, contenders, programs, options, result, log)
    result.took_seconds = time.monotonic() - began
    if options.plot:
        peers_plot.write(result, options.plot)
    return result


def _meet_on(
    path: str,
    contenders: list[Contender],
    programs: Programs,
    options: argparse.Namespace,
    result: PeersResult,
    log: Log,
) -> None:
    conditions = result.conditions
    lossy = LinkSpec(
        delay_ms=conditions.rtt_ms / 2,
        rate_mbit=conditions.rate_mbit,
        queue_packets=None,
        queue_bytes=conditions.queue_bytes,
        loss_percent=conditions.loss_percent,
    )
    with Lab(link=_without_loss(lossy) if path == LOSSY else None) as lab:
        server, client = lab.nodes
        site = Site(server, client, programs, options.set, result.left_behind)
        rows = {one: new_row(path, one, _seconds(options, path)) for one in contenders}
        meeting = Meeting(path, lab, rows, site, result, log)
        for number in range(options.rounds):
            meeting.round(number, msgspec.structs.replace(lossy, seed=options.seed + number))


def joined(files: list[str]) -> PeersResult:
    """The results in files that --json wrote, as one."""
    results = []
    for file in files:
        try:
            results.append(msgspec.json.decode(Path(file).read_bytes(), type=PeersResult))
        except (OSError, msgspec.MsgspecError) as error:
            raise LabError(f"--join {file}: {error}") from None
    return join(results)


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if not options.join:
        return run_command("bench peers", options, run, table)
    try:
        result = joined(options.join)
        if options.plot:
            peers_plot.write(result, options.plot)
    except LabError as error:
        print(f"bench peers: {error}", file=sys.stderr)
        return FAILED
    print_result(options, result, table)
    return DONE


def _program(text: str) -> tuple[str, str]:
    command, equals, path = text.partition("=")
    if not equals or command not in PACKAGES:
        raise argparse.ArgumentTypeError(f"expected COMMAND=PATH with one of {', '.join(PACKAGES)}, got {text!r}")
    return command, path


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _percent(text: str) -> float:
    if not 0 <= (value := float(text)) < 100:
        raise argparse.ArgumentTypeError(f"expected 0 to less than 100, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench peers",
        description="Measure this tunnel beside OpenVPN, WireGuard and fastd, as far as they are here. Nothing is "
        "installed: --fetch unpacks what is missing into a directory for this run alone.",
    )
    parser.add_argument(
        "--seconds",
        type=_count,
        metavar="N",
        help="length of each measurement (" + ", ".join(f"{path} {SECONDS[path]}" for path in PATHS) + ")",
    )
    parser.add_argument(
        "--rounds", type=_count, default=3, metavar="N", help="all contenders, this often (%(default)s)"
    )
    parser.add_argument("--path", choices=PATHS, action="append", help="this path alone")
    parser.add_argument(
        "--only",
        choices=[one.name for one in CONTENDERS],
        action="append",
        help="this contender alone; may be repeated",
    )
    parser.add_argument(
        "--congestion", default="cubic", metavar="NAME", help="congestion control of all hosts (%(default)s)"
    )
    parser.add_argument(
        "--loss", type=_percent, default=2.0, metavar="PERCENT", help="of the lossy path, each way (%(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="of the losses in round 1; a round goes backwards if even (%(default)s)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both ends of this tunnel"
    )
    parser.add_argument("--fetch", action="store_true", help="download programs that are missing, for this run (apt)")
    parser.add_argument(
        "--program",
        type=_program,
        action="append",
        default=[],
        metavar="COMMAND=PATH",
        help=f"where one is that should run: {', '.join(PACKAGES)}",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the result as SVG")
    parser.add_argument("--join", nargs="+", metavar="FILE", help="measure nothing: join what --json wrote")
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
