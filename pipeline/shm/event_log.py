"""The event log: a segment with the last events, which the supervisor alone writes. Anybody reads it without a lock.

It is a ring of records of one size. Record n of all is at place n modulo the number of records. The writer marks the
place as empty, fills it, gives it the number n + 1, and then counts the events one up. A reader looks at the number
before and after it copies a record (docs/memory-order.md, "Versions"). One that was overwritten meanwhile is not there
any more, and is counted as missed.

An event that the supervisor was writing when it was stopped (SIGSTOP) or killed is not counted. All others can be read.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.events import Event, EventKind, kind_of
from pipeline.shm import layout, segment
from pipeline.shm.memory_order import fence

# time, begin of counting, count, kind, bytes of subject and text; subject and text follow. The number stands before.
_RECORD = struct.Struct("<QQIHHH")
_BODY_AT = 8
_TEXT_AT = _BODY_AT + _RECORD.size
SUBJECT_BYTES_MAX = 96
_COUNT = layout.EVENT_COUNT_AT // 8


class Read(NamedTuple):
    """Events in their order, how many are missing since they were overwritten, and where to read on."""

    events: list[Event]
    missed: int
    next: int


class EventLog:
    """An attached event log."""

    def __init__(self, memory: segment.Segment) -> None:
        self.memory = memory

    @property
    def count(self) -> int:
        """Events that were written so far."""
        return self.memory.words[_COUNT]

    def append(self, kind: EventKind, subject: str, text: str, time_ns: int, more: int = 0, since_ns: int = 0) -> Event:
        """Write an event. A subject or text that is too long is cut."""
        number = self.count
        at = layout.EVENTS_AT + number % layout.EVENTS_KEPT * layout.EVENT_BYTES
        name = _cut(subject, SUBJECT_BYTES_MAX)
        body = _cut(text, layout.EVENT_BYTES - _TEXT_AT - len(name))
        words, view = self.memory.words, self.memory.view
        words[at // 8] = 0
        fence()
        data = _RECORD.pack(time_ns, since_ns, more, kind.id, len(name), len(body)) + name + body
        view[at + _BODY_AT : at + _BODY_AT + len(data)] = data
        fence()
        words[at // 8] = number + 1
        fence()
        words[_COUNT] = number + 1
        return Event(number, kind, subject, text, time_ns, more, since_ns)

    def read(self, start: int = 0) -> Read:
        """The events from this number on, as far as they are still there."""
        count = self.count
        fence()
        if start > count:
            start = 0  # the numbers have begun anew
        start = max(0, start)
        first = max(start, count - layout.EVENTS_KEPT)
        found = [event for number in range(first, count) if (event := self._event(number)) is not None]
        return Read(found, count - start - len(found), count)

    def _event(self, number: int) -> Event | None:
        at = layout.EVENTS_AT + number % layout.EVENTS_KEPT * layout.EVENT_BYTES
        words = self.memory.words
        before = words[at // 8]
        fence()
        data = bytes(self.memory.view[at + _BODY_AT : at + layout.EVENT_BYTES])
        fence()
        if before != number + 1 or words[at // 8] != before:
            return None
        time_ns, since_ns, more, kind, subject, text = _RECORD.unpack_from(data)
        start, middle = _RECORD.size, _RECORD.size + subject
        return Event(
            number,
            kind_of(kind),
            data[start:middle].decode(errors="replace"),
            data[middle : middle + text].decode(errors="replace"),
            time_ns,
            more,
            since_ns,
        )

    # -- the supervisor makes its shared memory anew

    def contents(self) -> bytes:
        """Everything behind the header of the segment."""
        return bytes(self.memory.view[layout.EVENT_COUNT_AT :])

    def restore(self, contents: bytes) -> None:
        """Continue the log that had these contents."""
        self.memory.view[layout.EVENT_COUNT_AT :] = contents

    def close(self) -> None:
        self.memory.close()


def create(name: str) -> EventLog:
    """Create an empty event log."""
    return EventLog(segment.create_with_header(name, layout.event_log_bytes(), layout.EVENT_LOG_MAGIC, _geometry()))


def attach(name: str, owner: int | None = None) -> EventLog:
    """Attach to an existing event log, to read. LocalError if it is another one."""
    return EventLog(
        segment.attach_with_header(name, layout.event_log_bytes(), layout.EVENT_LOG_MAGIC, _geometry(), (), owner)
    )


def _geometry() -> list[segment.Field]:
    return [segment.Field(layout.EVENTS_KEPT_AT, layout.EVENTS_KEPT, "records")]


def _cut(text: str, size: int) -> bytes:
    """The text in at most so many bytes; a character is there as a whole or not at all."""
    data = text.encode(errors="replace")
    return data if len(data) <= size else data[:size].decode(errors="ignore").encode()
