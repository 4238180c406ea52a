"""The limits on tasks, which are processes and threads: what is said when no further one can be started.

Python and the kernel say "can't start new thread" and "Resource temporarily unavailable", which name no cure.
"""

from __future__ import annotations

import errno
import os
import threading

REACHED = (
    "the limit on processes and threads is reached: raise pids.max of the control group (TasksMax= of a service), "
    "RLIMIT_NPROC or kernel.threads-max"
)


def start(thread: threading.Thread) -> None:
    """Start a thread. OSError (EAGAIN) if there may be no further one, in place of Python's RuntimeError."""
    try:
        thread.start()
    except RuntimeError as error:
        if thread.ident is not None:
            raise  # it has been started before
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def explain(error: OSError) -> str:
    """Why a process or a thread could not be started."""
    return REACHED if error.errno == errno.EAGAIN else error.strerror or str(error)
