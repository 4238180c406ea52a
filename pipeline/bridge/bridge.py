"""The bridge of a client: it takes the connections of our workers, finds a way to the server for each, and carries the
bytes.

    near end    a worker, on the loopback; its first bytes are its token, and host and port of the server
    far end     see far_end

A connection without the token is closed without a word.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

from pipeline.bridge.carry import CHUNK_BYTES, carry
from pipeline.bridge.far_end import NoWay, open_far_end
from pipeline.bridge.plan import BridgePlan
from pipeline.errors import PeerError
from pipeline.log import LOG, printable
from pipeline.wire import bridge_approach

TOKEN_SECONDS = 2.0  # that a worker takes to show it

Task = asyncio.Future[None]


class Bridge:
    """`context`: TLS to a proxy."""

    def __init__(self, plan: BridgePlan, context: ssl.SSLContext) -> None:
        self._plan = plan
        self._context = context
        self._token = bytes.fromhex(plan.token)

    async def serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._handle, sock=listener, limit=CHUNK_BYTES)
        async with server:
            await server.serve_forever()

    def report(self) -> bytes:
        return b"."

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, TimeoutError, PeerError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(TOKEN_SECONDS):
            head = await reader.readexactly(bridge_approach.HEAD.size)
            port, length = bridge_approach.parse_head(head, self._token)
            host = (await reader.readexactly(length)).decode("ascii", errors="replace")
        try:
            far_end = await open_far_end(self._plan, self._context, host, port)
        except NoWay as reason:
            LOG.debug("%s port %d: %s", host, port, printable(str(reason)))
            writer.write(bridge_approach.reply(str(reason)))
            return
        writer.write(bridge_approach.reply())
        await carry(reader, writer, far_end)


async def dial(plan: BridgePlan, context: ssl.SSLContext, host: str, port: int) -> tuple[socket.socket, Task]:
    """A way to the server without the process: a socket, and what carries its bytes until it ends. NoWay, as ever."""
    far_end = await open_far_end(plan, context, host, port)
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs, limit=CHUNK_BYTES)
    return ours, asyncio.ensure_future(carry(reader, writer, far_end))
