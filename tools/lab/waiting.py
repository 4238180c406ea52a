"""Wait for a condition, with a deadline and a name for what did not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
LOOK_AGAIN_SECONDS = 0.01


class Overdue(RuntimeError):
    """What was waited for did not come in time."""


def until(condition: Callable[[], Value], what: str, seconds: float = 10.0, every: float = LOOK_AGAIN_SECONDS) -> Value:
    """The first true value of `condition()`. Overdue, which says what was expected, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Overdue(f"expected within {seconds:g} s: {what}")
        time.sleep(every)
    return value
