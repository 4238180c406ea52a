"""The full tunnel turn by turn: what is set in DNS, and which configurations have one. The rest: tests/netns."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.errors import LocalError
from pipeline.supervisor.kernel import full_tunnel
from pipeline.supervisor.kernel.full_tunnel import FullTunnel

CLIENT = {"mode": "client", "name": "town", "remote_addr": "192.0.2.1:9", "kill_switch": False}
PUSHED = (ip_address("10.99.0.1"),)
OWN = ["10.99.0.7"]


class Names:
    """Stands for the DNS servers of this machine."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.used = 0

    def use(self, servers: tuple[Any, ...]) -> str:
        self.now = [str(server) for server in servers]
        self.used += 1
        return ""

    def restore(self) -> None:
        self.now = []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(full_tunnel, "NameServers", lambda tun_name, instance_name: made)
    marks = SimpleNamespace(follow=lambda wanted, now: None, close=lambda leave: None, notes=[])
    monkeypatch.setattr(full_tunnel, "BypassMarks", lambda name, uid, there: marks)
    yield made
    assert made.now == []


def config(**settings: Any) -> Config:
    return parse({**CLIENT, "full_tunnel": True, **settings})


def device(**changes: Any) -> Any:
    state = {"has_bypass": True, "has_heard": True, "is_full_tunnel": True, "pushed_dns": PUSHED, "index": 7}
    return SimpleNamespace(**state | {"near": (), "addresses": ()} | changes)


def test_dns_servers_are_set_once_and_again_for_a_device_that_was_made_again(names: Names) -> None:
    made = FullTunnel(config(), 99, ())
    for index, used in ((7, 1), (7, 1), (8, 2)):
        made.follow(device(index=index), 0)
        assert names.now == ["10.99.0.1"] and names.used == used
    made.end(leave=False)


def test_a_reload_sets_others_or_those_of_the_machine(names: Names) -> None:
    made = FullTunnel(config(), 99, ())
    made.follow(device(), 0)
    for settings, expected in (({"dns": OWN}, OWN), ({"dns": []}, []), ({}, ["10.99.0.1"])):
        made.configure(config(**settings))
        made.follow(device(), 0)
        assert names.now == expected == made.status()["dns"]
    made.configure(config(full_tunnel=False))
    made.follow(device(is_full_tunnel=False), 0)
    assert names.now == []


def test_the_lan_is_asked_only_if_no_server_is_known_and_that_is_said(names: Names) -> None:
    made = FullTunnel(config(), 99, ())
    made.follow(device(has_heard=False, pushed_dns=()), 0)
    assert made.status()["lan_dns"]  # there is no kill switch here
    made.is_shut = True
    assert made.notes == [] and not made.status()["lan_dns"]
    made.follow(device(pushed_dns=()), 0)
    made.is_shut = True
    assert made.notes == [full_tunnel.LAN_DNS] and made.status()["lan_dns"]


def test_workers_without_a_user_of_their_own_are_refused_at_a_start_and_at_a_reload(names: Names) -> None:
    with pytest.raises(LocalError, match="workers with a user of their own"):
        FullTunnel(config(), None, ()).begin()
    made = FullTunnel(config(full_tunnel=False), None, ())
    with pytest.raises(LocalError, match="workers with a user of their own"):
        made.configure(config())


def test_a_server_has_none(names: Names) -> None:
    server = parse({"mode": "server", "name": "town", "full_tunnel": True})
    assert server.wants_full_tunnel is False
    FullTunnel(server, None, ()).begin()
