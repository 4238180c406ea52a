"""The precedence of processes: a spare is last in line for a core, and the first to go when memory is short. Workers
come next, and the supervisor, which replaces them, comes last.

    protect()      the supervisor, at its start; restore_own() undoes it
    set_spare()    a process that waits comes after all workers
    set_worker()   a process that is a worker, or will soon be one
    set_foreign()  a process of another program: no more precious than it would be without us

Each process makes a session of its own, and where the kernel groups processes by session (autogroup, sched(7)), a nice
value counts within the group alone. So a process that was made nice gives that value to its group
(pipeline.runtime.worker), and here the group gets it back.

A supervisor that may not take a priority back does not give it away. The score of the memory killer (oom_score_adj,
proc(5)) can be raised without any right, and taken back to what it was. To lower the supervisor's own takes
CAP_SYS_RESOURCE, which containers seldom have; there the scores of all others are raised instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.runtime import privileges

CAP_SYS_NICE = 23  # linux/capability.h
SPARE_NICE = 10  # a tenth of the weight of a worker; with the least, 19, a spare takes 10 s where all cores are busy
SCORE_MAX = 1000
SPARE_SCORE = 500  # above that of a worker: half of all memory
PROTECTED_SCORE = -900  # of the supervisor: -1000 would exempt even one that leaks
RAISED_SCORE = 700  # above that of a supervisor without that right: it has two thirds of a container too small


class Precedence:
    """Remembers the priority and the score that the supervisor has at its start."""

    def __init__(self) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._may_be_nice = bool(privileges.effective_capabilities() & 1 << CAP_SYS_NICE)
        self._own_score = self._worker_score = int(_score_path(os.getpid()).read_text())

    def protect(self) -> None:
        """From now on, workers have a higher score than the supervisor."""
        if self._own_score > PROTECTED_SCORE and not _write_score(os.getpid(), PROTECTED_SCORE):
            self._worker_score = self._own_score + RAISED_SCORE

    def restore_own(self) -> None:
        _write_score(os.getpid(), self._own_score)

    def set_spare(self, pid: int) -> None:
        self._set(pid, max(self._nice, SPARE_NICE), self._worker_score + SPARE_SCORE)

    def set_worker(self, pid: int) -> None:
        self._set(pid, self._nice, self._worker_score)
        if self._may_be_nice:
            self._restore_group(pid)

    def set_foreign(self, pid: int) -> None:
        _write_score(pid, self._own_score)

    def _set(self, pid: int, nice: int, score: int) -> None:
        try:
            if self._may_be_nice:
                os.setpriority(os.PRIO_PROCESS, pid, nice)
        except OSError:
            pass  # it has died, or its priority is not ours to set: no reason to do without it
        _write_score(pid, min(SCORE_MAX, score))

    def _restore_group(self, pid: int) -> None:
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(self._nice))
        except OSError:
            pass  # this kernel has none


def _write_score(pid: int, score: int) -> bool:
    try:
        _score_path(pid).write_text(str(score))
    except OSError:
        return False  # it has died, or /proc is not ours to write
    return True


def _score_path(pid: int) -> Path:
    return Path(f"/proc/{pid}/oom_score_adj")
