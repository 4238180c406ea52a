"""Ends of a bridge that are sockets: bytes as they are, or a WebSocket around them."""

from __future__ import annotations

import asyncio
import socket

from pipeline.bridge.carry import CHUNK_BYTES
from pipeline.wire.websocket_stream import Received, WebSocketStream


class FarEnd:
    """Bytes to and from the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b"") -> None:
        self._reader, self._writer = reader, writer
        self._first = first  # that came behind the answer of a proxy

    async def read(self) -> bytes:
        """b"" at the end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        return await self._reader.read(CHUNK_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def write_eof(self) -> None:
        """No more bytes follow. TLS knows no such thing: there the end of all follows soon."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()


class WebSocketEnd(FarEnd):
    """A WebSocket on the streams."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, websocket: WebSocketStream, first: bytes = b""
    ) -> None:
        super().__init__(reader, writer, first)
        self._websocket = websocket
        self._has_more = True  # there may be frames behind the handshake
        self._is_over = False

    async def read(self) -> bytes:
        while not (self._first or self._is_over):
            self._take(self._websocket.receive(await self._next_bytes()))
            await self._writer.drain()
        first, self._first = self._first, b""
        return first

    async def _next_bytes(self) -> bytes:
        if self._has_more:
            await asyncio.sleep(0)  # the other connections have their turn
            return b""
        data = await self._reader.read(CHUNK_BYTES)
        self._is_over = not data
        return data

    def _take(self, got: Received) -> None:
        self._first, self._has_more = got.data, got.has_more
        self._is_over |= got.is_over
        if got.send:
            self._writer.write(got.send)

    async def write(self, data: bytes) -> None:
        await super().write(self._websocket.send(data))

    def write_eof(self) -> None:
        self._writer.write(self._websocket.end())


def configure(sock: socket.socket, timeout: float, notsent_lowat: int = 0) -> None:
    """Nobody but the kernel sees that the other end has gone without a word. `timeout`: seconds; 0: the kernel's."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))
    if notsent_lowat:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, notsent_lowat)
