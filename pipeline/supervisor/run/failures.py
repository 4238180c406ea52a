"""Exceptions that the supervisor survives: logged with their traceback, counted, and shown by `status`.

An answer that fails, to a command, a worker, a signal or the kernel, must not end the instance: its packets need no
answer. Foreseen errors are handled where they happen. The rest comes here, so each one is a fault of this program.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from pipeline.log import LOG

QUIET_NS = 10_000_000_000  # between two tracebacks of one kind: what fails may fail in every turn of the loop
KINDS_MAX = 64  # that are told apart
PAUSE_SECONDS = 0.01  # what fails comes again at once, and must not take a core

Kind = tuple[str, str, int]


class Failures:
    """`count`: of this run."""

    def __init__(self) -> None:
        self.count = 0
        self._said_at: dict[Kind, int] = {}

    def survive(self, doing: str, act: Callable[..., object], *given: object) -> None:
        """Nothing that happens in `act` ends the instance."""
        try:
            act(*given)
        except Exception:
            self.record(doing)
            time.sleep(PAUSE_SECONDS)

    def record(self, doing: str) -> str:
        """Call in an `except` block. `doing` says what has failed. Returns a line about it, for an answer."""
        error = sys.exception()
        assert error is not None, "there is an exception only in an except block"
        self.count += 1
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        now = time.monotonic_ns()
        kind = doing, type(error).__name__, _line_of(error)
        if now - self._said_at.get(kind, -QUIET_NS) >= QUIET_NS:
            if len(self._said_at) >= KINDS_MAX:
                self._said_at.clear()
            self._said_at[kind] = now
            LOG.error("%s failed, and the supervisor goes on: %s", doing, text, exc_info=True)
        return f"{doing} failed ({text}): the log has a traceback; this is a fault of the program"


def _line_of(error: BaseException) -> int:
    """The line of the innermost frame."""
    trace = error.__traceback__
    line = 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    return line
