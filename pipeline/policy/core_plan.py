"""The plan of cores: how many lanes a machine gets, which workers become two processes, and which core each has.

    choose(machine, shape)               lanes, and kinds of workers that are split
    place(machine, workers, affinity)    the threads to which each worker is pinned

Both are pure, and give their reasons in sentences.

The rules. A lane gets a core for each of its busy duties, so that none waits for another. With `auto` the two duties of
the fec worker share one, since they rest on a good path. Either the tcp or the dgram worker is busy: blocks for a peer
take one way at a time. All cores of a lane share a last-level cache, as its rings go
from one to the next. All lanes are on one node of memory: every tcp worker visits the rings of all lanes. One core in
eight stays free for the kernel and other programs. Slow cores of a machine that has fast ones carry no lane of their
own: the flows in it would be slow, and nobody chooses the lane of a flow.

Under a quota no worker is pinned. Others use the same cores, and only the kernel knows when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pipeline.policy.machine import Core, Machine

LANES_MOST = 8
"""Of `auto`. Each worker of a group visits the slots of all lanes: their cost grows with the square."""

RESERVED = 8  # one core in so many is left to others
LANE_BYTES = 128 << 20  # memory of the processes of a lane, rings included
MEMORY_SHARE = 8  # lanes take at most one part in so many of all memory
SHARED_SHARE = 2  # and of /dev/shm


class Shape(NamedTuple):
    """The part of a configuration that the plan depends on."""

    kinds: tuple[str, ...]  # of workers: tun and tcp, perhaps fec and dgram between them
    fec_rests: bool = False  # fec is "auto"
    lanes_most: int = LANES_MOST  # the configuration has no use for more
    lane_shared_bytes: int = 0  # of the rings of a lane


class Choice(NamedTuple):
    """`split`: kinds of workers whose duties are processes of their own."""

    lanes: int
    split: tuple[str, ...]
    reasons: tuple[str, ...]


class Member(NamedTuple):
    """A worker that is to be placed."""

    name: str
    kind: str
    lane: int
    duties: int
    whole: str  # the name that the worker has, or would have if it were one process


class Placement(NamedTuple):
    """`threads`: of each worker that is pinned."""

    threads: dict[str, list[int]]
    reasons: tuple[str, ...]


def usable_cpus(machine: Machine) -> float:
    """Cores, or the quota if that is less."""
    cores = len(machine.cores)
    return cores if machine.quota is None else min(machine.quota, cores)


def has_tight_quota(machine: Machine) -> bool:
    return machine.quota is not None and machine.quota < sum(len(each.threads) for each in machine.cores)


def busy_duties(shape: Shape) -> int:
    """Cores of a lane whose duties all have one of their own."""
    kinds = [kind for kind in shape.kinds if kind != "dgram"]
    return 2 * len(kinds) - (1 if "fec" in kinds and shape.fec_rests else 0)


# -- how many lanes


def choose(machine: Machine, shape: Shape, lanes: int | None = None) -> Choice:
    """`lanes`: as configured; None to choose."""
    reasons: list[str] = []
    if lanes is None:
        lanes = _lanes(machine, shape, reasons)
    else:
        reasons.append(f"{_lanes_in_words(lanes)}: as configured")
    return Choice(lanes, _split(machine, shape, lanes, reasons), tuple(reasons))


def _lanes(machine: Machine, shape: Shape, reasons: list[str]) -> int:
    busy = busy_duties(shape)
    if has_tight_quota(machine):
        cpus = usable_cpus(machine)
        lanes = max(1, int(cpus) // busy)
        reasons.append(f"{_lanes_in_words(lanes)}: a quota of {cpus:g} CPUs; a lane has {busy} busy duties")
    else:
        lanes = _lanes_of_cores(machine, busy, reasons)
    limits = [
        (LANES_MOST, f"`auto` makes at most {LANES_MOST}"),
        (shape.lanes_most, "the configuration has no use for more"),
        (_by_memory(machine.memory_bytes, MEMORY_SHARE, LANE_BYTES), "there is memory for no more"),
        (
            _by_memory(machine.shared_bytes, SHARED_SHARE, shape.lane_shared_bytes),
            "/dev/shm has room for no more (docker: --shm-size)",
        ),
    ]
    most, why = min(limits, key=lambda limit: limit[0])
    if lanes > most:
        lanes = max(1, most)
        reasons.append(f"{_lanes_in_words(lanes)} instead: {why}")
    return lanes


def _by_memory(size: int, share: int, lane: int) -> int:
    return size // share // lane if size and lane else LANES_MOST


def _lanes_of_cores(machine: Machine, busy: int, reasons: list[str]) -> int:
    node, cores = _home(machine, busy)
    free = len(cores) - len(cores) // RESERVED
    by_cache = sum(count // busy for count in Counter(each.cache for each in cores).values())
    lanes = max(1, min(by_cache or free // busy, free // busy))
    every = machine.cores
    where = f" on node {node}, which has most room" if len({each.node for each in every}) > 1 else ""
    slow = sum(not each.is_fast for each in every)
    kind = "fast core(s)" if slow else "core(s)"
    reasons.append(f"{_lanes_in_words(lanes)}: {len(cores)} {kind}{where}; a lane has {busy} busy duties")
    if slow:
        reasons.append(f"{slow} slower core(s) carry no lane: its flows would be slow")
    if lanes > 1 or by_cache:
        reasons.append("the cores of a lane share a cache")
    return lanes


def _home(machine: Machine, busy: int) -> tuple[int, list[Core]]:
    """The node with room for most lanes, and its fast cores. Of equal ones it is that of the network device."""
    by_node: dict[int, list[Core]] = {}
    for core in machine.cores:
        if core.is_fast:
            by_node.setdefault(core.node, []).append(core)
    near = Counter(device.node for device in machine.devices)
    best = min(by_node, key=lambda node: (-(len(by_node[node]) // busy), -near[node], node), default=0)
    return best, by_node.get(best, [])


def _split(machine: Machine, shape: Shape, lanes: int, reasons: list[str]) -> tuple[str, ...]:
    """The kinds that are split: tun before fec, whose duties have less to do; each lane has a core more for it.

    The second duty of the tcp worker, or the dgram worker beside it, has a core before fec is split.
    """
    kinds = len(shape.kinds)
    each = _cores_of_a_lane(machine, shape, lanes)
    wanted = [("tun", kinds + 1), ("fec", kinds + 3)]
    split = tuple(kind for kind, cores in wanted if kind in shape.kinds and each >= cores)
    if split:
        reasons.append(f"each duty of {' and '.join(split)} is a process: {each} cores for each lane")
    else:
        reasons.append(f"the duties of a worker share a process: {each} core(s) for each lane")
    return split


def _cores_of_a_lane(machine: Machine, shape: Shape, lanes: int) -> int:
    """Those of one node, unless there are more lanes than one node has room for."""
    every = machine.cores
    if has_tight_quota(machine) or not every:
        return int(usable_cpus(machine)) // lanes
    busy = busy_duties(shape)
    home, _ = _home(machine, busy)
    here = sum(each.node == home for each in every)
    return (here if lanes <= max(1, here // busy) else len(every)) // lanes


def _lanes_in_words(lanes: int) -> str:
    return "1 lane" if lanes == 1 else f"{lanes} lanes"


# -- which core


def place(machine: Machine, workers: Sequence[Member], affinity: str | Mapping[str, Collection[int]]) -> Placement:
    """`affinity`: "auto", "none", or the threads of some workers, which are as they are; the others follow."""
    if affinity == "none":
        return Placement({}, ("no worker is pinned: `affinity` is none",))
    given = {} if isinstance(affinity, str) else affinity
    chosen = {each.name: list(given.get(each.name, given.get(each.whole, ()))) for each in workers}
    chosen = {name: threads for name, threads in chosen.items() if threads}
    named = {each.name for each in workers if each.name in given or each.whole in given}
    rest = [each for each in workers if each.name not in named]
    taken = {thread for threads in chosen.values() for thread in threads}
    cores = [each for each in machine.cores if taken.isdisjoint(each.numbers)]
    if has_tight_quota(machine):
        why = f"no worker is pinned by itself: a quota of {machine.quota:g} CPUs says how much, not where"
        return Placement(chosen, (why,))
    if len(cores) < len(rest):
        why = f"no worker is pinned by itself: {len(cores)} core(s) for {len(rest)} process(es)"
        return Placement(chosen, (why,))
    own = _own_cores(machine, cores, rest)
    left = len(cores) - sum(map(len, own.values()))
    threads = {name: sorted(thread for core in its for thread in core.numbers) for name, its in own.items()}
    return Placement(chosen | threads, (f"each process has a core, with all threads of it; {left} core(s) left",))


def _own_cores(machine: Machine, cores: Sequence[Core], workers: Sequence[Member]) -> dict[str, list[Core]]:
    """Cores of each worker: lane by lane, out of one cache as long as one has room."""
    lanes: dict[int, list[Member]] = {}
    for each in sorted(workers, key=_busiest_first):
        lanes.setdefault(each.lane, []).append(each)
    spare = (len(cores) - len(workers)) // max(1, len(lanes))  # cores that each lane may have besides
    home, _ = _home(machine, max(map(len, lanes.values()), default=1))
    free = sorted(cores, key=lambda core: (not core.is_fast, core.node != home))
    own: dict[str, list[Core]] = {}
    for lane in sorted(lanes):
        wanted = [name for each in lanes[lane] for name in _names_of(each, lanes[lane][0].kind, spare)]
        least = [each.name for each in lanes[lane]]
        chosen = _near(free, len(wanted)) or _near(free, len(least)) or free[: len(wanted)]
        for name, core in zip(wanted if len(chosen) >= len(wanted) else least, chosen, strict=True):
            own.setdefault(name, []).append(core)
        free = [core for core in free if core not in chosen]
    return own


def _busiest_first(member: Member) -> tuple[int, str]:
    """They get the fast cores."""
    return ("dgram", "tcp", "tun", "fec").index(member.kind), member.name


def _names_of(member: Member, busiest: str, spare: int) -> list[str]:
    """A core, and one for the second duty of the tcp worker. A dgram worker has that one instead."""
    return [member.name] * (2 if member.kind == busiest == "tcp" and member.duties > 1 and spare else 1)


def _near(free: Sequence[Core], count: int) -> list[Core]:
    """So many of the best cores that are left: at one cache if one has room, else on one node. [] if there are not.

    Of caches with room it is that with the fewest cores, as larger gaps may be of use for a lane to come.
    """
    alike = [core for core in free if core.is_fast == free[0].is_fast]
    for together in (lambda core: (core.node, core.cache), lambda core: core.node):
        groups: dict[object, list[Core]] = {}
        for core in alike:
            groups.setdefault(together(core), []).append(core)
        fitting = [group for group in groups.values() if len(group) >= count]
        if fitting:
            first = fitting[0][0].node
            return min(fitting, key=lambda group: (group[0].node != first, len(group)))[:count]
    return []
