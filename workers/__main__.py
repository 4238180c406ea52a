"""The way into a worker process: read the plan, build the kind, give up all rights, run, answer with an exit status.

Started by the supervisor alone. In this order: signals blocked, the parent's death arranged for, nothing new to be
gained; the plan; the kind's modules, and whatever is imported late; shared memory, doorbells, duties; then the drop
to the user that the plan names, and the parent's death once more, which a change of user makes the kernel forget.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from pipeline import log
from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime import privileges, worker
from pipeline.runtime.plan import Plan

# who (a kind, or a kind and a mode; "": every worker), the module, and what imports it only once it is needed
LATE = (
    ("", "encodings.unicode_escape", "log.printable"),
    ("", "tokenize", "linecache, since Python 3.13: the traceback of an exception that a duty raised"),
    ("tcp client", "encodings.idna", "socket.getaddrinfo, of every host, an address too"),
    ("tcp client", "encodings.punycode", "encodings.idna, of a host that is not ASCII"),
)
"""Imported before the drop: after it, the directory in which Python lives may be closed to this process."""


def main() -> int:
    """Run one worker. Exit status: 0 stopped on request, 70 a duty failed, else that of the error."""
    worker.prepare()
    arguments = _arguments()
    worker.bind_to_parent(arguments.parent)
    # pread: workers that start together share the file offset
    plan = Plan.from_json(os.pread(arguments.plan_fd, os.fstat(arguments.plan_fd).st_size, 0).decode())
    os.close(arguments.plan_fd)
    log.start(plan.name, arguments.name, plan.settings["log_level"], plan.settings["log_format"])
    try:
        attachment = worker.Attachment(plan, arguments.name)
        if attachment.me.kind == "tun":
            from workers.tun import duties as kind
        elif attachment.me.kind == "fec":
            os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else numpy starts a thread per core, and uses none of them here
            from workers.fec import duties as kind
        else:
            from workers.tcp import duties as kind
        _import_late(f"{attachment.me.kind} {plan.mode}")
        duties = kind.duties(attachment, arguments)
        privileges.drop(plan.settings.get("user"))
        worker.bind_to_parent(arguments.parent)
        return worker.run(attachment, duties, arguments.ready_fd, arguments.parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status


def _import_late(me: str) -> None:
    for who, module, _ in LATE:
        if me.startswith(who):
            importlib.import_module(module)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers")
    parser.add_argument("name")
    parser.add_argument("--plan-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--tun-fd", type=int)
    parser.add_argument("--listen-fd", type=int)
    parser.add_argument("--desk-fd", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
