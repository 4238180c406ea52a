"""`tunnel-supervisor bench pairs`: one TCP stream with two groups of settings, in turn: what does the difference cost?

    bench pairs --first metrics_addr=9105 --second metrics_addr= --pairs 20

The speed of a machine drifts, so settings are compared within pairs, and their order changes from pair to pair (ABBA).
Each run has a tunnel of its own. The result is the mean of the differences with its 95 % confidence interval
(Student's t): an interval that contains 0 says that nothing was measurable, and its width how little would have been.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tools.bench import measure
from tools.bench.command import progress, run_command
from tools.bench.machine import Machine, machine
from tools.lab.namespace import stop
from tools.lab.network import Lab, Node
from tools.tunnel_pair import TunnelPair

SCHEMA_VERSION = 1

SCRAPER = """
import sys, time, urllib.request
while True:
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=10) as answer:
        answer.read()
    time.sleep(1)
"""

T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10,
         2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04)  # fmt: skip
"""Student's t for 95 %, by degrees of freedom from 1 on; 1.96 beyond."""


class PairsResult(msgspec.Struct, kw_only=True):
    """Gigabits a second, pair by pair."""

    schema_version: int = SCHEMA_VERSION
    machine: Machine
    seconds: float
    first_settings: list[str]
    second_settings: list[str]
    scraped_port: int = 0
    first: list[float] = []
    second: list[float] = []
    left_behind: list[str] = []

    @property
    def failed(self) -> bool:
        return bool(self.left_behind)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of at least two values, and half the width of its 95 % confidence interval."""
    freedom = len(values) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    return statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def run(options: argparse.Namespace) -> PairsResult:
    measure.require_iperf3()
    result = PairsResult(
        machine=machine(),
        seconds=options.seconds,
        first_settings=options.first,
        second_settings=options.second,
        scraped_port=options.scrape,
    )
    groups = (options.first, options.scrape, result.first), (options.second, 0, result.second)
    with progress(options) as log, Lab() as lab:
        server, client = lab.nodes
        for number in range(options.pairs):
            for settings, port, found in groups if number % 2 == 0 else groups[::-1]:
                log(f"pair {number + 1} of {options.pairs}")
                overrides = [*options.set, *settings]
                with TunnelPair(server, client, overrides=overrides) as pair, scrapers(lab.nodes, port):
                    time.sleep(options.settle)  # workers, spares and the exporter have started by then
                    found.append(measure.tcp_gbit(client, server, pair.server.address, options.seconds))
                result.left_behind += pair.left_behind
    return result


@contextmanager
def scrapers(nodes: list[Node], port: int) -> Iterator[None]:
    """Something that scrapes the exporter of each end once a second; nothing without a port."""
    running = [node.popen(["python3", "-c", SCRAPER, port], **measure.SILENT) for node in nodes if port]
    try:
        yield
    finally:
        stop(running, 5.0)


def table(result: PairsResult) -> str:
    names = [" ".join(each) or "defaults" for each in (result.first_settings, result.second_settings)]
    lines = [f"{result.machine}; {len(result.first)} pairs of {result.seconds:g} s, one TCP stream, Gbit/s", ""]
    for name, found in zip(names, (result.first, result.second), strict=True):
        lines.append(f"{name:<40} mean {statistics.mean(found):.3f}  sd {statistics.pstdev(found):.3f}")
    if len(result.first) > 1:
        differences = [a - b for a, b in zip(result.first, result.second, strict=True)]
        percent = [100 * (a / b - 1) for a, b in zip(result.first, result.second, strict=True)]
        for what, values, unit in (("difference", differences, "Gbit/s"), ("the same", percent, "%")):
            mean, half = interval(values)
            lines.append(
                f"{what:<40} mean {mean:+.3f}  sd {statistics.stdev(values):.3f}  "
                f"95 %: {mean - half:+.3f} to {mean + half:+.3f} {unit}"
            )
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    return run_command("bench pairs", _parser().parse_args(argv), run, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench pairs", description="Compare two groups of settings by runs in turn."
    )
    parser.add_argument("--first", action="append", default=[], metavar="KEY=VALUE", help="a setting of one group")
    parser.add_argument("--second", action="append", default=[], metavar="KEY=VALUE", help="a setting of the other")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both groups")
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="length of a run (%(default)s)")
    parser.add_argument("--settle", type=float, default=1.0, metavar="S", help="seconds before each run (%(default)s)")
    parser.add_argument(
        "--scrape", type=int, default=0, metavar="PORT", help="scrape both ends of the first group once a second here"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser
