"""Calls that may never return, such as those on a file system whose server has gone: the caller waits for a while only.

The call goes on in a thread of its own, which nobody can end; its result is dropped when it comes too late. So the call
must be one that may also take effect late: reading, or removing what is to be gone anyway. While STUCK_MAX such threads
hang, further calls fail at once, so that neither threads nor waits add up.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

ANSWER_SECONDS = 2.0  # shorter than a heartbeat_timeout and than a command waits for the supervisor
STUCK_MAX = 4

T = TypeVar("T")


class _Call(threading.Thread, Generic[T]):
    """One call; `result` or `error` is there once `done` is set."""

    result: T

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(name="file", daemon=True)
        self._function = function
        self.error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


_stuck: list[_Call[object]] = []


def call(function: Callable[[], T]) -> T:
    """The result of the function, or what it raises. OSError (ETIMEDOUT) if it has not returned in time."""
    _stuck[:] = [each for each in _stuck if not each.done.is_set()]
    if len(_stuck) >= STUCK_MAX:
        raise OSError(errno.ETIMEDOUT, f"not tried: {STUCK_MAX} earlier accesses to files have not returned yet")
    made: _Call[T] = _Call(function)
    made.start()
    if not made.done.wait(ANSWER_SECONDS):
        _stuck.append(made)  # type: ignore[arg-type]
        raise OSError(
            errno.ETIMEDOUT, f"no answer within {ANSWER_SECONDS:g} s: is it on a file system whose server has gone?"
        )
    if made.error is not None:
        raise made.error
    return made.result
