"""The line that `systemctl status` shows about a running instance: "12 peers, 340 Mbit/s", "connected to fra1, idle".

It is sent when another thing is to be said, at most every CHECK_NS, and because of the rate alone at most every
RATE_NS. Without a service manager, nothing is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.counters import BYTES_RECEIVED, BYTES_SENT, ID
from pipeline.shm.peer_table import PeerTable
from pipeline.shm.scoreboard import Scoreboard
from pipeline.supervisor.control.sd_notify import has_manager, notify
from pipeline.supervisor.run.shared_memory import SharedMemory

CHECK_NS = 2_000_000_000
RATE_NS = 30_000_000_000
CARRIED = [ID[name] for name in (*BYTES_SENT, *BYTES_RECEIVED)]
IDLE_MBIT = 0.1  # keepalives are below

Server = Mapping[str, Any] | None
"""The server of a client as `status` has it; None at a server."""


class ServiceStatus:
    """`tick` often, while the instance runs."""

    def __init__(self, send: Callable[[str], None] = notify) -> None:
        self._send = send
        self._next_ns = 0 if has_manager() else None
        self._said = self._said_subject = ""
        self._said_ns = -RATE_NS
        self._bytes, self._bytes_ns = 0, 0

    def tick(self, memory: SharedMemory, role_status: Callable[[], Mapping[str, Any]], now: int) -> None:
        """`role_status`: asked only when it is time to look. Times: CLOCK_MONOTONIC ns."""
        if self._next_ns is None or now < self._next_ns:
            return
        self._next_ns = now + CHECK_NS
        subject = describe(role_status()["server"], _connected(memory.peer_table))
        if subject == self._said_subject and now < self._said_ns + RATE_NS:
            return
        carried = _carried(memory.scoreboard)
        text = subject
        if self._bytes_ns:
            text += f", {_rate((carried - self._bytes) * 8e3 / (now - self._bytes_ns))}"
        self._bytes, self._bytes_ns = carried, now
        self._said_subject, self._said_ns = subject, now
        if text != self._said:
            self._said = text
            self._send(f"STATUS={text}")


def describe(server: Server, connected: int) -> str:
    """`connected`: peers with a connection, of which a client has one at most. The text is one line."""
    if server is None:
        return f"{connected} peer{'' if connected == 1 else 's'} connected"
    if connected:
        return f"connected to {server['host']}"
    trouble = " ".join(" ".join(server["trouble"]).split())
    return f"not connected to {server['host']}" + (f": {trouble}" if trouble else "")


def _connected(peers: PeerTable) -> int:
    return sum(peers.established_count(peer) > 0 for peer in range(peers.capacity))


def _carried(scoreboard: Scoreboard) -> int:
    """Bytes of all connections and datagrams, both ways."""
    return sum(page.counters[number] for page in scoreboard.pages for number in CARRIED)


def _rate(mbit: float) -> str:
    """In two digits: the last ones change all the time."""
    return "idle" if mbit < IDLE_MBIT else f"{float(f'{mbit:.2g}'):g} Mbit/s"
