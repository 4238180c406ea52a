"""Why a client's connections to its server do not all stand: what its tcp workers have reported, for `status`.

A reason may hold words of the server's, and a worker may have been broken into: it is cut and made printable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.log import printable
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

    def status(self, config: Config, now: int) -> dict[str, Any]:
        """For `status`: the server, how many connections to it are wanted, and each reason why they do not stand."""
        lanes = [each for lane, each in sorted(self._lanes.items()) if each.reason]
        seconds = [(now - each.since_ns) / 1e9 for each in lanes if each.failures]
        endpoint = config.remote_endpoint
        return {
            "host": endpoint.host,
            "port": endpoint.port,
            "connections_wanted": config.connections + config.light_connections,
            "trouble": list(dict.fromkeys(each.reason for each in lanes)),
            "failed_attempts": sum(each.failures for each in lanes),
            "trouble_seconds": round(max(seconds, default=0), 1),
        }
