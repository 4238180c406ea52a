"""Which lines of some files a call reaches: by sys.monitoring where there is one (Python 3.12), else by sys.settrace.

    new(call)      lines that no call has reached before
    all(call)      all lines that this call reaches
    possible()     all lines of functions; lines that run at the import alone are not counted

A function whose lines have all been reached costs no more than one check: only new lines matter, not how often they
run. A function counts as reached at its first line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.support import ROOT

Line = tuple[str, int]
Call = Callable[[], object]


def _lines_of(code: CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line} | {code.co_firstlineno}


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


class Lines:
    """`files`: paths below the repository's root."""

    def __init__(self, files: Iterable[str]) -> None:
        self._names = {str(ROOT / name): name for name in sorted(files)}
        self._found: set[Line] = set()
        self.reached: set[Line] = set()
        self._watch = _Monitoring if hasattr(sys, "monitoring") else _Tracing
        self._watcher = self._watch(self._names, self._found)

    def new(self, call: Call) -> set[Line]:
        found = self._run(self._watcher, self._found, call)
        found -= self.reached
        self.reached |= found
        return found

    def all(self, call: Call) -> set[Line]:
        found: set[Line] = set()
        return self._run(self._watch(self._names, found), found, call)

    @staticmethod
    def _run(watcher: _Tracing | _Monitoring, found: set[Line], call: Call) -> set[Line]:
        watcher.begin()
        try:
            call()
        finally:
            watcher.end()
        taken = set(found)
        found.clear()
        return taken

    def possible(self) -> set[Line]:
        """The body of a class is a function to the compiler, but it runs at the import: it is not counted."""
        found: set[Line] = set()
        for path, name in self._names.items():
            module = compile(Path(path).read_text(), path, "exec")
            for code in _codes(module):
                if code.co_flags & _NEWLOCALS:
                    found |= {(name, line) for line in _lines_of(code)}
        return found


class _Tracing:
    """By sys.settrace, for the time of a call; an earlier trace function goes on after it."""

    def __init__(self, names: dict[str, str], found: set[Line]) -> None:
        self._names = names
        self._found = found
        self._left: dict[CodeType, set[int]] = {}
        self._before: Any = None

    def begin(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._called)

    def end(self) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            left = self._left[code] = _lines_of(code) if code.co_filename in self._names else set()
        if not left:
            return None
        self._note(code, left, code.co_firstlineno)
        return self._at_line

    def _at_line(self, frame: FrameType, event: str, argument: object) -> Callable:
        if event == "line":
            code = frame.f_code
            self._note(code, self._left[code], frame.f_lineno)
        return self._at_line

    def _note(self, code: CodeType, left: set[int], line: int) -> None:
        if line in left:
            left.remove(line)
            self._found.add((self._names[code.co_filename], line))


class _Monitoring:
    """By sys.monitoring (PEP 669): each line is reported once, then its event is off until another watcher begins."""

    def __init__(self, names: dict[str, str], found: set[Line]) -> None:
        self._names = names
        self._found = found
        sys.monitoring.restart_events()

    def begin(self) -> None:
        monitoring = sys.monitoring
        events = monitoring.events
        monitoring.use_tool_id(_TOOL, "tests.fuzz")
        monitoring.register_callback(_TOOL, events.LINE, self._at_line)
        monitoring.register_callback(_TOOL, events.PY_START, self._at_start)
        monitoring.set_events(_TOOL, events.LINE | events.PY_START)

    def end(self) -> None:
        sys.monitoring.set_events(_TOOL, 0)
        sys.monitoring.free_tool_id(_TOOL)

    def _at_line(self, code: CodeType, line: int) -> object:
        name = self._names.get(code.co_filename)
        if name is not None:
            self._found.add((name, line))
        return sys.monitoring.DISABLE

    def _at_start(self, code: CodeType, offset: int) -> object:
        return self._at_line(code, code.co_firstlineno)


_NEWLOCALS = 0x2  # inspect.CO_NEWLOCALS: a function
_TOOL = 4  # of the numbers that no tool of the standard library has reserved
