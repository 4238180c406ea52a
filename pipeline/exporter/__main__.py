"""The exporter's process, from its first instruction on. The supervisor alone starts it, and ends it with SIGKILL.

1. prepare     new rights renounced; then our end is tied to that of the parent
2. plan        from a file descriptor: the instance, the account, the token
3. attach      the shared memory of the instance, read-only
4. rehearse    everything is made once, so that nothing is imported later
5. drop        to the account of the plan; our end is tied once more
6. serve       until the memory is in use no more, or the parent ends us; a byte to the channel each two seconds

After the drop it can open neither shared memory nor any file of ours. It ends when the instance has made its memory
anew, and the supervisor starts the next one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import tokenize  # noqa: F401  (linecache, for the traceback of an exception: Python would load it after the drop)
from contextlib import suppress
from typing import NamedTuple

from pipeline import log
from pipeline.errors import TunnelError
from pipeline.exporter.access import Access
from pipeline.exporter.history import SPANS
from pipeline.exporter.request import Request
from pipeline.exporter.server import Server
from pipeline.exporter.site import Site
from pipeline.exporter.watch import Watch
from pipeline.log import LOG
from pipeline.observe.observer import Observer
from pipeline.runtime import privileges, worker

PROCESS = "exporter"
ATTACH_SECONDS = 10.0
LOCAL = "127.0.0.1"
SIGN_SECONDS = 2.0  # between two signs of life


class ExporterPlan(NamedTuple):
    """Decided by the supervisor; as JSON an object of these names."""

    name: str  # of the instance
    account: list[int] | None  # uid and gid to change to; None: we keep ours
    token: str  # "": none is needed
    peers_max: int  # with metrics of their own
    log_level: str
    log_format: str


def main() -> int:
    """Run the exporter. The exit status, if it ends by itself."""
    worker.prepare()
    options = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True))
    parent, channel = options["--parent"], options["--channel"]
    worker.bind_to_parent(parent)
    with open(options["--plan"], "rb", closefd=True) as file:
        file.seek(0)
        plan = ExporterPlan(**json.load(file))
    worker.name_process(PROCESS)
    log.start(plan.name, PROCESS, plan.log_level, plan.log_format)
    listener = socket.socket(fileno=options["--listener"])
    try:
        observer = _attach(plan.name)
        watch = Watch(observer)
        access = Access(plan.token.encode())
        site = Site(watch, access, plan.peers_max)
        rehearse(site, plan.token)
        privileges.drop((plan.account[0], plan.account[1]) if plan.account else None)
        worker.bind_to_parent(parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status
    os.set_blocking(channel, False)
    serve(Server(listener, site.answer, site.common), watch, observer, channel)
    return 0


def _attach(name: str) -> Observer:
    """The observer of the instance that has started us; it may not have published anything yet."""
    observer = Observer(name)
    until = time.monotonic() + ATTACH_SECONDS
    while True:
        try:
            observer.view()
            return observer
        except TunnelError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def rehearse(site: Site, token: str) -> None:
    """Make every answer once: what Python imports at the first use of something is imported now."""
    headers = {"host": LOCAL, "accept-encoding": "gzip", "authorization": f"Bearer {token}"}
    queries = {"/api/history": [f"span={span}" for span in SPANS]}
    for path in site.paths:
        for query in queries.get(path, [""]):
            for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
                site.answer(Request("GET", path, query, 1, {**headers, "accept": accept}), LOCAL)
    site.watch.rest()


def serve(server: Server, watch: Watch, observer: Observer, channel: int) -> None:
    """Answer, and take the glances that are due, while the memory is in use."""
    while True:
        with suppress(BlockingIOError):
            os.write(channel, b".")
        until = time.monotonic() + SIGN_SECONDS
        while (left := min(until - time.monotonic(), watch.seconds_left)) > 0:
            server.turn(left)
        try:
            observer.view()
        except TunnelError:
            return
        watch.tick()


if __name__ == "__main__":
    os._exit(main())
