"""The machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec


class Machine(msgspec.Struct):
    cores: int
    cpu: str
    kernel: str
    python: str

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.cpu}, Linux {self.kernel}, Python {self.python}"


def machine() -> Machine:
    """The machine on which the numbers were measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return Machine(
        cores=len(os.sched_getaffinity(0)), cpu=model, kernel=platform.release(), python=platform.python_version()
    )
