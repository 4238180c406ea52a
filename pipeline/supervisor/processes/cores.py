"""Which worker runs on which core.

`assign` is pure. Each worker gets a core of its own, physical cores first, and the workers of a lane get neighbours,
which share a cache. With fewer cores than workers, no worker is pinned that the configuration does not pin: the
kernel's scheduler does better.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from pipeline.errors import ConfigError, Problem

SYS_CPU = Path("/sys/devices/system/cpu")


def available() -> list[int]:
    """The cores that this process may use: one thread of each physical core first, then their siblings."""
    first: list[int] = []
    siblings: list[int] = []
    seen: set[tuple[str, str]] = set()
    for core in sorted(psutil.Process().cpu_affinity()):
        physical = _physical(core)
        (siblings if physical in seen else first).append(core)
        seen.add(physical)
    return first + siblings


def _physical(core: int) -> tuple[str, str]:
    topology = SYS_CPU / f"cpu{core}" / "topology"
    try:
        return ((topology / "physical_package_id").read_text(), (topology / "core_id").read_text())
    except OSError:
        return ("?", str(core))  # no topology (a container): every core counts as a physical one


def assign(
    workers: list[tuple[str, int]], affinity: str | dict[str, list[int]], cores: list[int]
) -> dict[str, list[int]]:
    """Cores of each worker that is pinned. `workers`: (name, lane).

    ConfigError if the configuration names a worker or a core that does not exist.
    """
    if affinity == "none":
        return {}
    chosen: dict[str, list[int]] = {}
    if not isinstance(affinity, str):
        problems = []
        names = {name for name, _ in workers}
        for name, wanted in affinity.items():
            if name not in names:
                problems.append(Problem("affinity", f'given "{name}", expected one of {", ".join(sorted(names))}'))
            elif missing := [core for core in wanted if core not in cores]:
                problems.append(
                    Problem(
                        f"affinity.{name}",
                        f"given core {missing[0]}, expected one of {', '.join(map(str, sorted(cores)))}",
                    )
                )
            chosen[name] = list(wanted)
        if problems:
            raise ConfigError(problems)
    rest = sorted((lane, name) for name, lane in workers if name not in chosen)
    taken = {core for wanted in chosen.values() for core in wanted}
    free = [core for core in cores if core not in taken]
    if len(free) >= len(rest):
        chosen |= {name: [core] for (_, name), core in zip(rest, free, strict=False)}
    return {name: wanted for name, wanted in chosen.items() if wanted}
