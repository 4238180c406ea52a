"""A server with `nat`: its clients reach a host that knows no way back to the tunnel, and nothing stays afterwards.

client -- link0 -- hub -- outside -- host      no route to the tunnel at the host, no forwarding at the hub
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.hub import PLAIN, Client, Hub, reaches
from tests.netns.harness.instance import Instance, traces
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, add_veth_pair

OUTSIDE, OUTSIDE6 = "198.51.100.9", "2001:db8:9::9"
PUSHED = ["198.51.100.0/24", "2001:db8:9::/64"]
SWITCHES = ["ipv4.conf.all", "ipv4.conf.default", "ipv4.conf.link0", "ipv4.conf.outside", "ipv6.conf.all"]


class World:
    """The lab, and the host outside."""

    def __init__(self, stack: ExitStack) -> None:
        self.lab = stack.enter_context(Lab())
        self.hub_node = self.lab.nodes[0]
        self.host = Namespace("host")
        stack.callback(self.host.close)
        add_veth_pair(self.hub_node, "outside", self.host)
        self.hub_node.ip(
            "link set outside up",
            "address add 198.51.100.1/24 dev outside",
            "address add 2001:db8:9::1/64 dev outside nodad",
        )
        self.host.run(
            ["ip", "-batch", "-"],
            input=f"link set lo up\nlink set link0 up\naddress add {OUTSIDE}/24 dev link0\n"
            f"address add {OUTSIDE6}/64 dev link0 nodad\n",
        )
        self.hub_node.sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
        self.hub_node.sysctl("net.ipv6.conf.outside.accept_ra=1")

    def state(self, name: str) -> dict[str, Any]:
        node = self.hub_node
        names = [f"net.{switch}.forwarding" for switch in SWITCHES] + ["net.ipv6.conf.outside.accept_ra"]
        return {
            **traces(node, name),
            "ruleset": node.run(["nft", "list", "ruleset"]).stdout,
            "sysctls": node.run(["sysctl", *names]).stdout,
        }

    def switch(self, name: str) -> str:
        return self.hub_node.run(["sysctl", "-n", f"net.{name}"]).stdout.strip()


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def hub_and_client(stack: ExitStack, world: World, directory: Path, **settings: Any) -> tuple[Hub, Client]:
    hub = stack.enter_context(Hub(world.lab, directory, push_routes=PUSHED, nat=True, **settings))
    accept = {"accept_routes": PUSHED}
    return hub, hub.join(world.lab.nodes[1], **PLAIN, **accept)


def source_seen(world: World, client: Client, family: int, address: str) -> tuple[str, int]:
    """Where a connection of the client comes from, as the host sees it."""
    with world.host.socket(family) as server, client.node.socket(family) as sock:
        server.bind((address, 0))
        server.listen()
        server.settimeout(10)
        sock.settimeout(10)
        sock.bind(("", 31000 + family))
        sock.connect((address, server.getsockname()[1]))
        accepted, source = server.accept()
        accepted.close()
    return source[:2]


def test_clients_reach_a_host_that_knows_no_way_back_with_the_hubs_address_and_another_port(
    world: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        _, client = hub_and_client(stack, world, tmp_path)
        assert reaches(client.node, OUTSIDE) and reaches(client.node, OUTSIDE6)
        for family, address, hub in (
            (socket.AF_INET, OUTSIDE, "198.51.100.1"),
            (socket.AF_INET6, OUTSIDE6, "2001:db8:9::1"),
        ):
            source, port = source_seen(world, client, family, address)
            assert source == hub and 32768 <= port <= 60999


def test_what_stays_inside_the_tunnel_keeps_its_address(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        with hub.node.socket() as server, client.node.socket() as sock:
            server.bind((hub.server.address, 0))
            server.listen()
            server.settimeout(10)
            sock.connect((hub.server.address, server.getsockname()[1]))
            accepted, source = server.accept()
            accepted.close()
        assert source[0] == client.address


@pytest.mark.parametrize("end", ["stop", "kill and down", "kill and start"])
def test_forwarding_and_the_firewall_are_afterwards_as_they_were(world: World, tmp_path: Path, end: str) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        name = hub.server.name
        client.stop()
        hub.server.stop()
        eventually(lambda: "tentative" not in world.state(name)["-o address"], what="addresses are known to be unique")
        before = world.state(name)
        with hub.server.start_again() as server:
            server.wait_until_running()
            assert world.switch("ipv4.conf.outside.forwarding") == "1"
            assert world.switch("ipv6.conf.outside.accept_ra") == "2"
            assert world.switch("ipv4.ip_forward") == "0" and f"tunnel-{name}/nat" in world.state(name)["ruleset"]
            if end == "stop":
                server.stop()
            else:
                server.kill()
                eventually(lambda: not hub.node.processes())
                assert world.switch("ipv4.conf.outside.forwarding") == "1"
                if end == "kill and down":
                    hub.node.run([EXECUTABLE, "down", name])
                else:
                    with Instance(hub.node, {**server.config, "nat": False}, tmp_path) as again:
                        again.wait_until_running()
                        assert world.switch("ipv4.conf.outside.forwarding") == "0"
        assert world.state(name) == before


def test_a_machine_that_forwards_already_goes_on_forwarding(world: World, tmp_path: Path) -> None:
    world.hub_node.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        before = world.state(hub.server.name)["sysctls"]
        assert "accept_ra = 1" in before
        client.stop()
        hub.server.stop()
        assert world.state(hub.server.name)["sysctls"] == before


def test_forwarding_that_docker_switches_on_meanwhile_stays_on(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        world.hub_node.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        client.stop()
        hub.server.stop()
        assert world.switch("ipv4.conf.outside.forwarding") == world.switch("ipv4.ip_forward") == "1"
        assert world.switch("ipv6.conf.outside.forwarding") == world.switch("ipv6.conf.all.forwarding") == "1"
        assert world.switch("ipv6.conf.outside.accept_ra") == "2", "it goes on hearing its router"


def test_of_two_instances_the_last_one_switches_forwarding_off(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        other = {
            "tunnel_addr": ["10.98.0.1/24", "fd98::1/64"],
            "local_addr": f":{world.hub_node.free_port()}",
            "name": "second-hub",
        }
        with Instance(hub.node, {**hub.server.config, **other}, tmp_path) as second:
            second.wait_until_running()
            client.stop()
            hub.server.stop()
            assert world.switch("ipv4.conf.outside.forwarding") == "1"
            assert world.switch("ipv6.conf.all.forwarding") == world.switch("ipv6.conf.outside.accept_ra") == "2"
        assert world.switch("ipv6.conf.outside.accept_ra") == "1"
        assert world.switch("ipv4.conf.outside.forwarding") == world.switch("ipv6.conf.all.forwarding") == "0"


def test_what_others_switch_off_or_flush_comes_back(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        hub.node.sysctl("net.ipv4.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding=0")
        hub.node.run(["nft", "flush", "ruleset"])
        for address in (OUTSIDE, OUTSIDE6):
            eventually(lambda: reaches(client.node, address, count=1, seconds=0.3))


def test_a_reload_begins_and_ends_it(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hub, client = hub_and_client(stack, world, tmp_path)
        for nat in (False, True):
            hub.server.write({**hub.server.config, "nat": nat})
            assert "nat" in hub.server.command("reload").stdout
            assert reaches(client.node, OUTSIDE, count=1, seconds=5.0 if nat else 0.5) is nat


def test_where_the_kernels_settings_are_read_only_the_command_for_the_host_is_said(
    world: World, tmp_path: Path
) -> None:
    wrap = ["unshare", "--mount", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]
    with ExitStack() as stack:
        hub = stack.enter_context(Hub(world.lab, tmp_path, nat=True, wrap=wrap))
        hub.server.wait_for_log("nat: IPv4 is not forwarded")
        notes = [note for note in hub.server.running()["notes"] if note.startswith("nat: ")]
        assert any("sysctl -w net.ipv4.ip_forward=1" in note and "Read-only file system" in note for note in notes)
        assert len(notes) == 2
        hub.server.signal(signal.SIGHUP)
        hub.server.stop()
