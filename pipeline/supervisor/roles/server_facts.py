"""The program, the MTU and the clock of a client's server, as its last WELCOME has them.

A server of an older version, and one that does not know who we are, tell neither their program nor their clock.
"""

from __future__ import annotations

from typing import Any

from pipeline.log import LOG
from pipeline.version import VERSION
from pipeline.wire import messages


class ServerFacts:
    def __init__(self) -> None:
        self._welcome: messages.Welcome | None = None
        self._clock_ahead: int | None = None

    def take(self, welcome: messages.Welcome, wall_clock: float) -> None:
        """A WELCOME that is our server's. `wall_clock`: seconds since 1970."""
        before = self.notes
        self._welcome = welcome
        self._clock_ahead = round(welcome.clock - wall_clock) if welcome.clock else None
        for note in self.notes:
            if note not in before:
                LOG.info("%s", note)

    @property
    def notes(self) -> list[str]:
        program = self._welcome.program if self._welcome else ""
        if not program or program == VERSION:
            return []
        return [f"the server runs {program}, this client runs {VERSION}: upgrade the older one when it suits you"]

    def status(self) -> dict[str, Any]:
        """For `status`. Before the first WELCOME, and where the server does not tell: "", 0 or null."""
        welcome = self._welcome
        return {
            "version": welcome.program if welcome else "",
            "mtu": welcome.mtu if welcome else 0,
            "fec": bool(welcome.features & messages.ACCEPTS_SHARDS) if welcome else None,
            "clock_ahead_seconds": self._clock_ahead,
        }
