"""The queue of hooks: which commands wait for their turn, what is thrown away, and what runs next.

Events of one subject run one after the other, in order: those of the tunnel itself, those of one peer, the quotas of
one peer. Different subjects run beside each other, at most RUNNING_MAX commands in all.

While a command of a subject runs, one more may wait. A later one takes its place: the last state wins, and `dropped`
counts the others. So a link that comes and goes ten times a second costs as many commands as can be run, and the last
one tells how it is. Beyond WAITING_MAX subjects, the one that has waited longest is thrown away.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

RUNNING_MAX = 4
WAITING_MAX = 1024

T = TypeVar("T")


class Turn(NamedTuple, Generic[T]):
    """A subject whose turn has come, and what to run for it."""

    subject: Hashable
    what: T


class HookQueue(Generic[T]):
    """`dropped`: what has been thrown away."""

    def __init__(self) -> None:
        self.dropped = 0
        self._running: set[Hashable] = set()
        self._waiting: dict[Hashable, T] = {}  # the one that has waited longest is first

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def add(self, subject: Hashable, what: T) -> None:
        """A subject keeps its place while what waits for it is replaced."""
        self.dropped += subject in self._waiting
        self._waiting[subject] = what
        while len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1

    def next(self) -> Turn[T] | None:
        """The turn that has come, if there is one; ended() must follow."""
        if len(self._running) >= RUNNING_MAX:
            return None
        for subject, what in self._waiting.items():
            if subject not in self._running:
                self._running.add(subject)
                del self._waiting[subject]
                return Turn(subject, what)
        return None

    def ended(self, subject: Hashable) -> None:
        self._running.discard(subject)

    def drop_waiting(self) -> None:
        """Throw away all that waits."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
