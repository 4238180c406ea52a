"""The bridge of a server: WebSockets of a web server in front lead to the tcp workers.

    a client's end    HTTP without TLS, from a web server that has ended TLS; one request, then a WebSocket
    the worker's end  a socket that the supervisor listens on for this process; first a header of the PROXY protocol

Any other request goes to the web server of `fallback`, or is answered as a web server does that has nothing there. So
nobody learns the path by asking. The header tells the client's address and has the token that tcp workers expect.

Unauthenticated clients cost little. A request has to come in time, and so many are awaited at a time; where all places
are taken, the one that has waited longest makes room. Bytes behind the request wait in the buffers of two sockets and
in two of BUFFER_BYTES. A WebSocket whose client does not prove to be a peer ends with its handshake in the tcp worker,
which has the limits for each address. One connection is accepted in each turn of the loop, so that others have theirs.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

from pipeline.bridge.carry import carry
from pipeline.bridge.counts import Counts
from pipeline.bridge.plan import WebSocketPlan
from pipeline.bridge.socket_ends import FarEnd, WebSocketEnd, configure
from pipeline.log import LOG
from pipeline.policy.token_bucket import TokenBucket
from pipeline.wire import proxy_protocol
from pipeline.wire.forwarded import find_client
from pipeline.wire.proxy_protocol import Client
from pipeline.wire.websocket_server import (
    UNAVAILABLE,
    Head,
    Upgrade,
    for_one_answer,
    path_of,
    read_upgrade,
    refusal,
    values_of,
)
from pipeline.wire.websocket_stream import Received, WebSocketStream

BUFFER_BYTES = 1 << 16  # of a stream: reading pauses at twice as much
HEAD_READ_BYTES = 1 << 13
ENOUGH_SECONDS = 2.0  # after so long, a request that has not come makes room for another
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0  # for the last bytes to leave
ACCEPT_PAUSE_SECONDS = 0.2  # after a failure, such as for want of descriptors
BARE_RATE, BARE_BURST = 50, 500  # frames without contents of one WebSocket: a second, and at once
WARN_SECONDS = 600.0

RESET_ON_CLOSE = struct.pack("=ii", 1, 0)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ServedEnd(WebSocketEnd):
    """A WebSocket whose client has proved nothing yet."""

    def __init__(self, streams: Streams, websocket: WebSocketStream, rest: bytes, counted: Counter[str]) -> None:
        super().__init__(*streams, websocket)
        self._rest = rest
        self._bare = TokenBucket(BARE_RATE, BARE_BURST)
        self._counted = counted

    async def _next_bytes(self) -> bytes:
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        return await super()._next_bytes()

    def _take(self, got: Received) -> None:
        super()._take(got)
        if got.failure:
            self._counted["bad_frames"] += 1
        if got.bare:
            now = time.monotonic_ns()
            self._bare.spend(got.bare, now)
            if not self._bare.in_credit(now):
                self._counted["bare_frames"] += 1
                self._is_over, self._first = True, b""


class WebSockets:
    def __init__(self, plan: WebSocketPlan) -> None:
        self._plan = plan
        self._token = bytes.fromhex(plan.token)
        self._proxies = [ip_network(text) for text in plan.proxies]
        self._counted: Counter[str] = Counter()
        self._requests: dict[asyncio.Task[None], float] = {}  # awaited, the oldest first: since when
        self._tasks: set[asyncio.Task[None]] = set()
        self._tunnels = self._visitors = 0
        self._warned = -WARN_SECONDS

    def report(self) -> bytes:
        return Counts(open=self._tunnels, **self._counted).packed()

    async def serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                LOG.debug("accepting a WebSocket has failed: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if not self._has_room():
                self._counted["full"] += 1
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                sock.close()
                continue
            task = loop.create_task(self._handle(sock, address[0]))
            self._requests[task] = time.monotonic()
            self._tasks.add(task)
            task.add_done_callback(self._forget)

    def _has_room(self) -> bool:
        """Whether one more request can be awaited. If need be, the oldest one ends that has had its time."""
        if len(self._requests) < self._plan.requests:
            return True
        task, since = next(iter(self._requests.items()))
        if time.monotonic() - since < ENOUGH_SECONDS:
            return False
        self._counted["late"] += 1
        del self._requests[task]
        task.cancel()
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._requests.pop(task, None)
        self._tasks.discard(task)

    # -- a connection

    async def _handle(self, sock: socket.socket, host: str) -> None:
        configure(sock, self._plan.timeout)
        reader, writer = await asyncio.open_connection(sock=sock, limit=BUFFER_BYTES)
        try:
            with suppress(OSError):
                await self._serve((reader, writer), host)
        finally:
            await _close(writer)

    async def _serve(self, streams: Streams, host: str) -> None:
        reader, writer = streams
        head = await self._read_head(reader)
        current = asyncio.current_task()
        assert current is not None
        self._requests.pop(current, None)
        if head is None:
            return
        upgrade = read_upgrade(head.head) if head.is_whole else None
        is_ours = hmac.compare_digest(path_of(head.head), self._plan.path.encode())
        if upgrade is not None and is_ours:
            await self._open_tunnel(streams, host, upgrade, head)
            return
        self._counted["not_ours"] += 1
        if is_ours:
            self._note_no_upgrade()
        if self._plan.web_server is not None and not head.is_too_long:
            await self._visit(streams, host, self._plan.web_server, head)
        else:
            writer.write(refusal(head.head))

    async def _read_head(self, reader: asyncio.StreamReader) -> Head | None:
        """None if the client has ended, or has not said enough in time."""
        head = Head()
        try:
            async with asyncio.timeout(self._plan.seconds):
                while not (head.is_whole or head.is_too_long or head.is_no_request):
                    data = await reader.read(HEAD_READ_BYTES)
                    if not data:
                        return None
                    head.add(data)
        except TimeoutError:
            self._counted["late"] += 1
            return None
        self._counted["late"] += head.is_too_long
        return head

    def _note_no_upgrade(self) -> None:
        """At the path, most likely by a web server that does not pass the upgrade on. An operator wants to know."""
        self._counted["without_upgrade"] += 1
        now = time.monotonic()
        if now - self._warned > WARN_SECONDS:
            self._warned = now
            LOG.warning(
                "a request at websocket_path asks for no WebSocket: the web server in front has to pass on the "
                "header fields Upgrade and Connection"
            )

    async def _open_tunnel(self, streams: Streams, host: str, upgrade: Upgrade, head: Head) -> None:
        _, writer = streams
        if self._tunnels >= self._plan.tunnels:
            self._counted["full"] += 1
            writer.write(refusal(head.head, UNAVAILABLE))
            return
        self._tunnels += 1
        try:
            far = await self._dial(self._plan.target, self._client(host, head), head, writer, self._token)
            if far is not None:
                self._counted["opened"] += 1
                writer.write(upgrade.answer)
                await carry(*far, ServedEnd(streams, upgrade.stream, head.rest, self._counted))
        finally:
            self._tunnels -= 1

    async def _visit(self, streams: Streams, host: str, web_server: list[Any], head: Head) -> None:
        """The rest of the connection is the web server's."""
        _, writer = streams
        if self._visitors >= self._plan.visitors:
            self._counted["full"] += 1
            writer.write(refusal(head.head, UNAVAILABLE))
            return
        self._visitors += 1
        try:
            client = self._client(host, head) if self._plan.tells_address else None
            far = await self._dial(web_server, client, head, writer)
            if far is not None:
                far[1].write(for_one_answer(head.head) + head.rest)
                await carry(*far, FarEnd(*streams))
        finally:
            self._visitors -= 1

    async def _dial(
        self, target: list[Any], client: Client | None, head: Head, writer: asyncio.StreamWriter, token: bytes = b""
    ) -> Streams | None:
        """The connection behind. `client`: named in its first bytes."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                far = await asyncio.open_connection(*target, limit=BUFFER_BYTES)
        except OSError:
            self._counted["failed"] += 1
            writer.write(refusal(head.head, UNAVAILABLE))
            return None
        if client is not None:
            own = writer.get_extra_info("sockname")
            far[1].write(proxy_protocol.header(client, Client(own[0], own[1]), token))
        return far

    def _client(self, host: str, head: Head) -> Client:
        """Nobody tells its port."""
        values = values_of(head.head, self._plan.field.encode())
        return Client(find_client(host, self._plan.field, values, self._is_proxy), 0)

    def _is_proxy(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        return any(address in network for network in self._proxies)


async def _close(writer: asyncio.StreamWriter) -> None:
    """The last bytes have a moment to leave; somebody who takes none is not waited for."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:
        pass
    finally:
        writer.transport.abort()
