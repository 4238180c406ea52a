"""The memory of reach, which no name leads to: the rules, which the supervisor writes, and the flows of all lanes.

Both are memfds of the supervisor, and outlive workers. Only tun workers get their descriptors. Flows are known by their
addresses. So they stay when sessions, peer handles or the rest of the shared memory are made anew.
"""

from __future__ import annotations

import os

from pipeline.errors import LocalError
from pipeline.shm import flow_table
from pipeline.shm.flow_table import Refusals
from pipeline.shm.reach_rules import RulesWriter


class ReachMemory:
    """`rules`: for their writer; `refusals`: of the tun workers. LocalError if there is no memory."""

    def __init__(self, lanes: int) -> None:
        try:
            self.rules = RulesWriter()
            self._flows = flow_table.create(lanes)
        except OSError as error:
            raise LocalError(f"memory for the rules of peers cannot be made: {error.strerror}") from None
        self.refusals = Refusals(self._flows, lanes)

    def fds(self) -> dict[str, int]:
        """Those that a tun worker gets."""
        return {"reach": self.rules.fd, "flows": self._flows}

    def close(self) -> None:
        self.refusals.close()
        self.rules.close()
        os.close(self._flows)
