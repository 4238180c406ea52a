"""Messages to a service manager, as sd_notify(3) describes them; silent where there is none."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> None:
    """Send "READY=1" and the like to $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            pass  # the manager went away; nobody is left to tell


def watchdog_seconds() -> float:
    """How often the manager wants to hear WATCHDOG=1, halved as the manual advises; 0 if it does not."""
    if os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
