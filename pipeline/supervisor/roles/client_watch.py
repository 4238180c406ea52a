"""Looks where the clients of a server are connected from, so that its `routes` do not lead there.

The clients of a proxy are where the proxy is. Of `proxy_protocol_from`, those entries count that are one address.

A server without `routes` needs no look: its other routes are those of the tunnel's own subnets, which were there before
the first client.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from pipeline.policy.kernel_entries import IPAddress
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.kernel.tun_device import TunDevice

SINGLE = ("", "32", "128")  # prefix lengths of one address

LOOK_NS = 1_000_000_000  # between looks: a look at 1600 connections takes 3 ms


class ClientWatch:
    def __init__(self, table: PeerTable, device: TunDevice) -> None:
        self._table = table
        self._device = device
        self._due = 0

    def tick(self, now: int, *, has_routes: bool, proxies: Iterable[str] = ()) -> None:
        if has_routes and now >= self._due:
            self._due = now + LOOK_NS
            hosts = {
                row.address.rpartition(":")[0].strip("[]")
                for lane in range(len(self._table.links))
                for row in self._table.connections(lane)
                if row.state == "established"
            }
            hosts |= {host for host, _, length in (text.partition("/") for text in proxies) if length in SINGLE}
            self._device.know_clients([address for host in hosts for address in _routable(host)])


def _routable(host: str) -> list[IPAddress]:
    """The address that a worker has published; none for nonsense, and for link-local, where no route of ours leads."""
    try:
        address = ip_address(host)
    except ValueError:
        return []
    return [] if address.is_link_local else [address]
