"""The congestion control that a host of the lab has by default.

A namespace may have an algorithm as its default only if the machine allows it to everybody. One list says so for all
namespaces (net.ipv4.tcp_allowed_congestion_control), and the first one alone can write it. So it is longer there for a
moment. A lock on it keeps processes apart that do this at the same time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path

from tools.lab.namespace import LabError, Namespace

IPV4 = Path("/proc/sys/net/ipv4")
ALLOWED, AVAILABLE, DEFAULT = (IPV4 / f"tcp_{what}congestion_control" for what in ("allowed_", "available_", ""))


def require(name: str) -> None:
    """LabError if this kernel does not have it."""
    if name not in (there := AVAILABLE.read_text().split()):
        raise LabError(f"congestion control: expected one of {', '.join(there)}, got {name!r}")


def set_default(hosts: Sequence[Namespace], name: str) -> None:
    """Let sockets that are made in these namespaces from now on have this algorithm."""
    require(name)
    hosts = [host for host in hosts if host.inside(DEFAULT.read_text).strip() != name]
    if not hosts:
        return
    with ALLOWED.open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        before = locked.read().split()
        try:
            if name not in before:
                ALLOWED.write_text(" ".join((*before, name)))
            for host in hosts:
                host.inside(lambda: DEFAULT.write_text(name))
        except OSError as error:
            raise LabError(f"{ALLOWED}: {error.strerror}; run as root, in no network namespace") from None
        finally:
            if name not in before:
                ALLOWED.write_text(" ".join(before))
