"""The results of bench, as values and as a table. schema_version counts up when a field changes its meaning or goes."""

from __future__ import annotations

import msgspec

from tools.bench.kills import Kills
from tools.bench.machine import Machine

SCHEMA_VERSION = 1
MEGABYTE = 1e6


class Values(msgspec.Struct):
    """One quantity, bare and through the tunnel: medians over the rounds, and the rounds."""

    bare: float
    tunnel: float
    ratio: float
    bare_rounds: list[float]
    tunnel_rounds: list[float]


class PingValues(msgspec.Struct):
    bare_p50_ms: float
    bare_p99_ms: float
    tunnel_p50_ms: float
    tunnel_p99_ms: float
    sent: int
    lost: int
    """Both through the tunnel."""


class BenchResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    seconds: int
    rounds: int
    settings: list[str]
    tcp_gbit: dict[str, Values] = {}
    """By number of streams."""
    baseline_gbit: Values | None = None
    """One TCP stream through tools/bench/baseline.py instead of the tunnel."""
    udp_packets: Values | None = None
    """Of 200 bytes, received a second."""
    ping_idle: PingValues | None = None
    ping_loaded: PingValues | None = None
    cpu_seconds_per_gb: dict[str, float] = {}
    """By process: "server tun-0"."""
    machine_cpu_seconds_per_gb: Values | None = None
    private_bytes: dict[str, dict[str, int]] = {}
    """By end, then by process."""
    shared_bytes: dict[str, int] = {}
    """By end."""
    kills: Kills | None = None
    left_behind: list[str] = []
    """Names that the instances did not take with them; empty when all is well."""

    @property
    def failed(self) -> bool:
        return bool(self.left_behind)


def table(result: BenchResult) -> str:
    """For people."""
    lines = [
        f"{result.machine}; {result.rounds} rounds of {result.seconds} s",
        f"settings: {' '.join(result.settings) or 'defaults'}",
    ]
    if result.tcp_gbit or result.baseline_gbit or result.udp_packets or result.machine_cpu_seconds_per_gb:
        lines += ["", _row("", "bare", "tunnel", "ratio")]
    for streams, values in result.tcp_gbit.items():
        lines.append(_values(f"TCP, {streams} stream{'s' * (streams != '1')}, Gbit/s", values, "{:.2f}"))
        if streams == "1" and result.baseline_gbit:
            lines.append(_values("  through the baseline relay", result.baseline_gbit, "{:.2f}"))
    if result.udp_packets:
        lines.append(_values("UDP, 200 bytes, packets/s", result.udp_packets, "{:.0f}"))
    if result.machine_cpu_seconds_per_gb:
        lines.append(_values("CPU s per GB, whole machine", result.machine_cpu_seconds_per_gb, "{:.2f}"))
    if result.ping_idle or result.ping_loaded:
        lines += ["", _row("", "bare", "tunnel", "added")]
    for what, pings in (("idle", result.ping_idle), ("under load", result.ping_loaded)):
        if pings:
            lines += [
                _pings(f"ping {what}, p50, ms", pings.bare_p50_ms, pings.tunnel_p50_ms),
                _pings(f"ping {what}, p99, ms", pings.bare_p99_ms, pings.tunnel_p99_ms),
            ]
            if pings.lost:
                lines.append(f"  {pings.lost} of {pings.sent} echoes through the tunnel never came back")
    lines += _processes(result)
    lines += _kills(result)
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def _processes(result: BenchResult) -> list[str]:
    names = list(result.cpu_seconds_per_gb) or [
        f"{end} {name}" for end, found in result.private_bytes.items() for name in found
    ]
    if not names:
        return []
    lines = ["", _row("", "CPU s/GB", "private MB")]
    for name in names:
        end, _, process = name.partition(" ")
        used = result.cpu_seconds_per_gb.get(name)
        private = result.private_bytes.get(end, {}).get(process)
        lines.append(
            _row(name, "" if used is None else f"{used:.2f}", "" if private is None else f"{private / MEGABYTE:.1f}")
        )
    for end, found in result.private_bytes.items():
        lines.append(
            _row(f"{end}, in all", "", f"{sum(found.values()) / MEGABYTE:.1f}")
            + f"   shared memory {result.shared_bytes[end] / MEGABYTE:.1f} MB"
        )
    return lines


def _kills(result: BenchResult) -> list[str]:
    if result.kills is None:
        return []
    lines = ["", _row("kill -9 under load, gap in ms", "p50", "p99", "max") + "   kills  connection survived"]
    for kind, gaps in result.kills.by_kind.items():
        lines.append(
            _row(kind, f"{gaps.p50_ms:.0f}", f"{gaps.p99_ms:.0f}", f"{gaps.max_ms:.0f}")
            + f"   {gaps.kills:5}  {gaps.survived}"
        )
    lines.append(_row("without a kill", "", "", f"{result.kills.quiet_gap_ms:.0f}"))
    return lines


def _row(name: str, *cells: str) -> str:
    return f"{name:<32}" + "".join(f"{cell:>12}" for cell in cells)


def _values(name: str, values: Values, form: str) -> str:
    return _row(name, form.format(values.bare), form.format(values.tunnel), f"{values.ratio:.2f}")


def _pings(name: str, bare: float, tunnel: float) -> str:
    return _row(name, f"{bare:.3f}", f"{tunnel:.3f}", f"{tunnel - bare:+.3f}")
