"""Exponential backoff with jitter: how long to wait before the next attempt."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds. The first is `minimum`, each next one is twice as long, up to `maximum`.

    All but the first are shortened by up to a half, at random: many clients of one server do not come back in step.
    """

    def __init__(self, minimum: float, maximum: float, source: random.Random | None = None) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.attempt = 0
        self._random = source or random.Random()

    def next_delay(self) -> float:
        """Count an attempt: the delay before it."""
        delay = min(self.maximum, self.minimum * float(1 << min(self.attempt, 30)))
        if self.attempt:
            delay *= 0.5 + 0.5 * self._random.random()
        self.attempt += 1
        return delay

    def reset(self) -> None:
        """Begin again at `minimum`, after a success."""
        self.attempt = 0
