"""What several tests need: the root of the checkout, and waiting for a condition with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]  # of the checkout
POLL = 0.005  # seconds between two looks at a condition

T = TypeVar("T")


def eventually(condition: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """The first true value of `condition`. AssertionError, with `what`, when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        pause.wait(POLL)
