"""The owner of a companion process in a loop of the test's own, at a clock that the test moves.

A class of the tests names its OWNER, and says what configures it. The process is a shell script (fixture
`interpreter`).
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import psutil
import pytest

from pipeline.supervisor.processes.precedence import Precedence
from tests.support import eventually

SECOND = 1_000_000_000
WORKS = 'while printf . >&"$channel"; do sleep 0.02; done'
DIES = "exit 7"

Serve = Callable[[selectors.BaseSelector], None]
Interpreter = Callable[[str], None]


class CompanionCare:
    OWNER: ClassVar[Callable[..., Any]]

    def __init__(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        self.selector = selectors.DefaultSelector()
        self.events: list[tuple[str, str]] = []
        self.now = 1000 * SECOND
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        self.owner = self.OWNER(
            None, self.selector, Precedence(), lambda kind, subject, text: self.events.append((kind, text))
        )
        self._serve = serve

    @classmethod
    @contextmanager
    def run(cls, interpreter: Interpreter, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Self]:
        """With a process that works. At the end the owner leaves nothing."""
        interpreter(WORKS)
        made = cls(serve, monkeypatch)
        yield made
        made.owner.close()
        assert made.selector.get_map() == {}
        made.selector.close()
        assert psutil.Process().children() == []

    def step(self, seconds: float = 0.1) -> None:
        self.now += int(seconds * SECOND)
        self.owner.tick(self.now)
        self._serve(self.selector)

    def until(self, condition: Callable[[], object], step: float = 0.1) -> None:
        def holds() -> bool:
            self.step(step)
            return bool(condition())

        eventually(holds)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]
