"""Exponential backoff with jitter: how long to wait before the next attempt."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds: the first is `minimum`, each next one doubles up to `maximum`, all but the first
    jittered down by up to half, so that many clients of one server do not come back in step."""

    def __init__(self, minimum: float, maximum: float, source: random.Random | None = None) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.attempt = 0
        self._random = source or random.Random()

    def delay(self) -> float:
        """The next delay; counts the attempt."""
        base = min(self.maximum, self.minimum * 2 ** min(self.attempt, 30))
        first = self.attempt == 0
        self.attempt += 1
        return base if first else base * (0.5 + 0.5 * self._random.random())

    def reset(self) -> None:
        """Start again from `minimum`, after a success."""
        self.attempt = 0
