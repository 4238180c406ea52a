"""The report of an endurance run, and its verdict: what went wrong, and what grew."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec

from tools.bench.machine import Machine
from tools.endurance.samples import Held, Sample
from tools.load.quantiles import quantile

GROWTH_SHARE, GROWTH_BYTES = 0.1, 4 * 1024 * 1024
"""Memory has grown if the last quarter's median is above the first's by more than both: below that is noise."""

SPARE_COUNT = 1
"""A descriptor more may be a command that was being answered."""

SAMPLES_FEWEST = 8
"""With fewer, two quarters say nothing."""


class Struck(msgspec.Struct):
    """One fault, and how the tunnel came back."""

    at: float
    """Seconds since the beginning of the run."""
    fault: str
    silence_ms: dict[str, float]
    """The longest silence of each flow from the strike until all of them ran again, by the flow's name."""


class Report(msgspec.Struct):
    machine: Machine
    seconds: float
    seed: int
    struck: list[Struck]
    samples: list[Sample]
    problems: list[str]
    """Each is a failure: altered bytes, a tunnel that did not come back, something left behind."""
    flows: dict[str, int]
    """What arrived: bytes of a stream, datagrams of a probe."""
    restarts: int
    """Workers that were started again, at the hub and at client "two"."""

    @property
    def failed(self) -> bool:
        return bool(self.problems or grown(self.samples))


def quarters(samples: Sequence[Sample], value: Callable[[Sample], float]) -> tuple[float, float]:
    """The median of a value over the first quarter of the samples, and over the last."""
    size = max(1, len(samples) // 4)
    values = [value(sample) for sample in samples]
    return statistics.median(values[:size]), statistics.median(values[-size:])


def grown(samples: Sequence[Sample]) -> list[str]:
    """Sentences about what has grown over the run."""
    if len(samples) < SAMPLES_FEWEST:
        return []
    found = []
    for name in samples[0].held:

        def of(field: str, name: str = name) -> tuple[float, float]:
            return quarters(samples, lambda sample: getattr(sample.held[name], field))

        first, last = of("pss_bytes")
        if last - first > max(GROWTH_SHARE * first, GROWTH_BYTES):
            found.append(f"memory of {name}: {first / 1e6:.1f} -> {last / 1e6:.1f} MB")
        for field in ("descriptors", "threads", "processes"):
            first, last = of(field)
            if last > first + SPARE_COUNT:
                found.append(f"{field} of {name}: {first:g} -> {last:g}")
    first, last = quarters(samples, lambda sample: sample.shm_names)
    if last > first:
        found.append(f"names in /dev/shm: {first:g} -> {last:g}")
    return found


def table(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.seconds / 3600:.2f} h on {report.machine}; seed {report.seed}",
        f"{len(report.struck)} faults, {report.restarts} workers started again, problems: {len(report.problems)}",
        "",
        "silence of the flows of the client that was struck, ms    times    p50      p99      max",
    ]
    by_fault: dict[str, list[float]] = {}
    for struck in report.struck:
        by_fault.setdefault(struck.fault, []).append(max(struck.silence_ms.values()))
    for fault, gaps in sorted(by_fault.items()):
        lines.append(
            f"  {fault:<54} {len(gaps):>6} {quantile(gaps, 0.5):>8.0f} {quantile(gaps, 0.99):>8.0f} {max(gaps):>8.0f}"
        )
    if report.samples:
        lines += ["", "median of the first and of the last quarter of the run"]
        lines += [f"  {row}" for row in _drift(report.samples)]
    lines += ["", "arrived unaltered: " + ", ".join(f"{name} {count}" for name, count in report.flows.items())]
    lines += [f"PROBLEM: {problem}" for problem in report.problems]
    lines += [f"GROWTH: {sentence}" for sentence in grown(report.samples)]
    return "\n".join(lines)


def _drift(samples: Sequence[Sample]) -> list[str]:
    rows = []
    for name in samples[0].held:

        def of(read: Callable[[Held], float], name: str = name) -> tuple[float, float]:
            return quarters(samples, lambda sample: read(sample.held[name]))

        memory = of(lambda held: held.pss_bytes / 1e6)
        descriptors, threads = of(lambda held: held.descriptors), of(lambda held: held.threads)
        rows.append(
            f"{name:<16} {memory[0]:.1f} -> {memory[1]:.1f} MB, descriptors {descriptors[0]:g} -> {descriptors[1]:g}, "
            f"threads {threads[0]:g} -> {threads[1]:g}"
        )
    p50, p99 = (
        quarters(samples, lambda sample: sample.round_trip_p50_ms),
        quarters(samples, lambda sample: sample.round_trip_p99_ms),
    )
    rows.append(f"round trips      p50 {p50[0]:.1f} -> {p50[1]:.1f} ms, p99 {p99[0]:.1f} -> {p99[1]:.1f} ms")
    names = quarters(samples, lambda sample: sample.shm_names)
    rows.append(f"names in /dev/shm {names[0]:g} -> {names[1]:g}; logs {samples[-1].log_bytes / 1e6:.1f} MB")
    return rows
