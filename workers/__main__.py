"""A worker process from its first instruction to its exit status. Only the supervisor starts it.

1. prepare            signals blocked, new privileges renounced; then our end is tied to that of the parent
2. plan               from a file descriptor
3. attach             shared memory, doorbells
4. import             the modules of the kind, and those that Python would import later
5. duties             on shared memory and on the file descriptors
6. drop               to the account of the plan; the kernel forgets the parent then, so our end is tied once more
7. run                until a stop signal
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from pipeline import log
from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime import privileges, worker
from pipeline.runtime.plan import Plan, WorkerFds

# workers (a kind, or a kind and a mode; "": all), the module, and its importer, which imports it at its first use
LATE = (
    ("", "encodings.unicode_escape", "log.printable"),
    ("", "tokenize", "linecache, since Python 3.13: the traceback of an exception that a duty raised"),
    ("tcp client", "encodings.idna", "socket.getaddrinfo, of every host, an address too"),
    ("tcp client", "encodings.punycode", "encodings.idna, of a host that is not ASCII"),
)
"""Imported before the drop: after it, the directory of Python may be closed to this process."""


def main() -> int:
    """Run one worker. Exit status: 0 after a stop signal, 70 if a duty failed, else that of the error."""
    worker.prepare()
    name, options = _arguments()
    parent, plan_fd = options["--parent"], options["--plan-fd"]
    worker.bind_to_parent(parent)
    # pread: workers that start together share the file offset
    plan = Plan.from_json(os.pread(plan_fd, os.fstat(plan_fd).st_size, 0).decode())
    os.close(plan_fd)
    log.start(plan.name, name, plan.settings.log_level, plan.settings.log_format)
    try:
        attachment = worker.Attachment(plan, name)
        make_duties = _kind(attachment.worker.kind)
        _import_late(f"{attachment.worker.kind} {plan.mode}")
        fds = WorkerFds(options["--tun-fd"], options["--listen-fd"], options["--supervisor-fd"])
        duties = make_duties(attachment, fds)
        privileges.drop(plan.settings.account)
        worker.bind_to_parent(parent)
        return worker.run(attachment, duties, options["--ready-fd"], parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status


def _kind(kind: str) -> Callable[[worker.Attachment, WorkerFds], list[worker.Duty]]:
    """Import a kind of worker, and no other: the function that makes its duties."""
    if kind == "tun":
        from workers.tun.duties import duties
    elif kind == "fec":
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else numpy starts a thread per core, and uses none of them here
        from workers.fec.duties import duties
    else:
        from workers.tcp.duties import duties
    return duties


def _import_late(kind_and_mode: str) -> None:
    for workers, module, _ in LATE:
        if kind_and_mode.startswith(workers):
            importlib.import_module(module)


def _arguments() -> tuple[str, dict[str, int]]:
    """The worker's name, and its options. argparse would take a tenth of the time in which a worker starts."""
    name, *words = sys.argv[1:]
    options = {"--tun-fd": -1, "--listen-fd": -1, "--supervisor-fd": -1}
    return name, options | {option: int(value) for option, value in zip(words[::2], words[1::2], strict=True)}


if __name__ == "__main__":
    sys.exit(main())
