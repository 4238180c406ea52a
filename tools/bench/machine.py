"""The machine that a measurement ran on, and how a benchmark ends."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from tools.bench.throughput_report import Machine

DONE, FAILED, NO_PERMISSION, INTERRUPTED = 0, 1, 77, 130


def machine() -> Machine:
    """What the numbers were measured on."""
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
