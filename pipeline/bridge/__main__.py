"""The bridge's process, from its first instruction on. The supervisor alone starts it, and ends it with SIGKILL.

1. prepare     new rights renounced; then our end is tied to that of the parent
2. plan        from a file descriptor: the account, the token, the way
3. load        CAs, and all that Python would import later
4. drop        to the account of the plan; our end is tied once more
5. serve       until the parent ends us; a report to the channel each two seconds
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  (names are looked up in threads; Python would load it after the drop)
import encodings.idna  # noqa: F401  (the resolver's form of names)
import os
import socket
import sys
import tokenize  # noqa: F401  (linecache, for the traceback of an exception)
from contextlib import suppress
from typing import Protocol

import pipeline.wire.http_connect  # noqa: F401  (loaded late elsewhere)
from pipeline import log
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.far_end import proxy_context
from pipeline.bridge.plan import BridgePlan, of_text
from pipeline.bridge.web_sockets import WebSockets
from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime import privileges, worker

PROCESS = "bridge"
SIGN_SECONDS = 2.0  # between two signs of life


def main() -> int:
    """Run the bridge. The exit status, if it ends by itself."""
    worker.prepare()
    options = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True))
    parent, channel = options["--parent"], options["--channel"]
    worker.bind_to_parent(parent)
    with open(options["--plan"], "rb", closefd=True) as file:
        file.seek(0)
        plan = of_text(file.read().decode())
    worker.name_process(PROCESS)
    log.start(plan.name, PROCESS, plan.log_level, plan.log_format)
    listener = socket.socket(fileno=options["--listener"])
    listener.setblocking(False)
    try:
        serving = Bridge(plan, proxy_context(plan.ca_pem)) if isinstance(plan, BridgePlan) else WebSockets(plan)
        privileges.drop((plan.account[0], plan.account[1]) if plan.account else None)
        worker.bind_to_parent(parent)
    except TunnelError as error:
        LOG.error("%s", error)
        return error.exit_status
    os.set_blocking(channel, False)
    asyncio.run(_run(serving, listener, channel))
    return 0


class Serving(Protocol):
    async def serve(self, listener: socket.socket) -> None: ...

    def report(self) -> bytes:
        """For the supervisor, as a sign of life: a byte at least, always as many."""


async def _run(serving: Serving, listener: socket.socket, channel: int) -> None:
    signs = asyncio.ensure_future(_give_signs(serving, channel))
    try:
        await serving.serve(listener)
    finally:
        signs.cancel()


async def _give_signs(serving: Serving, channel: int) -> None:
    while True:
        with suppress(BlockingIOError):
            os.write(channel, serving.report())
        await asyncio.sleep(SIGN_SECONDS)


if __name__ == "__main__":
    os._exit(main())
