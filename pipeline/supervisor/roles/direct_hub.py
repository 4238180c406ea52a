"""A hub as its introductions see it: the settings, the sessions, the routes and the rules of this moment."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network

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
    def isolates(self) -> bool:
        return self._config.client_isolation

    def sessions(self, peers: Iterable[int] | None = None) -> Mapping[int, ClientSession]:
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
            for each in self._admission.sessions(peers)
            if each.sealed is not None
        }

    @property
    def version(self) -> Hashable:
        return self._admission.changes, self._reach.changes, self.isolates

    def routes(self) -> list[Route]:
        return self._admission.routes()

    def is_inside(self, host: bytes) -> bool:
        mapped = IPv6Address(host).ipv4_mapped
        packed = host if mapped is None else mapped.packed
        number, bits = int.from_bytes(packed, "big"), 8 * len(packed)
        networks = [(each.network_address.packed, each.prefixlen) for each in self._networks]
        networks += [(address, length) for address, length, _ in self.routes()]
        return any(
            len(address) == len(packed) and (number ^ int.from_bytes(address, "big")) >> bits - length == 0
            for address, length in networks
        )

    @property
    def _networks(self) -> list[IPv4Network | IPv6Network]:
        return [interface.network for interface in self._config.tunnel_interfaces]
