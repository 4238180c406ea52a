"""One bulk transfer of ours beside one bare TCP flow, in the queue of one slow link: python -m tools.bench coexist

Both transfers go from the client's node to the server's, over an emulated link of 50 Mbit/s and 40 ms that loses
nothing but what its queue has no room for. Ours has Cubic inside, as most hosts do. The bare flow has Cubic or BBR. In
the rows "bare" ours is a bare flow with Cubic as well, so they tell what the kernel makes of it.

Ours begins. The other follows as soon as bytes of ours have come, and both run for a while before they are counted. The
rates are those of the programs that receive. So headers, parity and what was sent again lower ours. Jain's index is
(a + b)^2 / 2 (a^2 + b^2): 1 for equal shares, 0.5 if one has all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import get_args, get_type_hints

import msgspec

from pipeline.config.schema import Config
from tools.bench.command import run_command
from tools.bench.loss_report import mbit
from tools.bench.loss_testbed import CONNECTED_SECONDS, has_path
from tools.bench.machine import Machine, machine
from tools.lab import congestion
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.lab.waiting import Overdue, until
from tools.load.flows import TcpFlow
from tools.tunnel_pair import TunnelPair

SCHEMA_VERSION = 1
RATE_MBIT, ONE_WAY_MS = 50.0, 20.0
BDP_BYTES = RATE_MBIT * 1e6 / 8 * 2 * ONE_WAY_MS / 1e3
QUEUES = (0.5, 1.0, 2.0)
"""In bandwidth-delay products."""

BARE = "bare"
OURS = (BARE, *(carrier for carrier in get_args(get_type_hints(Config)["carrier"]) if carrier != "auto"))
OTHERS = ("cubic", "bbr")
INSIDE = "cubic"

WARM_UP_SECONDS = 5.0
BULK_SECONDS = 24 * 3600.0
CELL_SECONDS = 4.0
"""For the estimate: until a tunnel stands, and until it has ended."""


class Cell(msgspec.Struct, kw_only=True):
    """`ours` and `other`: Mbit/s."""

    queue: float
    ours_is: str
    other_is: str
    ours: list[float] = []
    other: list[float] = []
    """Of each round."""
    error: str = ""

    @property
    def shares(self) -> tuple[float, float]:
        """The medians."""
        return statistics.median(self.ours), statistics.median(self.other)


class CoexistResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    rate_mbit: float = RATE_MBIT
    rtt_ms: float = 2 * ONE_WAY_MS
    seconds: float
    rounds: int
    settings: list[str]
    cells: list[Cell] = []
    left_behind: list[str] = []

    @property
    def failed(self) -> bool:
        return bool(self.left_behind) or any(cell.error for cell in self.cells)


def jain(shares: Sequence[float]) -> float:
    """1 for equal shares, 1 / n if one of n has all."""
    squares = sum(each * each for each in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def measure(cell: Cell, result: CoexistResult) -> None:
    """One round."""
    link = LinkSpec(
        delay_ms=ONE_WAY_MS, rate_mbit=RATE_MBIT, queue_packets=None, queue_bytes=round(cell.queue * BDP_BYTES)
    )
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(link=link))
        congestion.set_default(lab.nodes, INSIDE)
        sink, source = lab.nodes
        address = sink.address
        if cell.ours_is != BARE:
            pair = TunnelPair(sink, source, overrides=["encryption=tls", f"carrier={cell.ours_is}", *result.settings])
            stack.callback(lambda: result.left_behind.extend(pair.left_behind))
            stack.enter_context(pair)
            until(lambda: has_path(pair), "a path of datagrams both ways", CONNECTED_SECONDS)
            address = pair.server.address
        ours = stack.enter_context(TcpFlow(source, sink, address, seconds=BULK_SECONDS))
        ours.wait_for_bytes(1_000_000)
        congestion.set_default(lab.nodes, cell.other_is)
        other = stack.enter_context(TcpFlow(source, sink, sink.address, seconds=BULK_SECONDS))
        other.wait_for_bytes()
        time.sleep(WARM_UP_SECONDS)
        begin = time.monotonic_ns()
        time.sleep(result.seconds)
        end = time.monotonic_ns()
        for flow, found in ((ours, cell.ours), (other, cell.other)):
            if not flow.alive:
                raise LabError("a transfer has ended before its time")
            found.append(mbit(list(flow.samples), begin, end))


def run(options: argparse.Namespace) -> CoexistResult:
    others = options.beside or list(OTHERS)
    for each in {INSIDE, *others}:
        congestion.require(each)
    result = CoexistResult(machine=machine(), seconds=options.seconds, rounds=options.rounds, settings=options.set)
    result.cells = [
        Cell(queue=queue, ours_is=ours, other_is=other)
        for queue in options.queue or QUEUES
        for other in others
        for ours in options.only or OURS
    ]
    count = len(result.cells) * options.rounds
    about = count * (CELL_SECONDS + WARM_UP_SECONDS + options.seconds)
    _say(f"{count} measurements: about {about / 60:.0f} minutes")
    for number in range(options.rounds):
        for cell in result.cells:
            _say(f"round {number + 1}: queue of {cell.queue:g} BDP, {cell.ours_is} beside {cell.other_is}")
            try:
                measure(cell, result)
            except (LabError, Overdue) as error:
                cell.error = str(error)
    return result


def table(result: CoexistResult) -> str:
    """For people."""
    lines = [
        str(result.machine),
        (
            f"link {result.rate_mbit:g} Mbit/s, RTT {result.rtt_ms:g} ms; {INSIDE} inside; medians of {result.rounds} "
            f"round(s) of {result.seconds:g} s"
        ),
        *([f"settings: {' '.join(result.settings)}"] if result.settings else []),
        "",
        f"{'queue, BDP':<12}{'ours':<10}{'other':<10}{'ours, Mbit/s':>14}{'other':>10}{'share, %':>10}{'Jain':>8}",
    ]
    for cell in result.cells:
        begin = f"{cell.queue:<12g}{cell.ours_is:<10}{cell.other_is:<10}"
        if not cell.ours:
            lines.append(f"{begin}FAILED: {cell.error}")
            continue
        ours, other = cell.shares
        share = 100 * ours / (ours + other) if ours + other else 0.0
        lines.append(f"{begin}{ours:>14.1f}{other:>10.1f}{share:>10.0f}{jain((ours, other)):>8.2f}")
        if cell.error:
            lines.append(f"  a round FAILED: {cell.error}")
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    return run_command("bench coexist", _parser().parse_args(argv), run, table)


def _say(text: str) -> None:
    print(f"bench coexist: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench coexist",
        description="Measure how a bulk transfer of the tunnel and a bare TCP flow share a slow link.",
    )
    parser.add_argument("--seconds", type=float, default=10.0, metavar="N", help="length of each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="all of it so often (%(default)s)")
    parser.add_argument("--only", choices=OURS, action="append", help="this carrier alone; may be repeated")
    parser.add_argument("--beside", choices=OTHERS, action="append", help="this flow alone; may be repeated")
    parser.add_argument(
        "--queue", type=float, action="append", metavar="BDP", help="a queue of this size; may be repeated"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both ends of every tunnel"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
