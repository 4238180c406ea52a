"""Advice about a machine: which settings of its kernel are better otherwise for a tunnel, and why. Pure.

Each piece of advice has the file that holds the setting, and the value that is better than the present one. A value
that is as good or better already is left alone. So a limit is raised and never lowered, a list gets an element more,
and a mask that somebody has set stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.policy.congestion import AUTO, COST_OF_LOSS, LOSSY
from pipeline.policy.core_plan import Placement, has_tight_quota
from pipeline.policy.machine import Core, Device, Machine

NET = "/proc/sys/net"
RECEIVE, SEND = f"{NET}/ipv4/tcp_rmem", f"{NET}/ipv4/tcp_wmem"
AVAILABLE = f"{NET}/ipv4/tcp_available_congestion_control"  # the supervisor sets what workers may not choose
PROBING, IDLE_RESTART = f"{NET}/ipv4/tcp_mtu_probing", f"{NET}/ipv4/tcp_slow_start_after_idle"
BACKLOG, LISTEN_QUEUE = f"{NET}/core/netdev_max_backlog", f"{NET}/core/somaxconn"

SETTINGS = (RECEIVE, SEND, AVAILABLE, PROBING, IDLE_RESTART, BACKLOG, LISTEN_QUEUE)
"""The settings that a description of a machine has besides its hardware."""

SOCKET_BYTES = 32 << 20  # 1 Gbit/s at 250 ms
SOCKET_BYTES_SMALL = 8 << 20
SMALL_MEMORY = 2 << 30
BACKLOG_PACKETS = 4096
LISTEN_BACKLOG = 4096  # pipeline.supervisor.kernel.listener
STEERED_FROM = 4  # cores: with fewer, handing a packet to another one costs more than it brings
MASK_DIGITS = 8  # of one group in a mask of the kernel's


class Advice(NamedTuple):
    path: str
    before: str  # what the file holds
    wanted: str
    why: str

    @property
    def name(self) -> str:
        """The setting as people know it."""
        if self.path.startswith("/proc/sys/"):
            return self.path.removeprefix("/proc/sys/").replace("/", ".")
        return self.path.removeprefix("/sys/class/net/")


def advise(machine: Machine, placement: Placement, is_server: bool) -> list[Advice]:
    return [*_of_the_kernel(machine, is_server), *_of_devices(machine, placement)]


def hints(machine: Machine, congestion: str, queue_packets: int) -> list[str]:
    """Sentences about things that a person has to decide or do. `congestion`, `queue_packets`: as configured."""
    found = [*_about_congestion(congestion, machine.settings.get(AVAILABLE, "").split())]
    found.append(
        f"txqueuelen of the TUN device is `send_queue_size`, {queue_packets} packets for each lane: raise it only if "
        "`tun.dropped_ring_full` stays 0 and the device drops (ip -s link)"
    )
    if machine.balances_interrupts and any(_steers(machine, each) for each in machine.devices):
        found.append("irqbalance runs: it moves the interrupts of devices, and leaves rps_cpus alone")
    return found


def _about_congestion(setting: str, available: Sequence[str]) -> Iterable[str]:
    """`available`: what the kernel has or has loaded; none: it does not tell."""
    wanted = LOSSY if setting == AUTO else setting
    if not wanted:
        yield f"`congestion` is empty, so connections use what the host has, and {COST_OF_LOSS}"
    elif available and wanted not in available:
        yield f"{wanted} is not loaded: a start loads it where the kernel has it, and `doctor` says where it has not"


# -- the kernel


def _of_the_kernel(machine: Machine, is_server: bool) -> Iterable[Advice]:
    settings = machine.settings
    most = SOCKET_BYTES if machine.memory_bytes >= SMALL_MEMORY else SOCKET_BYTES_SMALL
    for path, way in ((RECEIVE, "receive"), (SEND, "send")):
        yield from _at_least(
            settings, path, most, f"a connection may {way} with {most >> 20} MiB under way: 1 Gbit/s over a long path"
        )
    if settings.get(PROBING) == "0":
        yield Advice(
            PROBING, "0", "1", "a path that swallows large packets, and the message about it, would hang connections"
        )
    if settings.get(IDLE_RESTART) == "1":
        yield Advice(IDLE_RESTART, "1", "0", "after a pause of a second a connection would begin slowly again")
    if any(_steers(machine, each) for each in machine.devices):
        yield from _at_least(settings, BACKLOG, BACKLOG_PACKETS, "packets wait here for the core that rps_cpus names")
    if is_server:
        yield from _at_least(settings, LISTEN_QUEUE, LISTEN_BACKLOG, "a flood would keep new clients out sooner")


def _at_least(settings: Mapping[str, str], path: str, least: int, why: str) -> Iterable[Advice]:
    """Raise the last number of a setting."""
    words = settings.get(path, "").split()
    if words and words[-1].isdigit() and int(words[-1]) < least:
        yield Advice(path, settings[path], "\t".join([*words[:-1], str(least)]), why)


# -- devices


def _of_devices(machine: Machine, placement: Placement) -> Iterable[Advice]:
    for device in machine.devices:
        cores = _cores_for(machine, device, placement)
        if _steers(machine, device):
            mask = mask_of(number for core in cores for number in core.numbers)
            for queue, before in enumerate(device.rps):
                if is_empty(before):
                    yield Advice(
                        f"/sys/class/net/{device.name}/queues/rx-{queue}/rps_cpus",
                        before,
                        _like(mask, before),
                        f"{device.receive_queues} receive queue(s) would do all the work of TCP on as many cores",
                    )
        if device.transmit_queues > 1 and device.xps and all(map(is_empty, device.xps)):
            for queue, before in enumerate(device.xps):
                own = cores[queue % len(cores) :: device.transmit_queues] or [cores[queue % len(cores)]]
                mask = mask_of(number for core in own for number in core.numbers)
                yield Advice(
                    f"/sys/class/net/{device.name}/queues/tx-{queue}/xps_cpus",
                    before,
                    _like(mask, before),
                    "each core sends through a queue of its own, and waits for no lock",
                )


def _steers(machine: Machine, device: Device) -> bool:
    """Whether packets of a device are better handed to several cores: it has fewer queues than that."""
    cores = machine.cores
    return (
        len(cores) >= STEERED_FROM
        and not has_tight_quota(machine)
        and device.receive_queues < min(len(cores), STEERED_FROM)
        and any(device.rps)
        and all(map(is_empty, device.rps))
    )


def _cores_for(machine: Machine, device: Device, placement: Placement) -> Sequence[Core]:
    """Cores for the kernel's part: those that no worker is pinned to, near to the device; else all that are near."""
    taken = {number for threads in placement.threads.values() for number in threads}
    every = machine.cores
    near = [core for core in every if core.node == device.node] or every
    return [core for core in near if taken.isdisjoint(core.numbers)] or near


# -- masks


def mask_of(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in set(numbers))


def is_empty(mask: str) -> bool:
    """Whether a mask can be set, and names no thread."""
    digits = mask.replace(",", "")
    return bool(digits) and not digits.strip("0")


def _like(mask: int, before: str) -> str:
    """A mask as the kernel writes it: groups of eight hexadecimal digits, the first one as short as before."""
    groups = max(before.count(",") + 1, -(-mask.bit_length() // 32))
    text = f"{mask:x}".zfill(len(before.replace(",", "")) if before.count(",") + 1 == groups else MASK_DIGITS * groups)
    first = len(text) - MASK_DIGITS * (groups - 1)
    return ",".join([text[:first], *(text[at : at + MASK_DIGITS] for at in range(first, len(text), MASK_DIGITS))])
