"""The scoreboard: a segment in which every worker has a page that it alone writes.

    a duty                 writes its heartbeat, its sleeping flag and its counters
    tcp workers            write and read how many connections each has, to accept in turn
    other workers          read sleeping flags, to kick
    supervisor and tools   read heartbeats and counters, without a word from the worker

A successor continues the counters that it finds. Offsets: `layout`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.counters import COUNTERS
from pipeline.shm import layout, segment


class Scoreboard:
    """An attached scoreboard, with a page for each of so many workers."""

    def __init__(self, memory: segment.Segment, workers: int) -> None:
        self.memory = memory
        self.words = memory.words
        self.pages = [WorkerPage(memory, worker) for worker in range(workers)]

    def totals(self) -> dict[str, int]:
        """Every counter by its name, added up over the workers."""
        return {c.name: sum(page.counters[c.id] for page in self.pages) for c in COUNTERS}

    def close(self) -> None:
        for page in self.pages:
            page.close()
        self.memory.close()


class WorkerPage:
    """The page of one worker."""

    def __init__(self, memory: segment.Segment, worker: int) -> None:
        self._at = layout.page_at(worker)
        self._memory = memory
        self.counters = self._cut(layout.COUNTERS_AT, layout.COUNTERS_MAX)
        self.connections = self._cut(layout.CONNECTIONS_AT, 1)
        self._waiting = [
            self._cut(layout.DUTY_AT + d * layout.DUTY_STRIDE + layout.DUTY_WAITING_AT, 1)
            for d in range(len(layout.DUTIES))
        ]
        self._sleeping = [
            self._cut(layout.DUTY_AT + d * layout.DUTY_STRIDE + layout.DUTY_SLEEPING_AT, 1)
            for d in range(len(layout.DUTIES))
        ]
        self._heartbeats = [
            self._cut(layout.DUTY_AT + d * layout.DUTY_STRIDE + layout.DUTY_HEARTBEAT_AT, 1)
            for d in range(len(layout.DUTIES))
        ]

    def _cut(self, at: int, words: int) -> memoryview:
        return self._memory.cut_words(self._at + at, words)

    def sleeping(self, duty: str) -> memoryview:
        return self._sleeping[layout.DUTIES.index(duty)]

    def waiting(self, duty: str) -> memoryview:
        return self._waiting[layout.DUTIES.index(duty)]

    def heartbeat(self, duty: str) -> memoryview:
        return self._heartbeats[layout.DUTIES.index(duty)]

    def oldest_heartbeat(self, duties: Iterable[str] = layout.DUTIES) -> int:
        """CLOCK_MONOTONIC ns of the last loop of the duty, of those of the worker, that is silent longest; 0 before its
        first loop."""
        return min(self.heartbeat(duty)[0] for duty in duties)

    def close(self) -> None:
        for view in (self.counters, self.connections, *self._waiting, *self._sleeping, *self._heartbeats):
            view.release()


def create(name: str, workers: int) -> Scoreboard:
    """Create an empty scoreboard."""
    memory = segment.create_with_header(
        name, layout.scoreboard_bytes(workers), layout.SCOREBOARD_MAGIC, _geometry(workers)
    )
    return Scoreboard(memory, workers)


def attach(name: str, workers: int, page: int | None = None) -> Scoreboard:
    """Attach to an existing scoreboard, to write to one page, or to all. LocalError if it is another one."""
    memory = segment.attach_with_header(
        name,
        layout.scoreboard_bytes(workers),
        layout.SCOREBOARD_MAGIC,
        _geometry(workers),
        None if page is None else [segment.Area(layout.page_at(page), layout.SCOREBOARD_PAGE_BYTES)],
    )
    return Scoreboard(memory, workers)


def observe(name: str, workers: int, owner: int | None = None) -> Scoreboard:
    """Attach to the scoreboard of this owner, to read alone. LocalError if it is another one."""
    size = layout.scoreboard_bytes(workers)
    memory = segment.attach_with_header(name, size, layout.SCOREBOARD_MAGIC, _geometry(workers), (), owner)
    return Scoreboard(memory, workers)


def _geometry(workers: int) -> list[segment.Field]:
    return [segment.Field(layout.SCOREBOARD_WORKERS_AT, workers, "workers")]
