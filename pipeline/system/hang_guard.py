"""Calls that may never return, such as those on a file system whose server has gone: the caller waits for a while only.

The call goes on in a thread of its own, which nobody can end; its result is dropped when it comes too late. So the call
must be one that may also take effect late, such as reading, or removing what is to be gone anyway. A call that may not
has an `undo`, which the thread runs after it. While STUCK_MAX such threads hang, further calls fail at once, so that
neither threads nor waits add up.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from pipeline.system import task_limit

ANSWER_SECONDS = 2.0  # shorter than a heartbeat_timeout and than a command waits for the supervisor
STUCK_MAX = 4

T = TypeVar("T")


class _Call(threading.Thread, Generic[T]):
    """One call; `result` or `error` is there once `done` is set."""

    result: T

    def __init__(self, function: Callable[[], T], undo: Callable[[], object]) -> None:
        super().__init__(name="file", daemon=True)
        self._function = function
        self._undo = undo
        self._decision = threading.Lock()
        self._is_given_up = False
        self.error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
        with self._decision:
            is_late = self._is_given_up
            if not is_late:
                self.done.set()
        if is_late:
            if self.error is None:
                with suppress(OSError):
                    self._undo()
            self.done.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has returned in time. If not, it is undone once it returns."""
        self.done.wait(seconds)
        with self._decision:
            self._is_given_up = not self.done.is_set()
        return not self._is_given_up


_stuck: list[_Call[object]] = []


def call(function: Callable[[], T], undo: Callable[[], object] = lambda: None) -> T:
    """The result of the function, or what it raises. OSError: it has not returned in time, or there was no thread.

    `undo` is called, in another thread, once a function has succeeded that had not returned in time.
    """
    _stuck[:] = [each for each in _stuck if not each.done.is_set()]
    if len(_stuck) >= STUCK_MAX:
        raise OSError(errno.ETIMEDOUT, f"not tried: {STUCK_MAX} earlier accesses to files have not returned yet")
    made: _Call[T] = _Call(function, undo)
    task_limit.start(made)
    if not made.wait(ANSWER_SECONDS):
        _stuck.append(made)  # type: ignore[arg-type]
        raise OSError(
            errno.ETIMEDOUT, f"no answer within {ANSWER_SECONDS:g} s: is it on a file system whose server has gone?"
        )
    if made.error is not None:
        raise made.error
    return made.result
