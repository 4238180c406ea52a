"""A client with `full_tunnel`: everything goes through the tunnel or nowhere, whatever happens; and nothing stays.

client -- link0 -- hub -- outside -- host      the hub is the client's default gateway, too, and has `nat`
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.hub import PLAIN, Client, Hub, reaches
from tests.netns.harness.instance import traces
from tests.netns.harness.uplink import (
    GATEWAY,
    HUB_OUTSIDE,
    HUB_OUTSIDE6,
    OUTSIDE,
    OUTSIDE6,
    SERVER,
    Programs,
    Uplink,
    World,
)
from tests.support import eventually
from tools.instance import EXECUTABLE

SECONDS = 0.5  # that programs go on sending while nothing happens


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


class Tunnel:
    """A hub with `nat`, and a client that has joined."""

    def __init__(
        self,
        stack: ExitStack,
        world: World,
        directory: Path,
        *,
        hub: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.world = world
        self._stack = stack
        serving = {"nat": True, "push_dns": ["10.99.0.1"], **(hub or {})}
        self.hub = stack.enter_context(Hub(world.lab, directory, **serving))
        self.line = self.hub.invite("one", "--address", f"{SERVER}:{self.hub.port}")
        self._directory = directory
        self._settings = {**PLAIN, "full_tunnel": True, "timeout": 5.0, "keepalive": 1.0, **settings}
        self.before = self.state("none")
        self.client = self.start()

    def start(self) -> Client:
        self.client = Client(self.world.machine, self.line, self._directory, **self._settings)
        self.name = self.client.name
        self._settings["name"] = self.name
        return self._stack.enter_context(self.client)

    def joined(self) -> Client:
        self.client.wait_until_joined()
        eventually(lambda: reaches(self.client.node, OUTSIDE, count=1, seconds=0.3), what="the Internet")
        return self.client

    def state(self, name: str) -> dict[str, Any]:
        node = self.world.machine
        tables = sorted(node.run(["nft", "list", "ruleset"]).stdout.split("table "))
        found = traces(node, name) | {"ruleset": tables}
        found["sysctls"] = node.run(["sysctl", "net.ipv4.conf.all.src_valid_mark"]).stdout
        return {key: value for key, value in found.items() if key != "processes"}

    def is_shut(self) -> bool:
        return f"tunnel-{self.name}/guard" in self.world.machine.run(["nft", "list", "tables"]).stdout

    def kill_everything(self) -> None:
        """The supervisor and every worker at once."""
        pids = [*self.client.worker_pids().values(), self.client.process.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.client.wait()


def source_seen(world: World, family: int, address: str) -> str:
    """Where a connection of the machine comes from, as the host outside sees it."""
    with world.host.socket(family) as server, world.machine.socket(family) as sock:
        server.bind((address, 0))
        server.listen()
        server.settimeout(10)
        sock.settimeout(10)
        sock.connect((address, server.getsockname()[1]))
        accepted, source = server.accept()
        accepted.close()
    return str(source[0])


def go_on(seconds: float = SECONDS) -> None:
    """Let the programs send for a while: a leak shows by being there."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until)


# -- what it is for


def test_the_internet_is_reached_through_the_hub_and_the_lan_as_before(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        tunnel.joined()
        assert source_seen(world, socket.AF_INET, OUTSIDE) == HUB_OUTSIDE
        assert source_seen(world, socket.AF_INET6, OUTSIDE6) == HUB_OUTSIDE6
        assert reaches(world.machine, GATEWAY) and reaches(world.machine, "fd77::1")
        assert "full tunnel: the kill switch is shut" in tunnel.client.command("status").stdout
        assert tunnel.client.running()["full_tunnel"]["on"]


@pytest.mark.parametrize("rp_filter", [1, 2])
def test_a_reverse_path_filter_keeps_no_answer_of_the_server_out(world: World, tmp_path: Path, rp_filter: int) -> None:
    world.machine.sysctl(f"net.ipv4.conf.all.rp_filter={rp_filter}", f"net.ipv4.conf.link0.rp_filter={rp_filter}")
    with ExitStack() as stack:
        Tunnel(stack, world, tmp_path).joined()


def test_ipv6_is_blocked_at_once_where_the_tunnel_has_none(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub={"tunnel_addr": "10.99.0.1/24"})
        tunnel.joined()
        with world.machine.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match=r"unreachable|No route"):
            sock.connect((OUTSIDE6, 80))
        assert reaches(world.machine, "fd77::1")


