"""`tunnel-supervisor bench`: the tunnel against the bare link, in one run, as ratios.

A lab with a bare veth pair holds a server and a client instance. Every measurement goes to the bare address and to
the tunnel's in turn, `--rounds` times. A value is the median of its rounds, a ratio is the median of the rounds'
ratios; so a machine that changes its speed changes both sides. tools/bench/measure.py and tools/bench/kills.py
measure, tools/bench/throughput_report.py prints.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial

from tools.bench import measure
from tools.bench.baseline import baseline
from tools.bench.command import Log, progress, run_command
from tools.bench.kills import kill_workers
from tools.bench.machine import machine
from tools.bench.throughput_report import BenchResult, PingValues, Values, table
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.load.generators import Pings
from tools.load.quantiles import quantile
from tools.tunnel_pair import TunnelPair

MEASUREMENTS = ("tcp", "baseline", "udp", "ping", "loaded", "cpu", "memory")


class Bench:
    """All measurements of one pair, from the client's node to the server's."""

    def __init__(self, pair: TunnelPair, seconds: float, rounds: int, log: Log) -> None:
        self._pair = pair
        self._ends = pair.client.node, pair.server.node
        self._seconds = seconds
        self._rounds = rounds
        self._log = log

    def values(self, what: str, function: Callable[..., float], through: str = "") -> Values:
        """`function` once bare and once through the tunnel, each round; or through the address `through`."""
        bare, tunnel = [], []
        for bare_one, tunnel_one in self._alternate(what, function, through):
            bare.append(bare_one)
            tunnel.append(tunnel_one)
        ratios = [one / other for one, other in zip(tunnel, bare, strict=True)]
        return Values(
            bare=statistics.median(bare),
            tunnel=statistics.median(tunnel),
            ratio=statistics.median(ratios),
            bare_rounds=bare,
            tunnel_rounds=tunnel,
        )

    def pings(self, what: str, function: Callable[..., Pings]) -> PingValues:
        """Quantiles over the echoes of all rounds."""
        bare, tunnel, lost, sent = [], [], 0, 0
        for bare_one, tunnel_one in self._alternate(what, function):
            bare += bare_one.rtts_ms
            tunnel += tunnel_one.rtts_ms
            lost += len(tunnel_one.lost)
            sent += tunnel_one.sent
        if not bare or not tunnel:
            raise LabError(f"{what}: no echo came back ({'bare link' if not bare else 'tunnel'})")
        return PingValues(
            bare_p50_ms=quantile(bare, 0.5),
            bare_p99_ms=quantile(bare, 0.99),
            tunnel_p50_ms=quantile(tunnel, 0.5),
            tunnel_p99_ms=quantile(tunnel, 0.99),
            sent=sent,
            lost=lost,
        )

    def cpu(self) -> tuple[dict[str, float], Values]:
        """CPU seconds a gigabyte of one TCP stream: of each process of the tunnel, and of the machine."""
        pids = {
            f"{end} {name}": pid for end, tunnel in self._pair.ends().items() for name, pid in tunnel.pids().items()
        }
        processes: list[dict[str, float]] = []

        def used(source, sink, address: str, seconds: float) -> float:
            stream = partial(measure.tcp_gbit, source, sink, address, seconds)
            watched = {} if address == sink.address else pids
            _, by_process, machine = measure.cpu_per_gigabyte(watched, stream, seconds)
            if by_process:
                processes.append(by_process)
            return machine

        machine = self.values("CPU of one TCP stream", used)
        return measure.medians(processes), machine

    def baseline(self) -> Values:
        """One TCP stream through the least that a tunnel in Python has to do."""
        with baseline(self._pair.server.node, self._pair.client.node) as address:
            return self.values("TCP, 1 stream, baseline", measure.tcp_gbit, address)

    def _alternate(self, what: str, function: Callable, through: str = "") -> Iterable[tuple]:
        source, sink = self._ends
        for number in range(self._rounds):
            self._log(f"{what}: round {number + 1} of {self._rounds}")
            yield (
                function(source, sink, sink.address, self._seconds),
                function(source, sink, through or self._pair.server.address, self._seconds),
            )


def run(options: argparse.Namespace) -> BenchResult:
    """Build the lab, measure, take it down. LabError when anything of it does not work."""
    measure.require_iperf3()
    result = BenchResult(machine=machine(), seconds=options.seconds, rounds=options.rounds, settings=options.set)
    chosen = options.only or MEASUREMENTS
    with progress(options) as log, Lab() as lab:
        server, client = lab.nodes
        log("starting server and client")
        with TunnelPair(server, client, overrides=options.set) as pair:
            bench = Bench(pair, options.seconds, options.rounds, log)
            if "tcp" in chosen:
                for streams in sorted({1, options.streams}):
                    result.tcp_gbit[str(streams)] = bench.values(
                        f"TCP, {streams} stream(s)", partial(measure.tcp_gbit, streams=streams)
                    )
            if "baseline" in chosen:
                result.baseline_gbit = bench.baseline()
            if "udp" in chosen:
                result.udp_packets = bench.values("UDP, 200 bytes", measure.udp_packets)
            if "ping" in chosen:
                result.ping_idle = bench.pings("ping, idle", measure.ping_idle)
            if "loaded" in chosen:
                result.ping_loaded = bench.pings("ping under load", measure.ping_loaded)
            if "cpu" in chosen:
                result.cpu_seconds_per_gb, result.machine_cpu_seconds_per_gb = bench.cpu()
            if "memory" in chosen:
                log("memory: waiting for spares")
                for tunnel in pair.ends().values():
                    tunnel.wait_for_spares()
                for end, tunnel in pair.ends().items():
                    result.private_bytes[end] = {
                        name: measure.private_bytes(pid) for name, pid in tunnel.pids().items()
                    }
                    result.shared_bytes[end] = measure.shared_bytes(tunnel.name)
            if options.kills:
                result.kills = kill_workers(pair, options.kills, options.kill_pause, log)
        result.left_behind = pair.left_behind
    return result


def main(argv: list[str]) -> int:
    return run_command("bench", _parser().parse_args(argv), run, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench",
        description="Measure the tunnel against the bare link on this machine. "
        '"bench fec" is the loss lab, "bench codec" the erasure code, '
        '"bench hub" many clients, "bench exporter" what observation costs, '
        '"bench pairs" two groups of settings in turn, "bench peers" other programs, '
        '"bench uplinks" a client with two uplinks; each has --help of its own.',
    )
    parser.add_argument("--seconds", type=int, default=3, metavar="N", help="length of each measurement (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="bare and tunnel in turn, this often (%(default)s)"
    )
    parser.add_argument(
        "--streams", type=int, default=4, metavar="N", help="TCP streams beside the single one (%(default)s)"
    )
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument(
        "--kills", type=int, default=0, metavar="N", help="kill -9 each worker in turn under load, N times in all"
    )
    parser.add_argument(
        "--kill-pause",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds from a worker's return to the next kill (%(default)s)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both ends")
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser
