"""A machine as plans and advice see it: its hardware threads, its limits, its network devices, a few settings.

`pipeline.system.machine_reader` reads this machine. Any other can be described by a file:

    tune --describe > FILE     this machine as JSON
    tune --machine FILE        the plan of the machine that FILE describes
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import msgspec
from msgspec import Struct

VERSION = 1  # of the file
ALIKE = 0.8  # threads of at least so much of the highest speed count as fast


class Thread(Struct, frozen=True, forbid_unknown_fields=True):
    """A hardware thread: what the kernel calls a CPU."""

    number: int
    package: int = 0
    core: int = 0  # within the package; threads of one core are SMT siblings
    cache: int = 0  # threads with equal numbers share a last-level cache
    node: int = 0  # of memory (NUMA)
    speed: int = 0  # relative to others; 0: not known


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """A network device with hardware behind it."""

    name: str
    node: int = -1  # of memory; -1: not known
    receive_queues: int = 1
    rps: tuple[str, ...] = ()  # masks of threads, of each receive queue; "": it cannot be set
    transmit_queues: int = 1
    xps: tuple[str, ...] = ()  # the same of each transmit queue


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """All threads that are online, and which of them this program may use, how much of them, and on what."""

    threads: tuple[Thread, ...]
    usable: tuple[int, ...] = ()  # numbers of threads: the affinity mask; empty for all
    quota: float | None = None  # CPUs, of a control group; None: no limit
    memory_bytes: int = 0  # that there are, or that a control group allows; 0: not known
    shared_bytes: int = 0  # size of /dev/shm; 0: not known
    processor: str = ""
    balances_interrupts: bool = False  # irqbalance runs
    devices: tuple[Device, ...] = ()
    settings: dict[str, str] = {}  # of the kernel: path of a file, and what it holds
    version: int = VERSION

    @property
    def cores(self) -> list[Core]:
        """The cores with threads that may be used: fast ones first, else in the order of their numbers."""
        usable = set(self.usable) or {each.number for each in self.threads}
        threads = sorted((each for each in self.threads if each.number in usable), key=_core_of)
        cores = [Core(tuple(group)) for _, group in groupby(threads, _core_of)]
        fastest = max((each.speed for each in cores), default=0)
        cores = [msgspec.structs.replace(each, is_fast=each.speed >= ALIKE * fastest) for each in cores]
        return sorted(cores, key=lambda each: (not each.is_fast, each.node, each.cache, each.number))


class Core(Struct, frozen=True):
    """A physical core: its threads that may be used."""

    threads: tuple[Thread, ...]
    is_fast: bool = True  # no other core of the machine is much faster

    @property
    def number(self) -> int:
        """Of its first thread."""
        return self.threads[0].number

    @property
    def numbers(self) -> list[int]:
        return [each.number for each in self.threads]

    @property
    def cache(self) -> int:
        return self.threads[0].cache

    @property
    def node(self) -> int:
        return self.threads[0].node

    @property
    def speed(self) -> int:
        return self.threads[0].speed


def _core_of(thread: Thread) -> tuple[int, int, int, int]:
    return thread.package, thread.node, thread.cache, thread.core


def made_of(nodes: int, caches: int, cores: int, smt: int = 1, speeds: Iterable[int] = (), **known: object) -> Machine:
    """A machine of equal parts: so many nodes, last-level caches in each, cores at each, threads in each.

    The first threads of all cores have the first numbers, as on most servers. `speeds`: of the cores, in order.
    """
    every = [
        (node, node * caches + cache, (node * caches + cache) * cores + core)
        for node in range(nodes)
        for cache in range(caches)
        for core in range(cores)
    ]
    speed_of = dict(enumerate(speeds))
    threads = [
        Thread(thread * len(every) + core, node, core, cache, node, speed_of.get(core, 0))
        for thread in range(smt)
        for node, cache, core in every
    ]
    return msgspec.structs.replace(Machine(tuple(threads)), **known)


def to_json(machine: Machine) -> str:
    return msgspec.json.format(msgspec.json.encode(machine)).decode() + "\n"


def from_json(text: str) -> Machine:
    """ValueError says what is wrong with the description."""
    try:
        machine = msgspec.json.decode(text.encode(), type=Machine)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    numbers = [each.number for each in machine.threads]
    if machine.version != VERSION:
        raise ValueError(f"version {machine.version}, expected {VERSION}")
    if not numbers:
        raise ValueError("no threads")
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ValueError("threads must have different numbers, from 0 on")
    if not set(machine.usable) <= set(numbers):
        raise ValueError(f"usable: there is no thread {min(set(machine.usable) - set(numbers))}")
    if machine.quota is not None and not 0 < machine.quota < 1_000_000:
        raise ValueError(f"quota: expected a number of CPUs above 0, found {machine.quota}")
    return machine
