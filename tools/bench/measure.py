"""The measurements of bench, each a function of two nodes and an address: the bare link's or the tunnel's.

iperf3 measures throughput, tools.load.generators measures latency. A measurement that fails raises LabError with the
generator's words.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.lab.namespace import LabError, Namespace, stop
from tools.lab.waiting import until
from tools.load.flows import ping
from tools.load.generators import Pings

PING_INTERVAL = 0.01
UDP_PAYLOAD_BYTES = 200
SERVER_INTERVAL = 0.1
"""Seconds, the shortest that iperf3 takes: what arrived is counted by them."""
IPERF_SPARE_SECONDS = 20.0
SHORT_BYTES = "20M"
"""Sent by a measurement of less than a second, since iperf3 counts whole seconds. It proves that everything works."""

SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LISTEN_STATE = "0A"  # TCP_LISTEN, net/tcp_states.h


def require_iperf3() -> None:
    if shutil.which("iperf3") is None:
        raise LabError("iperf3 is not installed; install it (on Debian: apt install iperf3)")


def tcp_gbit(source: Namespace, sink: Namespace, address: str, seconds: float, streams: int = 1) -> float:
    """Received gigabits a second over `streams` connections in all."""
    return _iperf(source, sink, address, seconds, "-P", streams)["end"]["sum_received"]["bits_per_second"] / 1e9


def udp_packets(source: Namespace, sink: Namespace, address: str, seconds: float) -> float:
    """Packets of 200 payload bytes received a second, sent as fast as one sender can."""
    said = _iperf(source, sink, address, seconds, "-u", "-b", 0, "-l", UDP_PAYLOAD_BYTES, "--get-server-output")
    return received_rate([interval["sum"] for interval in said["server_output_json"]["intervals"]])


def received_rate(intervals: Sequence[Mapping[str, float]]) -> float:
    """Packets received a second, from iperf3's intervals of about SERVER_INTERVAL.

    The time ends with the last packet, to an interval. iperf3's own ends with a word on its control connection, which a
    full queue may drop and hold up for seconds. That holds up the first and the last interval too: neither counts if
    there are others.
    """
    arrived = [at for at, interval in enumerate(intervals) if interval["bytes"]]
    if not arrived:
        return 0.0
    whole = intervals[1 : arrived[-1]] if len(arrived) > 2 else intervals[: arrived[-1] + 1]
    packets = sum(interval["packets"] - interval["lost_packets"] for interval in whole)
    return packets / sum(interval["end"] - interval["start"] for interval in whole)


def ping_idle(source: Namespace, sink: Namespace, address: str, seconds: float) -> Pings:
    """A hundred echoes a second and nothing else."""
    return ping(source, address, count=max(2, round(seconds / PING_INTERVAL)), interval=PING_INTERVAL)


def ping_loaded(source: Namespace, sink: Namespace, address: str, seconds: float) -> Pings:
    """Echoes beside one TCP stream in their direction."""
    with _iperf_server(sink) as port:
        load = source.popen(["iperf3", "-c", address, "-p", port, "-t", round(seconds) + 60], **SILENT)
        try:
            until(lambda: _established(sink, port), "the load's connections")
            return ping_idle(source, sink, address, seconds)
        finally:
            stop([load], IPERF_SPARE_SECONDS)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float:
    """Time that all cores together did not idle so far."""
    total = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = map(int, total)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cpu_per_gigabyte(
    pids: Mapping[str, int], gbit: Callable[[], float], seconds: float
) -> tuple[float, dict[str, float], float]:
    """The result of `gbit`, which runs for `seconds`; CPU seconds a gigabyte by process and in all."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    machine_before = machine_cpu_seconds()
    rate = gbit()
    machine = machine_cpu_seconds() - machine_before
    gigabytes = rate / 8 * seconds  # 10^9 bytes
    used = {name: (cpu_seconds(pid) - before[name]) / gigabytes for name, pid in pids.items()}
    return rate, used, machine / gigabytes


def private_bytes(pid: int) -> int:
    """Memory that the process has for itself alone (smaps_rollup)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def proportional_bytes(pid: int) -> int:
    """Proportional set size: shared memory is divided among those that map it (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def written_bytes(pid: int) -> int:
    """As proportional_bytes, without pages of files: a program elsewhere that maps the same library changes nothing."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
            total += int(line.split()[1]) * 1024
    return total


def shared_bytes(name: str) -> int:
    """Memory behind the names in /dev/shm that carry `name`."""
    return sum(entry.stat().st_blocks * 512 for entry in Path("/dev/shm").iterdir() if name in entry.name)


def medians(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Key by key."""
    rounds = list(rounds)
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def _iperf(source: Namespace, sink: Namespace, address: str, seconds: float, *options: Any) -> dict[str, Any]:
    length = ["-t", round(seconds)] if seconds >= 1 else ["-n", SHORT_BYTES]
    with _iperf_server(sink) as port:
        said = source.run(
            ["iperf3", "-c", address, "-p", port, "-J", *length, *options],
            check=False,
            timeout=seconds + IPERF_SPARE_SECONDS,
        )
    try:
        result = json.loads(said.stdout)
    except json.JSONDecodeError:
        raise LabError(f"iperf3 to {address}: {said.stderr or said.stdout}") from None
    if "error" in result:
        raise LabError(f"iperf3 to {address}: {result['error']}")
    return result


@contextmanager
def _iperf_server(sink: Namespace) -> Iterator[int]:
    """A server for one test, at a port of its own."""
    port = sink.free_port()
    server = sink.popen(["iperf3", "-s", "-1", "-J", "-i", SERVER_INTERVAL, "-p", port], **SILENT)
    try:
        until(lambda: (port, LISTEN_STATE) in _tcp_states(sink), f"iperf3 listening in {sink.name!r}")
        yield port
    finally:
        stop([server], IPERF_SPARE_SECONDS)


def _established(sink: Namespace, port: int) -> bool:
    """iperf3 has a control and a data connection."""
    return sum(number == port and state != LISTEN_STATE for number, state in _tcp_states(sink)) >= 2


def _tcp_states(namespace: Namespace) -> list[tuple[int, str]]:
    """(local port, state) of each TCP socket inside."""
    states = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{namespace.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            states.append((int(fields[1].rpartition(":")[2], 16), fields[3]))
    return states
