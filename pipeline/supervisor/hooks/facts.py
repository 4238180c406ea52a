"""The facts about an event that a hook gets, beyond the event itself: addresses, and where a peer or the server is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pipeline.config import Config
from pipeline.events import Event
from pipeline.peers.peer_status import PeerRow, describe_peers
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.kernel.tun_device import TunDevice


class Rows(Protocol):
    """The part of a server or of a client."""

    def peer_rows(self) -> list[PeerRow]: ...

    @property
    def server(self) -> str:
        """HOST:PORT of a client's server."""


def facts_of(event: Event, config: Config, role: Rows, device: TunDevice, table: PeerTable, now: int) -> dict[str, str]:
    """By the name of a variable, without TUNNEL_. `now`: CLOCK_MONOTONIC ns."""
    facts = {"ADDRESSES": _listed(device.addresses), "DEVICE": device.status()["name"]}
    if config.mode == "client":
        facts["SERVER"] = role.server
        rows = role.peer_rows()
    else:
        rows = [row for row in role.peer_rows() if row.name == event.subject]
        if rows:
            facts["PEER_ADDRESSES"] = _listed((*rows[0].addresses, *rows[0].allowed))
    if rows:
        (status,) = describe_peers(rows[:1], table, now)
        facts["ENDPOINT"] = status["endpoint"]
    return facts


def _listed(values: Iterable[object]) -> str:
    return " ".join(map(str, values))
