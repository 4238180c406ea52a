"""Names in a full tunnel, on machines whose DNS servers a real systemd-resolved or NetworkManager sets.

Two DNS servers answer, each in its own way: that of the LAN, and that of the hub, inside the tunnel.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.transport.uplink_names import network_manager_config
from tests.netns.harness.full_tunnel import SERVING, Tunnel
from tests.netns.harness.hub import Hub
from tests.netns.harness.name_server import NameServer
from tests.netns.harness.resolving import PACKAGES, Resolving
from tests.netns.harness.unpacked import unpack
from tests.netns.harness.uplink import GATEWAY, SERVER, World
from tests.support import eventually
from tools.instance import EXECUTABLE

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")

NAME = "www.test"
OF_LAN, OF_HUB = "192.0.2.1", "192.0.2.2"  # answers


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("packages"), PACKAGES)


class Names(NamedTuple):
    world: World
    machine: Resolving
    lan: NameServer
    hub: NameServer

    def answer(self, name: str = NAME) -> str:
        """What a program of the machine gets."""
        said = self.machine.run("getent", "ahostsv4", name, check=False).split()
        return said[0] if said else ""

    def leads_to(self, expected: str) -> None:
        eventually(lambda: self.answer() == expected, 20, f"{NAME} leads to {expected}")


@pytest.fixture
def names(packages: Path, tmp_path: Path) -> Iterator[Names]:
    with ExitStack() as stack:
        world = World(stack)
        world.hub = stack.enter_context(Hub(world.lab, tmp_path, **SERVING))
        lan = stack.enter_context(NameServer(world.gateway, tmp_path))
        hub = stack.enter_context(NameServer(world.gateway, tmp_path, "10.99.0.1"))
        lan.answer(OF_LAN)
        hub.answer(OF_HUB)
        machine = stack.enter_context(Resolving(world.machine, packages, tmp_path))
        yield Names(world, machine, lan, hub)


def goes_through(names: Names, tunnel: Tunnel) -> None:
    """Names of the machine are asked of the hub alone."""
    names.leads_to(OF_HUB)
    asked = names.lan.asked
    for number in range(10):
        assert names.answer(f"host-{number}.test") == OF_HUB
    assert names.lan.asked == asked
    assert tunnel.client.running()["full_tunnel"]["dns"] == ["10.99.0.1"]


def test_resolved_asks_the_hub_alone_until_the_stop_or_down(names: Names, tmp_path: Path) -> None:
    machine = names.machine
    resolved = machine.start_resolved("link0", GATEWAY)
    names.leads_to(OF_LAN)
    before = machine.run("resolvectl", "dns")
    with ExitStack() as stack:
        tunnel = Tunnel(stack, names.world, tmp_path, wrap=machine.wrap)
        tunnel.joined()
        goes_through(names, tunnel)
        assert "DNS servers: 10.99.0.1, set by resolvectl" in tunnel.client.log

        resolved.terminate()
        resolved.wait()
        machine.start_resolved("link0", GATEWAY)
        goes_through(names, tunnel)

        tunnel.client.stop()
        names.leads_to(OF_LAN)
        assert machine.run("resolvectl", "dns") == before

        tunnel.start()
        tunnel.joined()
        goes_through(names, tunnel)
        tunnel.kill_everything()
        assert names.answer() == ""
        machine.run(EXECUTABLE, "down", tunnel.name)
        names.leads_to(OF_LAN)


def test_network_manager_asks_the_hub_alone_until_the_stop_or_down(names: Names, tmp_path: Path) -> None:
    machine = names.machine
    manage(names)
    names.leads_to(OF_LAN)
    before = machine.resolv_conf
    with ExitStack() as stack:
        tunnel = Tunnel(stack, names.world, tmp_path, wrap=machine.wrap)
        tunnel.joined()
        goes_through(names, tunnel)
        assert "DNS servers: 10.99.0.1, set by nmcli" in tunnel.client.log
        file = machine.path(str(network_manager_config(tunnel.name)))
        assert file.exists()

        machine.run("nmcli", "device", "disconnect", "link0")
        machine.run("nmcli", "device", "connect", "link0")
        tunnel.joined()
        goes_through(names, tunnel)

        tunnel.client.stop()
        names.leads_to(OF_LAN)
        assert machine.resolv_conf == before and not file.exists()

        tunnel.start()
        tunnel.joined()
        tunnel.kill_everything()
        assert names.answer() == "" and file.exists()
        machine.run(EXECUTABLE, "down", tunnel.name)
        names.leads_to(OF_LAN)
        assert machine.resolv_conf == before and not file.exists()


@pytest.mark.slow
def test_a_server_that_moves_is_found_by_the_dns_server_that_network_manager_has_for_the_device(
    names: Names, tmp_path: Path
) -> None:
    manage(names)
    names.lan.answer(SERVER)
    names.world.gateway.ip("address add 198.18.0.2/32 dev lo")
    with ExitStack() as stack:
        tunnel = Tunnel(stack, names.world, tmp_path, wrap=names.machine.wrap, host="hub.test")
        tunnel.joined()
        goes_through(names, tunnel)
        names.lan.answer("198.18.0.2")
        names.hub.silence()
        names.world.gateway.ip(f"address del {SERVER}/32 dev lo")
        eventually(lambda: "198.18.0.2" in str(tunnel.client.running()["connections"]), 60, "the server elsewhere")


def manage(names: Names) -> None:
    names.machine.start_network_manager("link0", names.world.machine.address, GATEWAY, GATEWAY)
