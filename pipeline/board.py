"""Floor 1. The board: one shared segment in which every worker has a page that it alone writes.

    supervisor and tools     read heartbeats, counters, connection rows; need no answer from the worker
    a duty                   writes its heartbeat, its sleeping word, its counters
    tcp inbound duty         writes the carrier words and connection rows of its page
    other workers            read sleeping words (to kick) and carrier words (to choose a tcp worker)

A successor goes on with the counters that it finds. Offsets: `layout`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline import layout, segment
from pipeline.counters import COUNTERS
from pipeline.errors import LocalError


class Board:
    """An attached board of so many workers' pages."""

    def __init__(self, memory: segment.Segment, workers: int) -> None:
        self.memory = memory
        self.words = memory.words
        for at, expected, what in (
            (layout.BOARD_MAGIC_AT, layout.BOARD_MAGIC, "magic"),
            (layout.BOARD_VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
            (layout.BOARD_WORKERS_AT, workers, "workers"),
        ):
            actual = self.words[at // 8]
            if actual != expected:
                raise LocalError(f"board {memory.name}: {what}: expected {expected}, found {actual}")
        self.pages = [Page(self, worker) for worker in range(workers)]

    def totals(self) -> dict[str, int]:
        """Every counter, added up over the workers."""
        return {c.name: sum(page.counters[c.id] for page in self.pages) for c in COUNTERS}

    def close(self) -> None:
        for page in self.pages:
            page.close()
        self.memory.close()


class Page:
    """One worker's page."""

    def __init__(self, board: Board, worker: int) -> None:
        self._at = layout.page_at(worker)
        self._view = board.memory.view
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
        self.carrier = self._cut(layout.CARRIER_AT, layout.CARRIER_WORDS)

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

    def write_row(self, index: int, row: ConnectionRow | None) -> None:
        """Publish a connection, or clear its row. Readers may see a half-written row; they only show it."""
        at = self._at + layout.ROWS_AT + index * layout.ROW_BYTES
        data = row.pack() if row else b""
        self._view[at : at + layout.ROW_BYTES] = data.ljust(layout.ROW_BYTES, b"\0")

    def rows(self) -> list[ConnectionRow]:
        """The connections that this worker has published."""
        found = []
        for index in range(layout.ROWS_MAX):
            at = self._at + layout.ROWS_AT + index * layout.ROW_BYTES
            row = ConnectionRow.unpack(bytes(self._view[at : at + layout.ROW_BYTES]))
            if row is not None:
                found.append(row)
        return found

    def close(self) -> None:
        for view in (self.counters, self.carrier, *self._sleeping, *self._heartbeats):
            view.release()


_ROW = struct.Struct("<BBHIQQQQIB19x")
_STATES = ("", "connecting", "greeting", "established")


class ConnectionRow(NamedTuple):
    """What a tcp worker tells about one connection; times are CLOCK_MONOTONIC."""

    state: str
    address: str
    lane: int
    serial: int
    sent_bytes: int
    received_bytes: int
    since_ns: int
    heard_ns: int
    rtt_us: int
    purpose: int

    def pack(self) -> bytes:
        address = self.address.encode()[: layout.ROW_BYTES - _ROW.size]
        return _ROW.pack(_STATES.index(self.state), len(address), *self[2:]) + address

    @classmethod
    def unpack(cls, data: bytes) -> ConnectionRow | None:
        """The row, or None for an empty or unreadable one."""
        state, length, *numbers = _ROW.unpack_from(data)
        if not 0 < state < len(_STATES):
            return None
        return cls(_STATES[state], data[_ROW.size : _ROW.size + length].decode(errors="replace"), *numbers)


def create(name: str, workers: int) -> Board:
    """Make an empty board."""
    memory = segment.create(name, layout.board_bytes(workers))
    memory.words[layout.BOARD_VERSION_AT // 8] = layout.LAYOUT_VERSION
    memory.words[layout.BOARD_WORKERS_AT // 8] = workers
    memory.words[layout.BOARD_MAGIC_AT // 8] = layout.BOARD_MAGIC
    return Board(memory, workers)


def attach(name: str, workers: int) -> Board:
    """Attach to an existing board (LocalError if it is another one)."""
    return Board(segment.attach(name, layout.board_bytes(workers)), workers)