def test_it_can_be_pushed_and_accepted(world: World, tmp_path: Path) -> None:
    pushing = {"push_routes": ["0.0.0.0/0"]}
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub=pushing, full_tunnel="pushed")
        tunnel.joined()
        eventually(lambda: source_seen(world, socket.AF_INET, OUTSIDE) == HUB_OUTSIDE)
        eventually(tunnel.is_shut)


def test_what_is_pushed_and_not_accepted_changes_nothing(world: World, tmp_path: Path) -> None:
    pushing = {"push_routes": ["0.0.0.0/0"]}
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub=pushing, full_tunnel=False)
        tunnel.client.wait_until_joined()
        assert reaches(world.machine, OUTSIDE) and not tunnel.is_shut()
        assert source_seen(world, socket.AF_INET, OUTSIDE) == world.machine.address


def test_a_reload_begins_and_ends_it(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        client = tunnel.joined()
        for full_tunnel, expected in ((False, world.machine.address), (True, HUB_OUTSIDE)):
            client.write({**client.config, "full_tunnel": full_tunnel})
            client.command("reload")
            eventually(lambda: tunnel.is_shut() is full_tunnel)
            eventually(lambda: source_seen(world, socket.AF_INET, OUTSIDE) == expected)


# -- nothing leaks


def test_nothing_but_the_tunnel_leaves_by_the_uplink_during_start_kill_reconnect_and_restart(
    world: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        uplink = stack.enter_context(Uplink(world.machine))
        programs = stack.enter_context(Programs(world.machine))
        eventually(lambda: uplink.strange(1), what="programs that are heard without a tunnel")
        tunnel = Tunnel(stack, world, tmp_path)
        eventually(tunnel.is_shut)
        shut = time.monotonic()
        port = tunnel.hub.port
        tunnel.joined()
        go_on()
        assert uplink.strange(port, shut) == set()

        world.lab.cut()
        tunnel.client.wait_for_log("server", 20)
        go_on()
        world.lab.join()
        world.machine.run(["ip", "route", "replace", "default", "via", GATEWAY])
        world.machine.run(["ip", "-6", "route", "replace", "default", "via", "fd77::1"])
        tunnel.joined()
        assert uplink.strange(port, shut) == set()

        tunnel.kill_everything()
        go_on()
        refused = programs.refused
        assert uplink.strange(port, shut) == set() and tunnel.is_shut()

        tunnel.start()
        tunnel.joined()
        assert uplink.strange(port, shut) == set() and programs.refused >= refused

        tunnel.kill_everything()
        world.machine.run([EXECUTABLE, "down", tunnel.name])
        assert not tunnel.is_shut()
        opened = time.monotonic()
        eventually(lambda: uplink.strange(port, opened), what="programs that are heard again")


@pytest.mark.parametrize("taken", ["rules", "firewall", "routes", "all"])
def test_what_others_remove_comes_back_and_nothing_leaks_meanwhile(world: World, tmp_path: Path, taken: str) -> None:
    removals: dict[str, Callable[[], object]] = {
        "rules": lambda: world.machine.ip("rule flush protocol 116"),
        "firewall": lambda: world.machine.run(["nft", "flush", "ruleset"]),
        "routes": lambda: world.machine.ip("route flush table all protocol 116"),
    }
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        tunnel.joined()
        during = tunnel.state(tunnel.name)
        uplink = stack.enter_context(Uplink(world.machine))
        if taken != "all":
            stack.enter_context(Programs(world.machine))
        for name, remove in removals.items():
            if taken in (name, "all"):
                remove()
        eventually(lambda: tunnel.state(tunnel.name) == during, what="everything is back")
        if taken != "all":
            strange = uplink.strange(tunnel.hub.port)
            bound = {each for each in strange if taken == "firewall" and each[2] in (5555, 53)}
            assert strange - bound == set()


# -- the end


@pytest.mark.parametrize("end", ["stop", "kill and down", "kill, start and stop"])
def test_the_machine_is_afterwards_as_it_was(world: World, tmp_path: Path, end: str) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        client = tunnel.joined()
        if end == "stop":
            client.stop()
        else:
            tunnel.kill_everything()
            assert tunnel.is_shut() and not reaches(world.machine, OUTSIDE, count=1, seconds=0.3)
            if end == "kill and down":
                assert f"down: {tunnel.name}" in world.machine.run([EXECUTABLE, "down", tunnel.name]).stdout
            else:
                tunnel.start()
                tunnel.joined().stop()
        assert tunnel.state(tunnel.name) == tunnel.before
        assert reaches(world.machine, OUTSIDE)


def test_an_instance_that_fails_leaves_the_kill_switch_shut_and_says_how_to_open_it(
    world: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, restart_intensity=0)
        client = tunnel.joined()
        client.signal_worker("tcp-0", signal.SIGKILL)
        assert client.wait() != 0
        assert tunnel.is_shut() and f"tunnel-supervisor down {tunnel.name}" in client.log
        world.machine.run([EXECUTABLE, "down", tunnel.name])
        assert tunnel.state(tunnel.name) == tunnel.before


def test_a_start_that_fails_shuts_nobody_off(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        tunnel.joined().stop()
        world.machine.ip(f"link add {tunnel.client.tun_name} type bridge")
        failing = tunnel.start()
        assert failing.wait() != 0
        world.machine.ip(f"link del {tunnel.client.tun_name}")
        assert tunnel.state(tunnel.name) == tunnel.before


# -- loops


@pytest.mark.parametrize("routes", [["0.0.0.0/0"], ["198.18.0.0/16"], [f"{SERVER}/32"], ["0.0.0.0/1", "128.0.0.0/1"]])
def test_routes_that_contain_the_server_make_no_loop(world: World, tmp_path: Path, routes: list[str]) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, full_tunnel=False, routes=routes)
        client = tunnel.client
        client.wait_until_joined()
        eventually(lambda: client.running()["left_out"] == [])
        if len(routes[0]) < 12:
            eventually(lambda: source_seen(world, socket.AF_INET, OUTSIDE) == HUB_OUTSIDE)
        established = client.counter("tcp.connections_established")
        go_on()
        assert client.counter("tcp.connections_established") == established
        assert (
            client.command("doctor").returncode == 0 or "leads into the tunnel" not in client.command("doctor").stdout
        )
        client.stop()
        assert tunnel.state(tunnel.name) == tunnel.before


def test_a_loop_that_somebody_else_makes_is_said_and_ends_with_its_route(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        client = tunnel.joined()
        world.machine.ip(f"route add {SERVER}/32 dev {client.tun_name}")
        client.wait_for_log(f"the way to {SERVER} leads into the tunnel itself, by a route of others")
        assert any("Remove it: ip route del" in note for note in client.running()["notes"])
        world.machine.ip(f"route del {SERVER}/32 dev {client.tun_name}")
        eventually(lambda: not any("leads into the tunnel" in note for note in client.running()["notes"]))
        tunnel.joined()


# -- the network changes, and others


def test_it_goes_on_in_another_network(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        tunnel.joined()
        world.gateway.ip("address add 172.20.5.1/24 dev link0")
        world.machine.ip(
            "address flush dev link0 scope global",
            "address add 172.20.5.7/24 dev link0",
            "route add default via 172.20.5.1",
        )
        eventually(lambda: source_seen_or_none(world) == HUB_OUTSIDE, 20, what="the Internet again")
        assert reaches(world.machine, "172.20.5.1") and tunnel.is_shut()


def source_seen_or_none(world: World) -> str:
    return HUB_OUTSIDE if reaches(world.machine, OUTSIDE, count=1, seconds=0.3) else ""


def test_beside_another_instance_both_have_their_rules_and_leave_those_of_the_other(
    world: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, full_tunnel=False, routes=["0.0.0.0/1"])
        tunnel.client.wait_until_joined()
        eventually(lambda: "rule" in tunnel.client.log)
        line = tunnel.hub.invite("two", "--address", f"{SERVER}:{tunnel.hub.port}")
        eventually(lambda: "fd99::2" in tunnel.state(tunnel.name)["-o address"])
        alone = tunnel.state(tunnel.name)
        own = {"tunnel_addr": "10.99.0.50/24", "routes": ["128.0.0.0/1"]}
        with Client(world.machine, line, tmp_path, **PLAIN, **own) as other:
            other.wait_until_joined()
            eventually(lambda: source_seen_or_none(world))
            assert world.machine.run(["ip", "rule"]).stdout.count("goto") == 4
        assert tunnel.state(tunnel.name) == alone
