"""TCP connections inside a tunnel. The test itself holds both ends; every byte that arrives is checked.

with Flow(client, server) as flow:     it runs while the test does other things
    flow.wait_for(100_000)             so many more bytes have arrived
transfer(client, server, ...)          some of them at once, each of a given size, to their end
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.load.pattern import connect, is_piece, piece

STALL_SECONDS = 30.0
"""An inner connection that has stood still for this long is given up."""

CHUNK_BYTES = 64 * 1024


class Flow:
    """A TCP connection inside the tunnel from one end to the other. At the end of its block the source ends
    the stream, and whatever it has sent must have arrived, in order and unaltered. `limit`: bytes after which
    the source ends it by itself. `congestion`: its congestion control; "": the host's."""

    def __init__(
        self, source: Instance, sink: Instance, *, six: bool = False, limit: int | None = None, congestion: str = ""
    ) -> None:
        self.received = 0
        self._sent = 0
        self._limit = limit
        self._ending = False
        self._go = threading.Event()
        self._go.set()
        self._errors: list[BaseException] = []
        self._pair = connect(source.node, sink.node, sink.address6 if six else sink.address)
        if congestion:
            self._pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        self._threads = [
            threading.Thread(target=self._guard, args=(part,), daemon=True) for part in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Flow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            for sock in self._pair:
                try:
                    sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that a failed test has left in it
                except OSError:
                    pass  # not connected any more
            self._go.set()
            for thread in self._threads:
                thread.join(STALL_SECONDS)
            for sock in self._pair:
                sock.close()

    def wait_for(self, count: int = 1, seconds: float = 15.0) -> None:
        """Until `count` more bytes have arrived."""
        goal = self.received + count
        eventually(lambda: self.received >= goal or self._errors, seconds, f"{count} more bytes inside")
        self._raise()

    def pause(self) -> None:
        """Send nothing more for now; everything that was sent has arrived."""
        self._go.clear()
        last = -1

        def quiet() -> bool:
            nonlocal last
            before, last = last, self._sent
            return before == last == self.received

        eventually(lambda: self._errors or quiet(), 15.0, "the rest of what was sent")
        self._raise()

    def resume(self) -> None:
        self._go.set()

    def finish(self, seconds: float = STALL_SECONDS) -> None:
        """End the stream (or wait until it ends by its limit) and check that all of it has arrived."""
        self._ending = self._limit is None
        self._go.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._raise()
        stuck = any(thread.is_alive() for thread in self._threads)
        assert not stuck and self.received == self._sent, f"sent {self._sent} bytes, {self.received} arrived"
        assert self._limit in (None, self._sent)

    def _send(self) -> None:
        sock = self._pair[0]
        while not self._ending and self._sent != self._limit:
            self._go.wait()
            most = CHUNK_BYTES if self._limit is None else min(CHUNK_BYTES, self._limit - self._sent)
            self._sent += sock.send(piece(self._sent, most))
        sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        sock = self._pair[1]
        while data := sock.recv(CHUNK_BYTES):
            assert is_piece(data, self.received), f"other bytes than were sent, within {len(data)} at {self.received}"
            self.received += len(data)

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # whatever it is, the test's own thread raises it
            self._errors.append(error)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]


def transfer(source: Instance, sink: Instance, *, streams: int, size: int, six: bool = False) -> None:
    """`streams` inner TCP connections at once, `size` bytes over each, all checked."""
    with ExitStack() as stack:
        running = [stack.enter_context(Flow(source, sink, six=six, limit=size)) for _ in range(streams)]
        for flow in running:
            flow.finish()
