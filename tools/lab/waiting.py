"""Wait for a condition, with a deadline and a name for it. Tests use tests/support.py, which fails the test instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
POLL_SECONDS = 0.01


class Overdue(RuntimeError):
    """A condition was not true in time."""


def until(
    condition: Callable[[], Value | None], what: str, seconds: float = 10.0, every: float = POLL_SECONDS
) -> Value:
    """The first true value of `condition()`. After `seconds`, Overdue says what was expected."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Overdue(f"expected within {seconds:g} s: {what}")
        time.sleep(every)
    return value
