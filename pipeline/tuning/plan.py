"""The plan of an instance on a machine, as data and as text: what `tune` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.lanes import shape_of
from pipeline.policy.core_plan import Choice, Member, Placement, choose, place, usable_cpus
from pipeline.policy.machine import Machine
from pipeline.runtime.topology import WorkerDuties, list_workers
from pipeline.runtime.topology import shape_of as topology_shape
from pipeline.tuning.advice import Advice, advise, hints

SCHEMA_VERSION = 1


class TuningPlan(NamedTuple):
    """`choice`: what `auto` would choose here; the configuration may say otherwise."""

    machine: Machine
    config: Config
    choice: Choice
    workers: list[WorkerDuties]
    placement: Placement
    advice: list[Advice]
    hints: list[str]


def make_plan(config: Config, machine: Machine) -> TuningPlan:
    """`config` is for this very machine."""
    shape = topology_shape(config.compat, config.fec, config.carrier != "tcp")
    workers = list_workers(shape, config.lanes, config.split_workers)
    members = [
        Member(each.name, each.kind, each.lane, len(each.duties), f"{each.kind}-{each.lane}") for each in workers
    ]
    placement = place(machine, members, config.affinity)
    return TuningPlan(
        machine,
        config,
        choose(machine, shape_of(config, config.fec)),
        workers,
        placement,
        advise(machine, placement, config.mode == "server"),
        hints(machine, config.congestion, config.send_queue_size),
    )


def as_data(plan: TuningPlan) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "lanes": plan.config.lanes,
        "split_workers": list(plan.config.split_workers),
        "workers": [
            {
                "name": each.name,
                "lane": each.lane,
                "duties": list(each.duties),
                "cores": plan.placement.threads.get(each.name, []),
            }
            for each in plan.workers
        ],
        "reasons": [*_reasons(plan), *plan.placement.reasons],
        "advice": [each._asdict() | {"name": each.name} for each in plan.advice],
        "hints": plan.hints,
    }


def as_text(plan: TuningPlan) -> str:
    return "\n".join([*_about(plan.machine), "", *_plan(plan), "", *_advice(plan)])


def _about(machine: Machine) -> list[str]:
    cores = machine.cores
    threads = sum(len(each.threads) for each in cores)
    parts = [
        f"{len(cores)} core(s)",
        *([f"{threads} threads"] if threads != len(cores) else []),
        f"{len({each.cache for each in cores})} last-level cache(s)",
        f"{len({each.node for each in cores})} node(s) of memory",
    ]
    if threads < len(machine.threads):
        parts.append(f"of {len(machine.threads)} threads that the machine has")
    if machine.quota is not None:
        parts.append(f"a quota of {machine.quota:g} CPUs ({usable_cpus(machine):g} of use)")
    return [f"machine: {machine.processor or 'unknown processor'}; {', '.join(parts)}"]


def _reasons(plan: TuningPlan) -> list[str]:
    config, choice = plan.config, plan.choice
    if (config.lanes, config.split_workers) == (choice.lanes, choice.split):
        return list(choice.reasons)
    configured = f"configured: lanes {config.lanes}, split_workers [{', '.join(config.split_workers)}]"
    chosen = f"`auto` would choose lanes {choice.lanes}, split_workers [{', '.join(choice.split)}]"
    return [configured, chosen, *choice.reasons]


def _plan(plan: TuningPlan) -> list[str]:
    rows = [["process", "lane", "duties", "cores"]]
    for each in sorted(plan.workers, key=lambda worker: worker.lane):
        cores = plan.placement.threads.get(each.name, [])
        rows.append([each.name, str(each.lane), " and ".join(each.duties), ranges(cores) or "any"])
    reasons = [f"  {reason}" for reason in (*_reasons(plan), *plan.placement.reasons)]
    return [f"plan: {plan.config.lanes} lane(s), {len(plan.workers)} processes", *reasons, "", *table(rows)]


def _advice(plan: TuningPlan) -> list[str]:
    lines = []
    if plan.advice:
        rows = [
            ["setting", "now", "better"],
            *([each.name, _words(each.before), _words(each.wanted)] for each in plan.advice),
        ]
        lines += ["what else to set (--apply does so, --revert takes it back):", *table(rows), ""]
        lines += [f"  {name}: {why}" for why, name in _by_reason(plan.advice)]
    else:
        lines.append("nothing else is to be set: all is as good or better already")
    return [*lines, *(f"note: {hint}" for hint in plan.hints)]


def _by_reason(advice: Sequence[Advice]) -> list[tuple[str, str]]:
    """Each reason once, with the settings that it is about."""
    names: dict[str, list[str]] = {}
    for each in advice:
        names.setdefault(each.why, []).append(each.name)
    return [
        (why, found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more") for why, found in names.items()
    ]


def _words(value: str) -> str:
    return " ".join(value.split()) or "-"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as the kernel lists them, such as 0-3,8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
