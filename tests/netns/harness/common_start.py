"""TCP connections that begin to send at one moment: all are connected first, and one loop in this process serves them.

Arrivals are compared with each other and with a rate, so a slow machine makes fewer of them and never more.
"""

from __future__ import annotations

import selectors
import socket
import time
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import NamedTuple, Self

from tools.lab.namespace import Namespace

CALL_SECONDS = 10.0
CHUNK = bytes(65536)


class Way(NamedTuple):
    """From `source` to `address`, which is the sink's."""

    source: Namespace
    sink: Namespace
    address: str


class CommonStart:
    """One connection for each name of `ways`, idle until run()."""

    def __init__(self, ways: Mapping[str, Way]) -> None:
        self.arrivals: dict[str, list[tuple[float, int]]] = {name: [(0.0, 0)] for name in ways}
        """By name: seconds since the start, and the bytes that had come by then."""
        with ExitStack() as stack:
            self._ends = {name: _connect(way, stack) for name, way in ways.items()}
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, seconds: float) -> None:
        """Send as much as goes, and receive, for so long."""
        with selectors.DefaultSelector() as selector:
            for name, (source, sink) in self._ends.items():
                selector.register(sink, selectors.EVENT_READ, name)
                selector.register(source, selectors.EVENT_WRITE, name)
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                for key, _ in selector.select(0.05):
                    self._serve(key, time.monotonic() - began)

    def bytes_until(self, seconds: float) -> dict[str, int]:
        """By name: what had come so many seconds after the start."""
        return {
            name: seen[bisect_right(seen, seconds, key=lambda each: each[0]) - 1][1]
            for name, seen in self.arrivals.items()
        }

    def between(self, first: float, last: float) -> dict[str, int]:
        """By name: what came between two moments."""
        before = self.bytes_until(first)
        return {name: count - before[name] for name, count in self.bytes_until(last).items()}

    def _serve(self, key: selectors.SelectorKey, now: float) -> None:
        source, sink = self._ends[key.data]
        with suppress(BlockingIOError):
            if key.fileobj is source:
                source.send(CHUNK)
            else:
                seen = self.arrivals[key.data]
                seen.append((now, seen[-1][1] + len(sink.recv(1 << 20))))


def _connect(way: Way, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection, which do not block."""
    with way.sink.socket() as listener:
        listener.bind((way.address, 0))
        listener.listen()
        listener.settimeout(CALL_SECONDS)
        source = stack.enter_context(way.source.socket())
        source.settimeout(CALL_SECONDS)
        source.connect(listener.getsockname())
        sink = stack.enter_context(listener.accept()[0])
    for end in (source, sink):
        end.setblocking(False)
    return source, sink
