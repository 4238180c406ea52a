"""A process that is killed at a chosen instruction: what it has stored until then stays, and it does nothing more.

    killed_at(instant, act, MODULE)                         whether act() was killed; else it has come to its end
    for made, was_killed in each_kill(begin, act, MODULE):  act(made) dies at each instruction of the module in turn
        ...                                                 look at what is left

Each store of a function stands between two instructions of the interpreter. So a kill at each of them is a kill at
each store. No handler of an error runs, as none does after SIGKILL, since Killed is no Exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar

Made = TypeVar("Made")


class Killed(BaseException):
    """The process is dead."""


def killed_at(instant: int, act: Callable[[], object], *modules: ModuleType) -> bool:
    """`instant`: how many instructions of the modules' code are carried out before."""
    files = {module.__file__ for module in modules}
    left = instant

    def pass_one() -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1

    with _each_instruction(files, pass_one):
        try:
            act()
        except Killed:
            return True
    return False


if sys.version_info >= (3, 12):
    _TOOL = 4  # of the ids 0 to 5 one without a meaning (PEP 669)

    @contextmanager
    def _each_instruction(files: Collection[str | None], told: Callable[[], None]) -> Iterator[None]:
        """`told` is called before each instruction of these files."""
        watch = sys.monitoring

        def on_instruction(code: CodeType, offset: int) -> Any:
            return told() if code.co_filename in files else watch.DISABLE

        watch.use_tool_id(_TOOL, "kill")
        watch.register_callback(_TOOL, watch.events.INSTRUCTION, on_instruction)
        watch.set_events(_TOOL, watch.events.INSTRUCTION)
        try:
            yield
        finally:
            watch.set_events(_TOOL, 0)
            watch.register_callback(_TOOL, watch.events.INSTRUCTION, None)
            watch.free_tool_id(_TOOL)
            watch.restart_events()

else:

    @contextmanager
    def _each_instruction(files: Collection[str | None], told: Callable[[], None]) -> Iterator[None]:
        """`told` is called before each instruction of these files. Later interpreters have PEP 669 for that."""

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                told()
            return step

        def begin(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return step

        before = sys.gettrace()
        sys.settrace(begin)
        try:
            yield
        finally:
            sys.settrace(before)


def each_kill(
    begin: Callable[[], Made], act: Callable[[Made], object], *modules: ModuleType
) -> Iterator[tuple[Made, bool]]:
    """What `begin` makes, once `act` has died on it at each instant in turn; the last time it does not die: False."""
    was_killed, instant = True, 0
    while was_killed:
        made = begin()
        was_killed = killed_at(instant, partial(act, made), *modules)
        yield made, was_killed
        instant += 1
