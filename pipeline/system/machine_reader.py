"""This machine as the kernel describes it: threads, caches, nodes, limits, network devices, settings.

    read_cores(pid)           what a plan of cores needs; cheap
    read_machine(pid, ...)    with network devices and settings besides

A file that is missing, or that says nothing, leaves its part unknown: in a container much of it is hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from pipeline.policy.machine import Device, Machine, Thread

Limit = TypeVar("Limit", int, float)

ROOT = Path("/")
SHM = "dev/shm"
INTERRUPT_BALANCER = "irqbalance"
CGROUP_V1_CPU, CGROUP_V1_MEMORY = "cpu", "memory"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NO_MEMORY_LIMIT = 1 << 60  # cgroup v1 says a number above this for none


def read_cores(pid: int = 0, root: Path = ROOT) -> Machine:
    """`pid`: whose limits count; 0 for this process."""
    pid = pid or os.getpid()
    memory = min(
        [_PAGE_BYTES * os.sysconf("SC_PHYS_PAGES"), *_limits(pid, root, _memory_of)]
    )  # known without /proc, too
    return Machine(
        threads=tuple(_threads(root)),
        usable=tuple(_affinity(pid)),
        quota=min(_limits(pid, root, _quota_of), default=None),
        memory_bytes=memory,
        shared_bytes=_size_of(root / SHM),
        processor=_processor(root),
    )


def read_machine(pid: int = 0, settings: Iterable[str] = (), root: Path = ROOT) -> Machine:
    """`settings`: files below /proc and /sys whose content belongs to the description."""
    found = {name: _text(root / name.lstrip("/")) for name in settings}
    return msgspec.structs.replace(
        read_cores(pid, root),
        balances_interrupts=any(each.info["name"] == INTERRUPT_BALANCER for each in psutil.process_iter(["name"])),
        devices=tuple(_devices(root)),
        settings={name: text for name, text in found.items() if text},
    )


# -- threads


def _threads(root: Path) -> list[Thread]:
    cpus = root / "sys/devices/system/cpu"
    numbers = numbers_of(_text(cpus / "online")) or sorted(_affinity(os.getpid()))
    nodes = {
        number: int(each.name.removeprefix("node"))
        for each in (root / "sys/devices/system/node").glob("node[0-9]*")
        for number in numbers_of(_text(each / "cpulist"))
    }
    slow = set(numbers_of(_text(root / "sys/devices/cpu_atom/cpus")))  # of a hybrid processor from Intel
    found = []
    for number in numbers:
        here = cpus / f"cpu{number}"
        core = _number(here / "topology/core_id", -1)
        found.append(
            Thread(
                number,
                package=max(0, _number(here / "topology/physical_package_id", 0)),
                core=number if core < 0 else core,  # nothing is known: each thread is a core
                cache=_last_cache(here / "cache", number),
                node=nodes.get(number, 0),
                speed=_speed(here) or (1 if number in slow else 2 if slow else 0),
            )
        )
    return found


def _last_cache(caches: Path, number: int) -> int:
    """The first of the threads that share the cache of the highest level with this one; 0 if nothing tells."""
    best = (0, 0)
    for cache in caches.glob("index[0-9]*"):
        shared = numbers_of(_text(cache / "shared_cpu_list"))
        if number in shared:
            best = max(best, (_number(cache / "level", 0), min(shared)))
    return best[1]


def _speed(cpu: Path) -> int:
    return _number(cpu / "cpu_capacity", 0) or _number(cpu / "cpufreq/cpuinfo_max_freq", 0)


def numbers_of(text: str) -> list[int]:
    """A list of the kernel's, such as "0-3,8": its numbers. Other words count for nothing."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _affinity(pid: int) -> list[int]:
    try:
        return sorted(psutil.Process(pid).cpu_affinity())
    except psutil.Error:
        return []


# -- control groups


def _limits(pid: int, root: Path, limit_of: Callable[[Path, bool], Limit | None]) -> list[Limit]:
    """The limits of the control groups of a process, from its own up to the outermost that is to be seen."""
    found: list[Limit] = []
    for directory, is_unified in _groups(pid, root):
        limit = limit_of(directory, is_unified)
        if limit is not None:
            found.append(limit)
    return found


def _groups(pid: int, root: Path) -> Iterable[tuple[Path, bool]]:
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / f"proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        names = controllers.split(",")
        if not controllers:
            bases = [(mounts, True), (mounts / "unified", True)]
        else:
            bases = [(mounts / each, False) for each in (controllers, *names) if CGROUP_V1_CPU in names]
            bases += [(mounts / each, False) for each in names if CGROUP_V1_MEMORY in names]
        for base, is_unified in bases:
            yield from ((each, is_unified) for each in _upwards(base, path))


def _upwards(base: Path, path: str) -> Iterable[Path]:
    """A group below a mount, and those around it. In a container the path may be that of the host: then the mount."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for count in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:count])


def _quota_of(group: Path, is_unified: bool) -> float | None:
    if is_unified:
        quota, _, period = _text(group / "cpu.max").partition(" ")
    else:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None  # "max", "-1", or no such file
    return round(int(quota) / int(period), 3)


def _memory_of(group: Path, is_unified: bool) -> int | None:
    text = _text(group / ("memory.max" if is_unified else "memory.limit_in_bytes"))
    return int(text) if text.isdigit() and 0 < int(text) < NO_MEMORY_LIMIT else None


# -- devices


def _devices(root: Path) -> Iterable[Device]:
    for path in sorted((root / "sys/class/net").glob("*")):
        if not (path / "device").exists():
            continue  # a tunnel, a bridge, the loopback: no hardware
        receive, transmit = ([*(path / "queues").glob(f"{way}-*")] for way in ("rx", "tx"))
        yield Device(
            path.name,
            node=_number(path / "device/numa_node", -1),
            receive_queues=max(1, len(receive)),
            rps=tuple(_text(each / "rps_cpus") for each in sorted(receive, key=_queue_number)),
            transmit_queues=max(1, len(transmit)),
            xps=tuple(_text(each / "xps_cpus") for each in sorted(transmit, key=_queue_number)),
        )


def _queue_number(path: Path) -> int:
    return int(path.name.partition("-")[2] or 0)


# -- files


def _processor(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return ""


def _size_of(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, unknown: int) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return unknown
