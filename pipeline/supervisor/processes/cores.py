"""Which worker runs on which core: the plan of `pipeline.policy.core_plan`, on this machine, for this configuration."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.config import Config
from pipeline.errors import ConfigError, Problem
from pipeline.policy.core_plan import Member, Placement, place
from pipeline.policy.machine import Machine
from pipeline.runtime.plan import WorkerPlan


def assign(config: Config, workers: Iterable[WorkerPlan], machine: Machine) -> Placement:
    """ConfigError if the configuration names a worker or a core that does not exist. With `carrier` "auto" there are no
    dgram workers where no UDP port could be had; their cores are nobody's then."""
    members = [Member(each.name, each.kind, each.lane, len(each.duties), each.whole) for each in workers]
    if isinstance(config.affinity, str):
        return place(machine, members, config.affinity)
    affinity = config.affinity
    if config.carrier == "auto" and not any(each.kind == "dgram" for each in members):
        affinity = {name: threads for name, threads in affinity.items() if not name.startswith("dgram-")}
    problems = list(_problems(affinity, members, machine))
    if problems:
        raise ConfigError(problems)
    return place(machine, members, affinity)


def _problems(affinity: dict[str, list[int]], members: list[Member], machine: Machine) -> Iterable[Problem]:
    names = {name for each in members for name in (each.name, each.whole)}
    threads = sorted(number for core in machine.cores for number in core.numbers)
    for name, wanted in affinity.items():
        if name not in names:
            yield Problem("affinity", f'given "{name}", expected one of {", ".join(sorted(names))}')
        elif missing := [number for number in wanted if number not in threads]:
            expected = ", ".join(map(str, threads))
            yield Problem(f"affinity.{name}", f"given core {missing[0]}, expected one of {expected}")
