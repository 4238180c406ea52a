"""Floor 1, pure. The greeting on a connection, and whom a server admits.

    client                                server
    HELLO  magic version offloads ...  ->
                                       <- WELCOME version offloads mtu
                                       or REFUSED reason text, and close

A client is known by an identity that stays the same over restarts of the same instance on the same host; each
run is a session with a higher number. A server of one client keeps the one it has: another identity is refused
while a connection of the first is alive, a newer session of the same identity replaces the older one.
Bodies may grow at their end; a reader takes what it knows.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline import wire
from pipeline.errors import PeerError

MAGIC = b"tnl\x01"
VERSION = 1

_HELLO = struct.Struct(">4sBBHHHQQBB")
_WELCOME = struct.Struct(">BBHB")

DECODES = 1            # feature bit: takes shards (pipeline.shard)

BUSY, WRONG_VERSION, SUPERSEDED = 1, 2, 3
REASONS = {
    BUSY: "another client is connected",
    WRONG_VERSION: f"this server speaks version {VERSION}",
    SUPERSEDED: "a newer session of the same client is connected",
}


class Hello(NamedTuple):
    """A client's first frame. `offloads`: TUN_F_* bits that its device accepts in packets written to it."""

    version: int
    offloads: int
    index: int
    connections: int
    mtu: int
    client: int
    session: int
    purpose: int
    features: int

    def frame(self) -> bytes:
        return wire.frame(wire.HELLO, _HELLO.pack(MAGIC, *self))


class Welcome(NamedTuple):
    """The server admits the connection."""

    version: int
    offloads: int
    mtu: int
    features: int

    def frame(self) -> bytes:
        return wire.frame(wire.WELCOME, _WELCOME.pack(*self))


class Refused(NamedTuple):
    """The server closes the connection after this frame."""

    reason: int
    text: str

    def frame(self) -> bytes:
        return wire.frame(wire.REFUSED, bytes([self.reason]) + self.text.encode())


def decode(frame: bytes) -> Hello | Welcome | Refused:
    """Decode a whole greeting frame. PeerError for anything else."""
    if len(frame) < wire.FRAME.size:
        raise PeerError("empty frame where a greeting is expected")
    _, kind = wire.FRAME.unpack_from(frame)
    body = frame[wire.FRAME.size :]
    if kind == wire.HELLO and len(body) >= _HELLO.size and body.startswith(MAGIC):
        return Hello(*_HELLO.unpack_from(body)[1:])
    if kind == wire.WELCOME and len(body) >= _WELCOME.size:
        return Welcome(*_WELCOME.unpack_from(body))
    if kind == wire.REFUSED and body:
        return Refused(body[0], body[1:].decode(errors="replace"))
    raise PeerError(f"frame of type {kind:#04x} and {len(body)} bytes where a greeting is expected")


class Holder(NamedTuple):
    """Whose connections a tcp worker carries: its carrier words on the board."""

    established: int
    client: int
    session: int


def admit(hello: Hello, holders: list[Holder]) -> int:
    """0 if a server may admit this connection, else the reason for refusing it."""
    if hello.version != VERSION:
        return WRONG_VERSION
    for holder in holders:
        if holder.established:
            if holder.client != hello.client:
                return BUSY
            if holder.session > hello.session:
                return SUPERSEDED
    return 0


def gives_way(own: Holder, others: list[Holder]) -> bool:
    """True if a worker must give its connections up, because another holds a newer session of the same client, or
    admitted another client in the same moment: then the client with the lower identity gives way."""
    return any(o.established and (o.session > own.session if o.client == own.client else o.client > own.client)
               for o in others)
