"""The shared memory of an instance, made anew when names of it are gone from /dev/shm.

A cleaner of temporary files, or RemoveIPC of systemd-logind, may remove them. No worker could be started any more. So
all workers are replaced, and others attach to another memory with other names. Device and listener stay.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.events import Record
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.run.run import Run
from pipeline.supervisor.run.shared_memory import SharedMemory

User = Callable[[SharedMemory], object]

REASON = "the shared memory was made anew"


class MemoryKeeper:
    """`current`: the memory of this time. `settle`: takes what it has counted, before it is closed."""

    def __init__(self, run: Run, settle: Callable[[], object], record: Record) -> None:
        self.current = SharedMemory(run.plan)
        self._run = run
        self._settle = settle
        self._record = record
        self._users: list[User] = []

    def lend(self, user: User) -> None:
        """Give the memory to its user now, and each later one. Users get it in the order of these calls."""
        self._users.append(user)
        user(self.current)

    def check(self, workforce: Workforce, now: int) -> None:
        """LocalError if there is no room for another memory. Times: CLOCK_MONOTONIC ns."""
        if lost := self.current.lost_names(now):
            self._make_anew(workforce, lost)

    def _make_anew(self, workforce: Workforce, lost: list[str]) -> None:
        text = (
            f"{len(lost)} names of this run are gone from /dev/shm, such as {lost[0]}: a cleaner of temporary files, "
            "or RemoveIPC of systemd-logind, has removed them. Making them anew, and replacing all workers"
        )
        self._record("memory-lost", "", text)
        workforce.replace_all(REASON)
        kept = self.current.kept()
        self._settle()
        if self._run.config.mode == "server":  # a client's session goes on
            for memory in (self._run.seal_memory, self._run.datagram_memory):
                if memory is not None:
                    memory.begin_anew()
        self.current.close()  # first: there may not be room for both
        self._run.renew_names()
        self._run.write_plan(self._run.config)
        self.current = SharedMemory(self._run.plan)
        self.current.restore(kept)
        for user in self._users:
            user(self.current)
        workforce.adopt_plan()

    def end(self) -> None:
        """Remove all names. Workers keep their mappings."""
        self.current.end()
