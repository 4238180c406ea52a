"""One log line for many unauthenticated clients, so that a flood does not fill the log."""

from __future__ import annotations

from pipeline.log import LOG

INTERVAL_NS = 10_000_000_000  # between two lines


class UnauthenticatedLog:
    """Counts clients that have failed to prove who they are. Times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._count = 0  # since the last line
        self._next_line_ns = 0

    def record(self, address: str, now: int) -> None:
        self._count += 1
        if now >= self._next_line_ns:
            LOG.warning(
                "client %s has not proved to be a peer (%d such clients since the last such line)", address, self._count
            )
            self._count = 0
            self._next_line_ns = now + INTERVAL_NS
