"""A worker process from its first instruction to its exit status. Only the supervisor starts it.

1. prepare            signals blocked, new privileges renounced; then our end is tied to that of the parent
2. import             the modules of the kind, and those that Python would import later
3. assignment         wait until the supervisor says which worker this is; until then it is a spare
4. plan               from a file descriptor
5. attach             shared memory, doorbells
6. duties             on shared memory and on the file descriptors
7. drop               to the account of the plan; the kernel forgets the parent then, so our end is tied once more
8. run                until a stop signal
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from pipeline import log
from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime import assignment, privileges, worker
from pipeline.runtime.plan import Plan, WorkerFds

# workers (a kind, or a kind and a mode; "": all), the module, and its importer, which imports it at its first use
LATE = (
    ("", "tokenize", "linecache, since Python 3.13: the traceback of an exception that a duty raised"),
    ("tcp client", "encodings.idna", "socket.getaddrinfo, of every host, an address too"),
    ("tcp client", "encodings.punycode", "encodings.idna, of a host that is not ASCII"),
)
"""Imported before the drop: after it, the directory of Python may be closed to this process."""


def main() -> int:
    """Run one worker. Exit status: 0 after a stop signal, 70 if a duty failed, else that of the error."""
    worker.prepare()
    kind, mode, options = _arguments()
    parent, channel = options["--parent"], options["--channel"]
    worker.bind_to_parent(parent)
    make_duties = _kind(kind)
    _import_late(f"{kind} {mode}")
    assigned = assignment.await_assignment(channel)
    if assigned is None:
        return 0
    # pread: workers that start together share the file offset
    plan = Plan.from_json(os.pread(assigned.plan_fd, os.fstat(assigned.plan_fd).st_size, 0).decode())
    os.close(assigned.plan_fd)
    worker.name_process(assigned.worker)
    log.start(plan.name, assigned.worker, plan.settings.log_level, plan.settings.log_format)
    try:
        attachment = worker.Attachment(plan, assigned.worker, assigned.process)
        duties = make_duties(attachment, assigned.fds)
        privileges.drop(plan.settings.account)
        worker.bind_to_parent(parent)
        return worker.run(attachment, duties, channel, parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status


def _kind(kind: str) -> Callable[[worker.Attachment, WorkerFds], list[worker.Duty]]:
    """Import a kind of worker, and no other: the function that makes its duties."""
    if kind == "tun":
        from workers.tun.duties import duties
    elif kind == "fec":
        _keep_numpy_single()
        from workers.fec.duties import duties
    elif kind == "dgram":
        _keep_numpy_single()
        from workers.dgram.duties import duties
    else:
        from workers.tcp.duties import duties
    return duties


def _keep_numpy_single() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else numpy starts a thread per core, and uses none of them here


def _import_late(kind_and_mode: str) -> None:
    for workers, module, _ in LATE:
        if kind_and_mode.startswith(workers):
            importlib.import_module(module)


def _arguments() -> tuple[str, str, dict[str, int]]:
    """Kind, mode, and options. argparse would take a tenth of the time in which a worker starts."""
    kind, mode, *words = sys.argv[1:]
    return kind, mode, {option: int(value) for option, value in zip(words[::2], words[1::2], strict=True)}


if __name__ == "__main__":
    os._exit(main())  # Python's own tidying takes 20 ms and more, and the successor waits until we have ended
