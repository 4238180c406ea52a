"""The way into a worker process: read the plan, build the kind, run it, answer with an exit status.

Started by the supervisor alone. Signals are blocked and the parent's death is arranged for before anything else.
"""

from __future__ import annotations

import argparse
import os
import sys

from pipeline import log, worker
from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.plan import Plan


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
            from workers import tun as kind
        elif attachment.me.kind == "fec":
            from workers import fec as kind
        else:
            from workers import tcp as kind
        duties = kind.duties(attachment, arguments)
        return worker.run(attachment, duties, arguments.ready_fd, arguments.parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers")
    parser.add_argument("name")
    parser.add_argument("--plan-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--tun-fd", type=int)
    parser.add_argument("--listen-fd", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
