"""The precedence of processes: a spare is last in line for a core, and the first to go when memory is short.

A supervisor that may not take a priority back does not give it away. The score of the memory killer (oom_score_adj,
proc(5)) can be taken back without any right, down to what it was before.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.runtime import privileges

CAP_SYS_NICE = 23  # linux/capability.h
NICEST = 19
SPARE_SCORE = 500  # above that of the supervisor and its workers: half of all memory
SCORE_MAX = 1000


class Precedence:
    """Remembers that of the supervisor, which its workers have."""

    def __init__(self) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._may_be_nice = bool(privileges.effective_capabilities() & 1 << CAP_SYS_NICE)
        self._score = int(_score_path(os.getpid()).read_text())

    def lower(self, pid: int) -> None:
        """The process comes after all workers."""
        self._set(pid, NICEST, min(SCORE_MAX, self._score + SPARE_SCORE))

    def restore(self, pid: int) -> None:
        """The process is a worker like others."""
        self._set(pid, self._nice, self._score)

    def _set(self, pid: int, nice: int, score: int) -> None:
        try:
            if self._may_be_nice:
                os.setpriority(os.PRIO_PROCESS, pid, nice)
            _score_path(pid).write_text(str(score))
        except OSError:
            pass  # it has died, or /proc is not ours to write: no reason to do without it


def _score_path(pid: int) -> Path:
    return Path(f"/proc/{pid}/oom_score_adj")
