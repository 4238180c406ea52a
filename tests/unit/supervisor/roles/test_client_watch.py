"""Where the clients of a server are, as its tcp workers have published it."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from pipeline.supervisor.roles.client_watch import LOOK_NS, ClientWatch

NOW = 10**12


class Device:
    def __init__(self) -> None:
        self.told: list[set[Any]] = []

    def know_clients(self, addresses: list[Any]) -> None:
        self.told.append(set(addresses))


def watch(*rows: tuple[str, str]) -> tuple[ClientWatch, Device]:
    """Of a server with two lanes, the second of which has these connections: state and address."""
    lanes = [[], [SimpleNamespace(state=state, address=address) for state, address in rows]]
    table = SimpleNamespace(links=lanes, connections=lambda lane: lanes[lane])
    device = Device()
    return ClientWatch(table, device), device


def test_addresses_of_established_connections_are_told_and_nonsense_is_not() -> None:
    made, device = watch(
        ("established", "198.18.0.1:4000"),
        ("established", "198.18.0.1:4001"),
        ("established", "[2001:db8::1]:4000"),
        ("handshake", "198.18.0.2:4000"),
        ("established", "[fe80::1%eth0]:4000"),
        ("established", "nonsense"),
        ("established", ""),
    )
    made.tick(NOW, has_routes=True)
    assert device.told == [{ip_address("198.18.0.1"), ip_address("2001:db8::1")}]


def test_it_looks_once_a_second_and_only_for_a_server_with_routes() -> None:
    made, device = watch()
    for now in range(NOW, NOW + 3 * LOOK_NS, LOOK_NS // 10):
        made.tick(now, has_routes=True)
    assert len(device.told) == 3
    made.tick(NOW + 9 * LOOK_NS, has_routes=False)
    assert len(device.told) == 3
