"""The board: one shared segment in which every worker has a page that it alone writes.

    supervisor and tools     read heartbeats and counters; need no answer from the worker
    a duty                   writes its heartbeat, its sleeping word, its counters
    other workers            read sleeping words (to kick)

A successor goes on with the counters that it finds. Offsets: `layout`.
"""

from __future__ import annotations

from pipeline.counters import COUNTERS
from pipeline.errors import LocalError
from pipeline.shm import layout, segment


class Scoreboard:
    """An attached board of so many workers' pages."""

    def __init__(self, memory: segment.Segment, workers: int) -> None:
        self.memory = memory
        self.words = memory.words
        for at, expected, what in (
            (layout.SCOREBOARD_MAGIC_AT, layout.SCOREBOARD_MAGIC, "magic"),
            (layout.SCOREBOARD_VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
            (layout.SCOREBOARD_WORKERS_AT, workers, "workers"),
        ):
            actual = self.words[at // 8]
            if actual != expected:
                raise LocalError(f"board {memory.name}: {what}: expected {expected}, found {actual}")
        self.pages = [WorkerPage(self, worker) for worker in range(workers)]

    def totals(self) -> dict[str, int]:
        """Every counter, added up over the workers."""
        return {c.name: sum(page.counters[c.id] for page in self.pages) for c in COUNTERS}

    def close(self) -> None:
        for page in self.pages:
            page.close()
        self.memory.close()


class WorkerPage:
    """One worker's page."""

    def __init__(self, board: Scoreboard, worker: int) -> None:
        self._at = layout.page_at(worker)
        self._words = board.words
        self.counters = self._cut(layout.COUNTERS_AT, layout.COUNTERS_MAX)
        self._sleeping = [
            self._cut(layout.DUTY_AT + d * layout.DUTY_STRIDE + layout.DUTY_SLEEPING_AT, 1)
            for d in range(len(layout.DUTIES))
        ]
        self._heartbeats = [
            self._cut(layout.DUTY_AT + d * layout.DUTY_STRIDE + layout.DUTY_HEARTBEAT_AT, 1)
            for d in range(len(layout.DUTIES))
        ]

    def _cut(self, at: int, words: int) -> memoryview:
        first = (self._at + at) // 8
        return self._words[first : first + words]

    def sleeping(self, duty: str) -> memoryview:
        return self._sleeping[layout.DUTIES.index(duty)]

    def heartbeat(self, duty: str) -> memoryview:
        return self._heartbeats[layout.DUTIES.index(duty)]

    def oldest_heartbeat(self) -> int:
        """CLOCK_MONOTONIC ns of the duty that has been silent longest; 0 before the first beat."""
        return min(word[0] for word in self._heartbeats)

    def close(self) -> None:
        for view in (self.counters, *self._sleeping, *self._heartbeats):
            view.release()


def create(name: str, workers: int) -> Scoreboard:
    """Make an empty board."""
    memory = segment.create(name, layout.scoreboard_bytes(workers))
    memory.words[layout.SCOREBOARD_VERSION_AT // 8] = layout.LAYOUT_VERSION
    memory.words[layout.SCOREBOARD_WORKERS_AT // 8] = workers
    memory.words[layout.SCOREBOARD_MAGIC_AT // 8] = layout.SCOREBOARD_MAGIC
    return Scoreboard(memory, workers)


def attach(name: str, workers: int) -> Scoreboard:
    """Attach to an existing board (LocalError if it is another one)."""
    return Scoreboard(segment.attach(name, layout.scoreboard_bytes(workers)), workers)
