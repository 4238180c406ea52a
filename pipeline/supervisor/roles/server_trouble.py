"""Why a client's connections to its server do not all stand: what its tcp workers have reported, for `status`.

A reason may hold words of the server's, and a worker may have been broken into: it is cut and made printable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.uplink_entry import BACKUP, MAIN
from pipeline.log import printable
from pipeline.policy.server_choice import Server
from pipeline.policy.uplink_share import uplink_of
from pipeline.runtime.supervisor_channel import TroubleReport
from pipeline.wire.uplink import Uplink

REASON_LENGTH_MAX = 300


class _Trouble(NamedTuple):
    """Of one lane, and one uplink of it."""

    reason: str
    failures: int
    since_ns: int


class ServerTrouble:
    """The reports, by uplink and lane. The successor of a worker reports at its start. `uplinks`: of this client."""

    def __init__(self, uplinks: Sequence[Uplink] = ()) -> None:
        self._uplinks = uplinks
        self._troubles: dict[tuple[int, int], _Trouble] = {}

    def take(self, report: TroubleReport, lanes: int) -> None:
        """A worker's report. ValueError or TypeError if it is invalid."""
        lane, uplink, reason = report["lane"], report["uplink"], report["trouble"]
        if lane not in range(lanes):
            raise ValueError(f"lane {lane}, of {lanes}")
        if uplink not in range(max(1, len(self._uplinks))):
            raise ValueError(f"uplink {uplink}, of {len(self._uplinks)}")
        since, failures = int(report["since_ns"]), int(report["failures"])
        self._troubles[uplink, lane] = _Trouble(printable(reason[:REASON_LENGTH_MAX]), max(0, failures), since)

    @property
    def reasons(self) -> tuple[list[str], bool]:
        """Each reason why not all connections stand, and whether attempts have failed."""
        named = [(self._name(uplink), each) for (uplink, _), each in self._present()]
        reasons = [f"{name}: {each.reason}" if name else each.reason for name, each in named]
        return list(dict.fromkeys(reasons)), any(each.failures for _, each in named)

    def _uplinks_of(self, config: Config) -> list[dict[str, Any]]:
        """Each uplink, with the connections that it should have, and why it does not have them."""
        slots = range(config.connections + config.light_connections)
        count = len(self._uplinks)
        numbers = [uplink_of(slot, config.connections, config.lanes, count) for slot in slots if count]
        return [
            {
                "interface": name,
                "role": BACKUP if is_backup else MAIN,
                "connections_wanted": numbers.count(number),
                "trouble": list(dict.fromkeys(each.reason for place, each in self._present() if place[0] == number)),
            }
            for number, name, is_backup in self._uplinks
        ]

    def _present(self) -> list[tuple[tuple[int, int], _Trouble]]:
        return [(place, each) for place, each in sorted(self._troubles.items()) if each.reason]

    def _name(self, uplink: int) -> str:
        return self._uplinks[uplink].name if self._uplinks else ""

    def status(self, config: Config, server: Server) -> dict[str, Any]:
        """For `status`: the server, how many connections to it are wanted, and each reason why they do not stand."""
        troubles = [each for _, each in self._present()]
        return {
            "host": server.host,
            "port": server.port,
            "way": config.way_text,
            "connections_wanted": config.connections + config.light_connections,
            "trouble": self.reasons[0],
            "failed_attempts": sum(each.failures for each in troubles),
            "uplinks": self._uplinks_of(config),
            "trouble_since_ns": min((each.since_ns for each in troubles if each.failures), default=0),
        }
