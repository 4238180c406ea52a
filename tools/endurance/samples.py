"""What the processes of a site hold at a moment: memory, descriptors, threads; names in /dev/shm; lines of the log."""

from __future__ import annotations

import os

import msgspec

from tools.bench.measure import proportional_bytes
from tools.endurance.site import Site


class Held(msgspec.Struct):
    """By one process, or by several together."""

    pss_bytes: int = 0
    descriptors: int = 0
    threads: int = 0
    processes: int = 0

    def add(self, other: Held) -> None:
        self.pss_bytes += other.pss_bytes
        self.descriptors += other.descriptors
        self.threads += other.threads
        self.processes += other.processes


class Sample(msgspec.Struct):
    seconds: float
    """Since the beginning of the run."""
    held: dict[str, Held]
    """By what stays all the run long: "hub supervisor", "two supervisor", "two workers"."""
    shm_names: int
    """Of all instances of the site."""
    log_bytes: int
    """Of all logs of the instance "two" and the hub."""
    round_trip_p50_ms: float
    round_trip_p99_ms: float
    """Of the probes since the last sample, without the time of faults."""


def held(site: Site) -> dict[str, Held]:
    """Memory, descriptors and threads of the processes that stay all the run long."""
    found = {"hub supervisor": Held(), "two supervisor": Held(), "two workers": Held()}
    for name in ("hub", "two"):
        for process, pid in site.instances[name].pids().items():
            key = f"{name} {'supervisor' if process == 'supervisor' else 'workers'}"
            if key in found:
                found[key].add(_held_by(pid))
    return found


def shm_names(site: Site) -> int:
    return sum("/dev/shm/" in path for instance in site.instances.values() for path in instance.names())


def log_bytes(site: Site) -> int:
    return sum(len(site.instances[name].log) for name in ("hub", "two"))


def _held_by(pid: int) -> Held:
    return Held(proportional_bytes(pid), len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), 1)
