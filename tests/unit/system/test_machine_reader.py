"""Reading a machine: files of many machines, those of this one, and none at all."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pipeline.policy.machine import Thread
from pipeline.system import machine_reader
from pipeline.system.machine_reader import numbers_of, read_cores, read_machine

PID = 4321


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a machine without any file; PID may run on every thread."""
    monkeypatch.setattr(machine_reader, "_affinity", lambda pid: [0, 1, 2, 3])
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def put_cpu(root: Path, number: int, core: int, cache: str, package: int = 0) -> None:
    base = f"sys/devices/system/cpu/cpu{number}"
    put(root, f"{base}/topology/core_id", str(core))
    put(root, f"{base}/topology/physical_package_id", str(package))
    put(root, f"{base}/cache/index0/level", "1")
    put(root, f"{base}/cache/index0/shared_cpu_list", str(number))
    put(root, f"{base}/cache/index3/level", "3")
    put(root, f"{base}/cache/index3/shared_cpu_list", cache)


def test_threads_cores_caches_and_nodes(root: Path) -> None:
    put(root, "sys/devices/system/cpu/online", "0-3")
    for number, core, cache, package in ((0, 0, "0,2", 0), (1, 0, "1,3", 1), (2, 0, "0,2", 0), (3, 0, "1,3", 1)):
        put_cpu(root, number, core, cache, package)
    put(root, "sys/devices/system/node/node0/cpulist", "0,2")
    put(root, "sys/devices/system/node/node1/cpulist", "1,3")
    assert read_cores(PID, root).threads == (
        Thread(0, 0, 0, 0, 0),
        Thread(1, 1, 0, 1, 1),
        Thread(2, 0, 0, 0, 0),
        Thread(3, 1, 0, 1, 1),
    )


def test_a_thread_that_is_offline_is_none(root: Path) -> None:
    put(root, "sys/devices/system/cpu/online", "0,2-3")
    assert [each.number for each in read_cores(PID, root).threads] == [0, 2, 3]


def test_without_a_topology_every_thread_is_a_core_of_one_cache(root: Path) -> None:
    machine = read_cores(PID, root)
    assert len(machine.cores) == 4
    assert {(each.cache, each.node) for each in machine.threads} == {(0, 0)}


@pytest.mark.parametrize("file", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_speed_of_cores_of_two_kinds(root: Path, file: str) -> None:
    put(root, "sys/devices/system/cpu/online", "0-1")
    put(root, f"sys/devices/system/cpu/cpu0/{file}", "446")
    put(root, f"sys/devices/system/cpu/cpu1/{file}", "1024")
    assert [core.number for core in read_cores(PID, root).cores] == [1, 0]


def test_efficient_cores_of_a_hybrid_processor_without_speeds(root: Path) -> None:
    put(root, "sys/devices/cpu_atom/cpus", "2-3")
    assert [(core.number, core.is_fast) for core in read_cores(PID, root).cores] == [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
    ]


# -- control groups


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # in a container with a namespace of its own
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),  # the outer one is less
        ("0::/../../host/path", {"cpu.max": "200000 50000"}, 4.0),
        (
            "4:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/x/cpu.cfs_period_us": "25000"},
            2,
        ),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/docker/a", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("9:net_cls,cpuset:/x", {"cpuset/x/cpu.cfs_quota_us": "1", "cpuset/x/cpu.cfs_period_us": "1"}, None),
        ("nonsense", {"cpu.max": "1 1"}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
    ],
)
def test_the_least_quota_of_all_groups_counts(
    root: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    put(root, f"proc/{PID}/cgroup", groups)
    for path, text in files.items():
        put(root, f"sys/fs/cgroup/{path}", text)
    assert read_cores(PID, root).quota == quota


def test_a_limit_of_memory_counts(root: Path) -> None:
    put(root, f"proc/{PID}/cgroup", "0::/box\n7:memory:/old")
    put(root, "sys/fs/cgroup/box/memory.max", "max")
    assert read_cores(PID, root).memory_bytes == psutil.virtual_memory().total
    put(root, "sys/fs/cgroup/memory/old/memory.limit_in_bytes", str(1 << 20))
    assert read_cores(PID, root).memory_bytes == 1 << 20


# -- devices and settings


def test_devices_with_hardware_and_their_masks(root: Path) -> None:
    net = "sys/class/net"
    put(root, f"{net}/eth0/device/numa_node", "1")
    for queue in range(11):
        put(root, f"{net}/eth0/queues/rx-{queue}/rps_cpus", f"{queue:x}")
    put(root, f"{net}/eth0/queues/tx-0/xps_cpus", "3")
    put(root, f"{net}/lo/queues/rx-0/rps_cpus", "0")
    put(root, "proc/sys/net/core/somaxconn", "128")
    machine = read_machine(PID, ("/proc/sys/net/core/somaxconn", "/proc/sys/net/core/none"), root)
    (device,) = machine.devices
    assert (device.name, device.node, device.receive_queues, device.transmit_queues) == ("eth0", 1, 11, 1)
    assert device.rps == tuple(f"{queue:x}" for queue in range(11)) and device.xps == ("3",)
    assert machine.settings == {"/proc/sys/net/core/somaxconn": "128"}


def test_this_machine_is_read_as_psutil_sees_it() -> None:
    machine = read_machine()
    assert set(machine.usable) == set(psutil.Process().cpu_affinity())
    assert len(machine.threads) == psutil.cpu_count()
    assert len({(each.package, each.core) for each in machine.threads}) == (psutil.cpu_count(logical=False) or 1)
    assert read_cores(os.getpid()).threads == machine.threads


@pytest.mark.parametrize(
    ("text", "numbers"), [("", []), ("0", [0]), ("0-3,8,10-11", [0, 1, 2, 3, 8, 10, 11]), ("x,1-y,2", [2])]
)
def test_lists_of_the_kernel(text: str, numbers: list[int]) -> None:
    assert numbers_of(text) == numbers
