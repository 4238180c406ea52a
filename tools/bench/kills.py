"""kill -9 of one worker after the other while a TCP stream runs through the tunnel: how long the stream is silent.

The receiver notes every few milliseconds how much has arrived. The gap of a kill is the longest silence that touches
the time from the kill until the traffic has run for WATCH_SECONDS again. So the gap is never shorter than a person
would see. A kill waits until the instance has a spare of the kind, if it keeps spares.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import msgspec

from tools.instance import RunningInstance
from tools.lab.namespace import LabError
from tools.lab.waiting import Overdue, until
from tools.load.flows import TcpFlow
from tools.load.generators import Sample
from tools.load.quantiles import quantile
from tools.tunnel_pair import TunnelPair

WATCH_SECONDS = 1.0
RESUME_SECONDS = 10.0
"""Without a byte for so long the connection counts as lost."""

RETURN_SECONDS = 15.0


class Kill(msgspec.Struct):
    end: str
    worker: str
    kind: str
    gap_ms: float
    survived: bool
    """The inner TCP connection carried bytes again."""


class KindGaps(msgspec.Struct):
    """Over all kills of one kind of worker."""

    kills: int
    survived: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Kills(msgspec.Struct):
    quiet_gap_ms: float
    """Longest silence in as long a time without a kill, for comparison."""
    by_kind: dict[str, KindGaps]
    each: list[Kill]


def kill_workers(pair: TunnelPair, count: int, pause: float, log: Callable[[str], None]) -> Kills:
    """`count` kills over all workers of both ends in turn; `pause` seconds from a return to the next kill."""
    targets = [
        (end, tunnel, worker["name"], worker["kind"])
        for end, tunnel in pair.ends().items()
        for worker in tunnel.running()["workers"]
    ]
    has_spares = all(tunnel.wait_for_spares() for tunnel in pair.ends().values())
    each: list[Kill] = []
    flow = _flow(pair)
    try:
        quiet = _quiet_gap(flow)
        for number in range(count):
            end, tunnel, name, kind = targets[number % len(targets)]
            log(f"kill {number + 1} of {count}: {name} of the {end}")
            if has_spares:
                tunnel.wait_for_spares(kind)
            pid = tunnel.pids()[name]
            killed_at = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            gap, survived = _gap(flow, killed_at)
            each.append(Kill(end=end, worker=name, kind=kind, gap_ms=gap, survived=survived))
            until(partial(_has_returned, tunnel, name, pid), f"a new {name} of the {end}", RETURN_SECONDS)
            if not survived:
                flow.close()
                flow = _flow(pair)
            _run_on(flow, pause)
    finally:
        flow.close()
    return Kills(quiet_gap_ms=quiet, by_kind=gaps_by_kind(each), each=each)


def gaps_by_kind(each: list[Kill]) -> dict[str, KindGaps]:
    """The kills, summed up."""
    result = {}
    for kind in dict.fromkeys(kill.kind for kill in each):
        ours = [kill for kill in each if kill.kind == kind]
        gaps = [kill.gap_ms for kill in ours]
        result[kind] = KindGaps(
            kills=len(ours),
            survived=sum(kill.survived for kill in ours),
            p50_ms=quantile(gaps, 0.5),
            p99_ms=quantile(gaps, 0.99),
            max_ms=max(gaps),
        )
    return result


def longest_silence_ms(samples: list[Sample], begin_ns: int, end_ns: int) -> float:
    """Longest time between two arrivals that touches begin..end; the last silence counts up to the end."""
    arrivals = [sample.time_ns for sample in samples if sample.time_ns <= end_ns]
    first = max(0, bisect_left(arrivals, begin_ns) - 1)
    times = [*arrivals[first:], end_ns]
    return max((later - earlier) / 1e6 for earlier, later in itertools.pairwise(times)) if len(times) > 1 else 0.0


def _flow(pair: TunnelPair) -> TcpFlow:
    flow = TcpFlow(pair.client.node, pair.server.node, pair.server.address, seconds=24 * 3600)
    flow.wait_for_bytes(1_000_000)
    return flow


def _quiet_gap(flow: TcpFlow) -> float:
    begin = time.monotonic_ns()
    _run_on(flow, WATCH_SECONDS)
    return longest_silence_ms(list(flow.samples), begin, time.monotonic_ns())


def _gap(flow: TcpFlow, killed_at: int) -> tuple[float, bool]:
    """(longest silence in ms, whether bytes came again)."""
    bytes_at_kill = flow.samples[-1].bytes
    try:
        until(lambda: flow.samples[-1].bytes > bytes_at_kill or not flow.alive, "bytes", RESUME_SECONDS)
        _run_on(flow, WATCH_SECONDS)
    except (Overdue, LabError):
        return (time.monotonic_ns() - killed_at) / 1e6, False
    end = time.monotonic_ns()
    return longest_silence_ms(flow.samples[-3000:], killed_at, end), flow.alive


def _run_on(flow: TcpFlow, seconds: float) -> None:
    """Let the traffic run; LabError if its connection ends."""
    deadline = time.monotonic() + seconds
    until(lambda: time.monotonic() >= deadline or not flow.alive, "time", seconds + 1)
    if not flow.alive:
        raise LabError("the TCP connection through the tunnel has ended")


def _has_returned(tunnel: RunningInstance, name: str, old_pid: int) -> bool:
    worker = next(worker for worker in tunnel.running()["workers"] if worker["name"] == name)
    return worker["state"] == "running" and worker["pid"] not in (0, None, old_pid)
