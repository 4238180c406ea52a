"""Processes as /proc/PID/stat shows them to everybody (proc_pid_stat(5)): state, CPU time, core, memory."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

STATES = {"R": "running", "S": "sleeping", "D": "waiting for a device", "T": "stopped", "t": "traced", "Z": "zombie"}
"""Words for the letters of the kernel; "X" and others are "dead"."""

HALTED = ("stopped", "traced")
"""States of a process that does nothing until somebody continues it."""


class ProcessStat(NamedTuple):
    """One look at one process."""

    state: str
    cpu_seconds: float  # of all its threads, since it began
    began: int  # clock ticks since the machine was started; with the pid it names one process
    rss_bytes: int
    core: int  # on which its main thread ran last


def read_process(pid: int) -> ProcessStat | None:
    """None if there is no such process, or if /proc hides it (hidepid)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()  # the name before may hold anything
    if len(fields) < 37:
        return None
    return ProcessStat(
        STATES.get(fields[0].decode(), "dead"),
        (int(fields[11]) + int(fields[12])) / _TICKS,
        int(fields[19]),
        int(fields[21]) * _PAGE,
        int(fields[36]),
    )


class CpuMeter:
    """Percent of a core that processes use: since the last look; at the first look since they began, as in ps(1)."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[float, float, float]] = {}  # by pid and begin

    def percent(self, pid: int, process: ProcessStat) -> float:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        key = pid, process.began
        began = process.began / _TICKS, 0.0, 0.0
        then, used, before = self._last.get(key, began)
        if now - then < 0.01:
            return before
        percent = round(max(0.0, 100 * (process.cpu_seconds - used) / (now - then)), 1)
        self._last[key] = now, process.cpu_seconds, percent
        return percent

    def forget_others(self, pids: set[int]) -> None:
        """Forget all processes but these."""
        self._last = {key: value for key, value in self._last.items() if key[0] in pids}
