"""A process that has reached its limit of open files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def no_descriptor_left(pid: int = 0, *, besides: int = 0) -> Iterator[None]:
    """Every call of the process that makes a descriptor fails with EMFILE; those that it has go on. 0: this process.

    `besides`: so many that another process may still make.
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (_lowest_free(pid, besides), before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _lowest_free(pid: int, besides: int) -> int:
    if pid:
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        return sorted(set(range(len(used) + besides + 1)) - used)[besides]
    lowest = os.open(os.devnull, os.O_RDONLY)  # a list of our own would have that of the list itself
    os.close(lowest)
    return lowest
