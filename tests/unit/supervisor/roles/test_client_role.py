"""Where a client has found its server, for workers that start later."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.supervisor.roles.client_role import KNOWN_SERVERS_MAX, ClientRole
from pipeline.wire import messages

WELCOME = messages.Welcome(messages.VERSION, 0, 1400, 0).frame().hex()


def config(remote: str) -> Config:
    return parse({"mode": "client", "remote_addr": remote, "encryption": "none", "tunnel_addr": "10.0.0.2/24"})


class Device:
    """Takes everything from the server."""

    def take_from_server(self, *_given: Any) -> list[Any]:
        return []

    def look_soon(self) -> None:
        pass


def role_of(remote: str) -> ClientRole:
    role = ClientRole(config(remote))
    role._device = Device()  # type: ignore[assignment]
    return role


def welcomed(role: ClientRole, *servers: str) -> list[str]:
    for server in servers:
        role.answer_request({"welcome": WELCOME, "server": server})
    return role.known_servers


def test_addresses_of_a_name_are_known_the_latest_first_and_a_few_at_most() -> None:
    role = role_of("vpn.example.org:9000")
    assert welcomed(role, "192.0.2.1", "192.0.2.2", "192.0.2.1") == ["192.0.2.1", "192.0.2.2"]
    many = [f"192.0.2.{number}" for number in range(10, 30)]
    assert welcomed(role, *many) == many[::-1][:KNOWN_SERVERS_MAX]


def test_an_address_needs_no_other() -> None:
    assert welcomed(role_of("192.0.2.1:9000"), "192.0.2.1") == []


@pytest.mark.parametrize(("remote", "known"), [("vpn.example.org:9000", ["192.0.2.1"]), ("other.example:9000", [])])
def test_another_server_is_not_looked_for_where_the_first_one_was(remote: str, known: list[str]) -> None:
    role = role_of("vpn.example.org:9000")
    welcomed(role, "192.0.2.1")
    role.prepare_reload(config(remote))
    role.apply_reload()
    assert role.known_servers == known
