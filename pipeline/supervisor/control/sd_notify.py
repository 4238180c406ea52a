"""Messages to a service manager, as sd_notify(3) describes them; without a service manager, nothing is sent."""

from __future__ import annotations

import os
import socket

from pipeline.events import Event

VARIABLE = "NOTIFY_SOCKET"

OF_EVENT = {"up": "READY=1", "stopping": "STOPPING=1", "failing": "STOPPING=1"}
"""The message that an event of the instance brings."""


def has_manager() -> bool:
    """Whether a service manager listens."""
    return bool(os.environ.get(VARIABLE))


def notify(text: str) -> None:
    """Send "READY=1" and the like to $NOTIFY_SOCKET."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        pass  # the service manager went away or does not read, or no descriptor is left


def handle(event: Event) -> None:
    """A subscriber of the events."""
    if text := OF_EVENT.get(event.kind.name):
        notify(text)


class Watchdog:
    """Sends WATCHDOG=1 twice in each period in which the service manager expects it, as its manual advises."""

    def __init__(self) -> None:
        wanted = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        self._period_ns = int(os.environ.get("WATCHDOG_USEC", "0")) * 1000 // 2 if wanted else 0
        self._next_ns = 0

    def feed(self, now: int) -> None:
        """All is well at `now` (CLOCK_MONOTONIC ns)."""
        if self._period_ns and now >= self._next_ns:
            self._next_ns = now + self._period_ns
            notify("WATCHDOG=1")
