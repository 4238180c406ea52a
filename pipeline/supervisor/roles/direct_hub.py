"""A hub as its introductions see it: the settings, the sessions, the routes and the rules of this moment."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_network

from pipeline.config import Config
from pipeline.peers.admission import Admission
from pipeline.policy.direct_pairs import Facts
from pipeline.shm.peer_table import Route
from pipeline.supervisor.roles.introductions import ClientSession
from pipeline.supervisor.roles.peer_reach import PeerReach


class DirectHub:
    def __init__(self, config: Config, admission: Admission, reach: PeerReach) -> None:
        self._config = config
        self._admission = admission
        self._reach = reach

    @property
    def gives_direct_paths(self) -> bool:
        return self._config.direct == "auto"

    @property
    def isolates(self) -> bool:
        return self._config.client_isolation

    def sessions(self) -> Mapping[int, ClientSession]:
        return {
            each.peer_handle: ClientSession(
                each.peer_handle,
                each.name,
                each.sealed,
                each.offloads,
                Facts(
                    each.name,
                    takes_notes=each.takes_notes,
                    has_path=False,
                    has_rules=self._reach.limits(each.name),
                    has_rate=self._admission.keeps_count(each.name),
                    is_told_apart=False,
                ),
            )
            for each in self._admission.sessions()
            if each.sealed is not None
        }

    @property
    def version(self) -> int:
        return self._admission.changes

    def routes(self) -> list[Route]:
        return self._admission.routes()

    def is_inside(self, host: bytes) -> bool:
        address = IPv6Address(host)
        plain = address if address.ipv4_mapped is None else address.ipv4_mapped
        networks = [interface.network for interface in self._config.tunnel_interfaces]
        routed = [ip_network((route, length)) for route, length, _ in self.routes()]
        return any(plain in network for network in (*networks, *routed) if network.version == plain.version)
