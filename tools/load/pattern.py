"""A stream whose bytes tell where they stand: its receiver compares each one with what was sent.

piece(at, size)       what the stream holds at this place
is_piece(data, at)    whether these bytes belong there
connect(...)          a TCP connection for it, from one namespace to another
"""

from __future__ import annotations

import random
import socket

from tools.lab.namespace import Namespace

PATTERN_BYTES = 1_000_003
"""A prime: a stretch that is lost, doubled or moved by any round number of bytes does not fit any more."""

CONNECT_SECONDS = 30.0

_PATTERN_TWICE = memoryview(random.Random(1).randbytes(PATTERN_BYTES) * 2)


def piece(at: int, size: int) -> memoryview:
    """At most PATTERN_BYTES."""
    at %= PATTERN_BYTES
    return _PATTERN_TWICE[at : at + size]


def is_piece(data: bytes | memoryview, at: int) -> bool:
    """`data`: at most PATTERN_BYTES."""
    return piece(at, len(data)) == data


def connect(source: Namespace, sink: Namespace, address: str) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from one namespace to an address of the other: the two ends, the caller's first."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with sink.socket(family) as listener:
        listener.bind(("", 0))
        listener.listen()
        listener.settimeout(CONNECT_SECONDS)
        caller = source.socket(family)
        caller.settimeout(CONNECT_SECONDS)
        caller.connect((address, listener.getsockname()[1]))
        called, _ = listener.accept()
    called.settimeout(CONNECT_SECONDS)
    return caller, called
