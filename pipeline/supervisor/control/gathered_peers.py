"""The peers of an instance as the overview has them, gathered when they have changed.

They may be thousands. So they are gathered only when their role says that they have changed, and the more seldom the
longer that takes.
"""

from __future__ import annotations

import json
import time
from typing import Protocol

from pipeline.peers.peer_status import PeerRow

SHARE = 50  # gathering takes at most one part in so many of the supervisor's time


class Role(Protocol):
    """The part of a server or of a client."""

    @property
    def peers_version(self) -> int:
        """Another number once peer_rows() is another."""

    def peer_rows(self) -> list[PeerRow]:
        """The peers, in the order in which a person wants to see them."""


class GatheredPeers:
    """`rows`: of the last time, each as JSON; `version`: another number each time."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._due_ns = 0
        self.rows: list[str] = []
        self.version = -1

    def gather(self, now: int, at_once: bool = False) -> None:
        """`at_once`: even if it has taken much time lately. `now`: CLOCK_MONOTONIC ns."""
        version = self._role.peers_version
        if version == self.version or not (at_once or now >= self._due_ns):
            return
        began = time.monotonic_ns()
        self.rows = [json.dumps(row.as_dict()) for row in self._role.peer_rows()]
        self.version = version
        self._due_ns = now + SHARE * (time.monotonic_ns() - began)
