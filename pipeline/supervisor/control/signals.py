"""The signals of the supervisor, as events of its selector: none is lost, and a storm of one kind is one event.

Python's wake-up descriptor is only a doorbell here: while its buffer is full of one signal, another would be lost. The
handlers remember what has arrived; the kernel and Python merge signals of one number that arrive at once.
"""

from __future__ import annotations

import selectors
import signal
import socket
from collections.abc import Callable, Iterable

BUFFER_BYTES = 4096


class Signals:
    """Catches these signals until close(), and calls `handle` with each from the selector's loop.

    Signals of a number in `merged` that have arrived since the last call are handled as one.
    """

    def __init__(
        self,
        numbers: Iterable[signal.Signals],
        merged: Iterable[signal.Signals],
        handle: Callable[[int], object],
        selector: selectors.BaseSelector,
    ) -> None:
        self._merged = set(merged)
        self._handle = handle
        self._selector = selector
        self._arrived: list[int] = []
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._handlers = {number: signal.signal(number, lambda number, _: self._remember(number)) for number in numbers}
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        selector.register(self._reader, selectors.EVENT_READ, self._handle_all)

    def _remember(self, number: int) -> None:
        if number not in self._merged or number not in self._arrived:
            self._arrived.append(number)

    def _handle_all(self) -> None:
        self._reader.recv(BUFFER_BYTES)
        arrived, self._arrived = self._arrived, []
        for number in arrived:
            self._handle(number)

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._selector.unregister(self._reader)
        self._reader.close()
        self._writer.close()
