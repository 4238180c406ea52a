"""The events of an instance, recorded: kept in shared memory, written to the log, told to those who act on them.

    record(kind, subject, text)   something has happened. `kind` is a name of pipeline.events, `text` says why
    subscribe(callback)           callback(event) for each event, at once; it must not block, and may record others
    tick(now), finish()           write the counts of equal events that are due, or all

Equal events within a few seconds are counted in shared memory and in the log, not repeated (`pipeline.policy.repeats`).
Subscribers hear each of them, and no counts. Events from before there is memory for them are written then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from pipeline import events
from pipeline.events import Event, EventKind
from pipeline.log import LEVELS, LOG
from pipeline.plain_text import escaped
from pipeline.policy.repeats import Repeated, Repeats
from pipeline.shm.event_log import EventLog

EARLY_MAX = 64  # events that wait for the memory

_Key = tuple[str, str, str]  # name of the kind, subject, text


class Events:
    """`use` comes once the shared memory is there, and again when it was made anew."""

    def __init__(self) -> None:
        self._log: EventLog | None = None
        self._early: deque[Event] = deque(maxlen=EARLY_MAX)
        self._repeats: Repeats[_Key] = Repeats()
        self._subscribers: list[Callable[[Event], object]] = []
        self.count = 0  # of all that were recorded

    def use(self, event_log: EventLog) -> None:
        self._log = event_log
        while self._early:
            _, kind, subject, text, time_ns, *_ = self._early.popleft()
            event_log.append(kind, subject, text, time_ns)

    def subscribe(self, callback: Callable[[Event], object]) -> None:
        self._subscribers.append(callback)

    def record(self, kind: str, subject: str = "", text: str = "") -> None:
        """Nothing that is not printable goes on, whatever subject and text hold."""
        found = events.BY_NAME[kind]
        subject, text = escaped(subject), escaped(text)
        now, time_ns = time.monotonic_ns(), time.time_ns()
        self._write_counts(self._repeats.due(now))
        event = Event(0, found, subject, text, time_ns)
        self.count += 1
        if found.logged:
            LOG.log(LEVELS[found.level], "%s", event.line)
        if self._repeats.is_new((kind, subject, text), now):
            event = self._keep(found, subject, text, time_ns)
        for callback in self._subscribers:
            try:
                callback(event)
            except Exception:  # the event has happened, and others want to hear of it
                LOG.exception("a subscriber of events failed at %s", kind)

    def tick(self, now: int) -> None:
        self._write_counts(self._repeats.due(now))

    def finish(self) -> None:
        self._write_counts(self._repeats.rest(time.monotonic_ns()))

    def _write_counts(self, counts: Iterable[Repeated[_Key]]) -> None:
        for each in counts:
            kind, subject, text = each.key
            time_ns = time.time_ns()
            since_ns = time_ns - (each.until_ns - each.since_ns)
            self._keep(events.BY_NAME[kind], subject, text, time_ns, each.more, since_ns)

    def _keep(self, kind: EventKind, subject: str, text: str, time_ns: int, more: int = 0, since_ns: int = 0) -> Event:
        if self._log is not None:
            return self._log.append(kind, subject, text, time_ns, more, since_ns)
        event = Event(0, kind, subject, text, time_ns, more, since_ns)
        self._early.append(event)
        return event
