"""One log line for many clients, so that a flood does not fill the log."""

from __future__ import annotations

from pipeline.log import LOG

INTERVAL_NS = 10_000_000_000  # between two lines


class CountedWarning:
    """`text`: with %s for what record() is told, and then %d for the number of times since the last line. Times are
    CLOCK_MONOTONIC ns."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._count = 0  # since the last line
        self._next_line_ns = 0

    def record(self, now: int, *about: str) -> None:
        self._count += 1
        if now >= self._next_line_ns:
            LOG.warning(self._text, *about, self._count)
            self._count = 0
            self._next_line_ns = now + INTERVAL_NS
