"""Equal texts are counted, not repeated. Pure.

    is_new(key, now)   whether to write it; else it is counted
    due(now)           the counts of those whose window is over
    rest(now)          all counts, at the end

The first of equal ones is written at once. Those that follow within WINDOW_NS are counted. The count is due when the
window ends. While they go on, one count follows the other. A count is never lost: one that gives way to a newer key
is due at once. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

WINDOW_NS = 10_000_000_000
KEYS_MAX = 128  # that are told apart; the oldest gives way

Key = TypeVar("Key", bound=Hashable)


class Repeated(NamedTuple, Generic[Key]):
    """So many more of one kind."""

    key: Key
    more: int
    since_ns: int
    until_ns: int

    @property
    def words(self) -> str:
        times = "once" if self.more == 1 else f"{self.more} times"
        return f"repeated {times} in {max(1, round((self.until_ns - self.since_ns) / 1e9))} s"


class _Window(NamedTuple):
    since_ns: int
    more: int  # than the first


class Repeats(Generic[Key]):
    """The keys of the last moments, each with its window; the window that began first comes first."""

    def __init__(self) -> None:
        self._windows: dict[Key, _Window] = {}
        self._pushed_out: list[Repeated[Key]] = []

    def is_new(self, key: Key, now: int) -> bool:
        """Whether there was no equal one within the window. Another one is counted."""
        window = self._windows.get(key)
        if window is not None and (window.more or now - window.since_ns < WINDOW_NS):
            self._windows[key] = window._replace(more=window.more + 1)
            return False
        self._windows.pop(key, None)
        if len(self._windows) >= KEYS_MAX:
            self._end(next(iter(self._windows)), now)
        self._windows[key] = _Window(now, 0)
        return True

    def due(self, now: int) -> list[Repeated[Key]]:
        """The counts that are due; those that are 0 are none. Cheap while nothing is due."""
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if now - window.since_ns < WINDOW_NS:
                break
            self._end(key, now)
            if window.more:
                self._windows[key] = _Window(now, 0)  # it may go on
        return self._take()

    def rest(self, now: int) -> list[Repeated[Key]]:
        """All counts; nothing is remembered any more."""
        for key in list(self._windows):
            self._end(key, now)
        return self._take()

    def _end(self, key: Key, now: int) -> None:
        since, more = self._windows.pop(key)
        if more:
            self._pushed_out.append(Repeated(key, more, since, now))

    def _take(self) -> list[Repeated[Key]]:
        found, self._pushed_out = self._pushed_out, []
        return found
