"""Inheritance from the process that has started this one, undone where it would do harm. Call these first of all.

    open_standard_files()   each of the three is open
    use_usual_signals()     a child can be waited for, and no signal is held back

Signals that a caller ignores on purpose, such as SIGHUP for `nohup`, stay ignored unless the program handles them.
"""

from __future__ import annotations

import os
import signal
import sys


def open_standard_files() -> None:
    """Open /dev/null for each of the three that the caller has closed, lest another file gets its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # the interpreter has found it closed
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def use_usual_signals() -> None:
    """Undo what outlives execve(2): a SIGCHLD that is ignored, and a mask.

    With SIGCHLD ignored the kernel forgets each child that ends, and its exit status with it: wait(2). Python takes
    that for success. A blocked SIGTERM would never stop this process, nor any that it starts.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
