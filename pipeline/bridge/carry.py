"""Bytes between the two ends of a bridge, both ways, until one of them has no more.

Bytes are carried as they come, and are held back where the other end takes none. When one end has no more bytes, the
other end gets LINGER_SECONDS for its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

CHUNK_BYTES = 1 << 18  # read at a time, at most
LINGER_SECONDS = 2.0


class End(Protocol):
    """The end that is more than a socket."""

    async def read(self) -> bytes:
        """b"" at the end."""

    async def write(self, data: bytes) -> None: ...

    def write_eof(self) -> None: ...

    async def close(self) -> None: ...


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far_end: End) -> None:
    async def to_near(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    ways = [
        asyncio.ensure_future(_pump(lambda: reader.read(CHUNK_BYTES), far_end.write, far_end.write_eof)),
        asyncio.ensure_future(_pump(far_end.read, to_near, writer.write_eof)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(ways, timeout=LINGER_SECONDS)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        await far_end.close()


async def _pump(
    read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]], end: Callable[[], None]
) -> None:
    with suppress(OSError):  # of either end: the connection is over
        while data := await read():
            await write(data)
        end()
