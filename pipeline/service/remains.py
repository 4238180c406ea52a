"""The remains of supervisors that were killed, and their removal.

    find_dead()     the names of instances of which something is left
    remove(name)    remove it, as the next start of that instance would; whether there was something

The kernel has removed the device by then, with its addresses and routes. The lock file, the socket, names in /dev/shm
the tables of
the firewall and sysctls may be left, each with the name of the instance. Names that are not files of ours are left
alone, and so is what any process still maps: it may be an instance in a container.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.runtime.topology import name_prefix
from pipeline.supervisor.instance import Instance, find_instances, names_in_shared_memory
from pipeline.supervisor.kernel.entries import instances_with_tables, remove_remains
from pipeline.version import NAME

PROGRAMS = NAME.encode(), b"pipeline.cli.main"


def find_dead() -> list[str]:
    found = find_instances()
    without_lock = (names_in_shared_memory() | instances_with_tables()) - {*found.running, *found.dead}
    return sorted([*found.dead, *(name for name in without_lock if not _is_mapped(name))])


def remove(name: str) -> bool:
    """LocalError if the instance runs."""
    dead = Instance(name)
    if not (dead.lock_path.exists() or name in names_in_shared_memory() or name in instances_with_tables()):
        return False
    dead.acquire()
    try:
        remove_remains(name)
    finally:
        dead.release()
    return True


def _is_mapped(name: str) -> bool:
    """Whether any process has a segment of this instance in its memory."""
    return any(
        _maps(Path("/proc", pid), name_prefix(name).encode()) for pid in filter(str.isdecimal, os.listdir("/proc"))
    )


def _maps(process: Path, needle: bytes) -> bool:
    """A process whose memory we may not see counts if its command line is one of this program."""
    try:
        try:
            return needle in (process / "maps").read_bytes()
        except PermissionError:
            return any(word in (process / "cmdline").read_bytes() for word in PROGRAMS)
    except OSError:
        return False  # it has ended
