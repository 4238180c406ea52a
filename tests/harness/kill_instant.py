"""A process that is killed at a chosen instruction: what it has stored until then stays, and it does nothing more.

    killed_at(instant, act, MODULE)                         whether act() was killed; else it has come to its end
    for made, was_killed in each_kill(begin, act, MODULE):  act(made) dies at each instruction of the module in turn
        ...                                                 look at what is left

Each store of a function stands between two instructions of the interpreter. So a kill at each of them is a kill at
each store. No handler of an error runs, as none does after SIGKILL, since Killed is no Exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType, ModuleType
from typing import Any, TypeVar

Made = TypeVar("Made")


class Killed(BaseException):
    """The process is dead."""


def killed_at(instant: int, act: Callable[[], object], *modules: ModuleType) -> bool:
    """`instant`: how many instructions of the modules' code are carried out before."""
    files = {module.__file__ for module in modules}
    left = instant

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "opcode":
            if not left:
                raise Killed
            left -= 1
        return step

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        act()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


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
