"""Why a client's connections to its server do not all stand: what its tcp workers have reported, for `status`.

A reason may hold words of the server's, and a worker may have been broken into: it is cut and made printable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.log import printable
from pipeline.policy.server_choice import Server
from pipeline.runtime.supervisor_channel import TroubleReport

REASON_LENGTH_MAX = 300


class _Lane(NamedTuple):
    reason: str
    failures: int
    since_ns: int


class ServerTrouble:
    """The reports, by lane. The successor of a worker reports at its start."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}

    def take(self, report: TroubleReport, lanes: int) -> None:
        """A worker's report. ValueError or TypeError if it is invalid."""
        lane, reason = report["lane"], report["trouble"]
        if lane not in range(lanes):
            raise ValueError(f"lane {lane}, of {lanes}")
        since, failures = int(report["since_ns"]), int(report["failures"])
        self._lanes[lane] = _Lane(printable(reason[:REASON_LENGTH_MAX]), max(0, failures), since)

    @property
    def reasons(self) -> tuple[list[str], bool]:
        """Each reason why not all connections stand, and whether attempts have failed."""
        lanes = self._troubled_lanes()
        return list(dict.fromkeys(each.reason for each in lanes)), any(each.failures for each in lanes)

    def _troubled_lanes(self) -> list[_Lane]:
        return [each for lane, each in sorted(self._lanes.items()) if each.reason]

    def status(self, config: Config, server: Server) -> dict[str, Any]:
        """For `status`: the server, how many connections to it are wanted, and each reason why they do not stand."""
        lanes = self._troubled_lanes()
        return {
            "host": server.host,
            "port": server.port,
            "way": config.way_text,
            "connections_wanted": config.connections + config.light_connections,
            "trouble": self.reasons[0],
            "failed_attempts": sum(each.failures for each in lanes),
            "trouble_since_ns": min((each.since_ns for each in lanes if each.failures), default=0),
        }
