"""The approach by way of our own bridge (pipeline.bridge), which speaks what must stay around a connection. Pure.

    request    the token, the server's port and host
    reply      the length of a text in two bytes, and that text: why there is no way to the server; empty: there is one

The token is for this run of the instance alone: no other user of this machine can use its bridge.
"""

from __future__ import annotations

import hmac
import struct

from pipeline.errors import PeerError
from pipeline.wire.approach import Conversation, Step, Talk

TOKEN_BYTES = 16
HEAD = struct.Struct(f"!{TOKEN_BYTES}sHB")  # token, port, length of the host
LENGTH = struct.Struct("!H")
REASON_BYTES_MAX = 2000

BRIDGE_CLOSED = "our own bridge has closed the connection: it has ended, or was started anew"


class BridgeApproach:
    """`token`: hexadecimal."""

    def __init__(self, host: str, port: int, token: str) -> None:
        name = host.encode()
        self._request = HEAD.pack(bytes.fromhex(token), port, len(name)) + name
        self._talk = Conversation(self._converse())

    def begin(self) -> bytes:
        return self._talk.begin()

    def feed(self, data: bytes) -> Step:
        return self._talk.feed(data)

    def closed(self) -> str:
        return BRIDGE_CLOSED

    def _converse(self) -> Talk:
        (length,) = LENGTH.unpack((yield self._request, LENGTH.size))
        return (yield b"", length).decode(errors="replace") if length else ""


def parse_head(head: bytes, token: bytes) -> tuple[int, int]:
    """Port, and length of the host behind. PeerError for a token that is not ours."""
    given, port, length = HEAD.unpack(head)
    if not hmac.compare_digest(given, token):
        raise PeerError("not our token")
    return port, length


def reply(failure: str = "") -> bytes:
    text = failure.encode(errors="replace")[:REASON_BYTES_MAX]
    return LENGTH.pack(len(text)) + text
