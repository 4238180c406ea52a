"""Whole instances on hosts whose network others change too, and the state of the host before and after them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.hub import PLAIN, Client, Hub, reaches
from tests.netns.harness.instance import Instance, client_config, server_config, traces, tunnel, unique_name
from tests.support import eventually
from tools.lab.network import Lab, Node

PUSHED = ["10.50.0.0/16", "fd50::/48"]
UNREACHABLE = {"local_addr": "127.0.0.1:9"}
STATIC = ["10.60.0.0/16 via 10.77.0.1", "10.61.0.0/16 via 10.77.0.1 metric 100", "default via 10.77.0.1"]


def host_state(node: Node, name: str) -> dict[str, Any]:
    return {**traces(node, name), "ruleset": node.run(["nft", "list", "ruleset"]).stdout}


@pytest.mark.parametrize("end", ["stop", "kill", "kill-start-stop"])
def test_the_network_of_the_host_is_afterwards_as_it_was(lab: Lab, tmp_path: Path, end: str) -> None:
    node = lab.nodes[1]
    name = unique_name("c")
    routes = ["0.0.0.0/0", "10.60.0.0/16", "10.61.0.0/16", "10.62.0.0/16", "10.77.0.0/24", "fd62::/48"]
    config = client_config(UNREACHABLE, lab.nodes[0].address, name=name, routes=routes, drain_timeout=0)
    node.ip(*(f"route add {each}" for each in STATIC))
    try:
        before = host_state(node, name)
        with Instance(node, config, tmp_path) as instance:
            instance.wait_until_running()
            during = host_state(node, name)
            for what in ("-4 route show table all", "-6 route show table all", "-o address"):
                assert set(before[what].splitlines()) <= set(during[what].splitlines())
            assert "10.62.0.0/16 dev" in during["-4 route show table all"] and name in during["ruleset"]
            if end != "stop":
                instance.kill()
                eventually(lambda: not node.processes())
                kept = [what for what in before if "route" in what or "addr" in what]
                # a process that ends leaves the namespace a moment before it closes the device
                eventually(
                    lambda: (now := host_state(node, name)) and all(now[what] == before[what] for what in kept),
                    what="routes and addresses as they were",
                )
            if end == "kill-start-stop":
                with instance.start_again() as again:
                    again.wait_until_running()
                    again.stop()
        if end != "kill":
            assert host_state(node, name) == before
    finally:
        node.ip(*(f"route del {each}" for each in STATIC))
        node.run(["nft", "delete", "table", "inet", f"tunnel-{name}"], check=False)


def test_what_others_take_from_a_client_comes_back_and_so_do_its_packets(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, push_routes=PUSHED) as hub:
        hub.node.ip("address add 10.50.0.1/32 dev lo", "address add fd50::1/128 dev lo")
        client = hub.join(lab.nodes[1], **PLAIN)
        node = client.node

        def is_whole() -> bool:
            return (
                all(reaches(node, address, count=1, seconds=0.3) for address in ("10.50.0.1", "fd50::1"))
                and f"tunnel-{client.name}" in node.run(["nft", "list", "tables"]).stdout
            )

        eventually(is_whole)
        for taking in (
            ["ip", "route", "flush", "dev", client.tun_name],
            ["ip", "address", "flush", "dev", client.tun_name],
            ["nft", "flush", "ruleset"],
            ["sysctl", "-qw", f"net.ipv6.conf.{client.tun_name}.disable_ipv6=1"],
        ):
            node.run(taking)
            if taking[0] == "sysctl":
                client.wait_for_log("IPv6 is off")
                node.sysctl(f"net.ipv6.conf.{client.tun_name}.disable_ipv6=0")
            eventually(is_whole, what=f"all is back after {taking}")
        client.wait_for_log("put back table inet")
        assert set(client.restarts().values()) == {0}


def test_a_server_that_pushes_everything_gets_what_is_harmless_and_the_client_keeps_its_network(
    tmp_path: Path,
) -> None:
    harmful = ["0.0.0.0/0", "64.0.0.0/2", "127.0.0.0/8", "10.77.0.0/24", "10.77.0.1/32", "224.0.0.0/4", "fd77::/64"]
    with Lab() as lab, Hub(lab, tmp_path, push_routes=[*PUSHED, *harmful]) as hub:
        node = lab.nodes[1]
        before = node.run(["ip", "route", "show", "table", "all"]).stdout.splitlines()
        client = hub.join(node, **PLAIN)
        eventually(lambda: set(client.routes()) == {*PUSHED, "10.99.0.0/24", "fd99::/64"}, what="all that is harmless")
        assert reaches(node, hub.node.address) and reaches(node, hub.server.address)
        assert set(before) <= set(node.run(["ip", "route", "show", "table", "all"]).stdout.splitlines())
        ignored = [line for line in client.log.splitlines() if "from the server is ignored" in line]
        assert all(any(f"route {route}" in line for line in ignored) for route in harmful)
        status = client.running()
        assert {row["entry"] for row in status["left_out"] if row["from_server"]} == set(harmful)
        assert all(row["kind"] == "route" and row["reason"] for row in status["left_out"])
        shown = client.command("status").stdout
        assert "note: route 127.0.0.0/8 from the server is ignored: it holds loopback addresses\n" in shown
        assert shown.count("note: ") <= 6


def test_a_server_on_the_clients_own_network_leaves_it_alone_and_both_are_named(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, tunnel_addr="10.0.0.1/24") as hub:
        node = lab.nodes[1]
        node.ip("address add 10.0.0.77/24 dev link0")
        client = Client(node, hub.invite("one"), tmp_path, **PLAIN)
        with client:
            client.wait_until_connected()
            client.wait_for_log("from the server is ignored: it is in 10.0.0.0/24 of link0")
            assert "choose another tunnel_addr on the server" in client.log
            assert client.routes() == []


def test_a_server_that_sends_everything_through_a_client_keeps_the_way_to_it(tmp_path: Path) -> None:
    """The client is behind a router, where the server's default route leads."""
    outside = "198.18.5.5"
    with Lab() as lab, Hub(lab, tmp_path, routes=["0.0.0.0/1", "128.0.0.0/1", "10.60.0.0/16"]) as hub:
        node = lab.nodes[1]
        hub.node.ip(f"route add default via {node.address}")
        node.ip(f"address add {outside}/32 dev lo", f"route add {hub.node.address}/32 dev link0 src {outside}")
        client = hub.join(node, "one", "--allow", "0.0.0.0/0", **PLAIN)
        hub.server.wait_for_log(f"route 128.0.0.0/1 is left out: it leads to a client itself ({outside})")
        hub.node.ip(f"route add {outside} via {node.address}")
        eventually(lambda: "128.0.0.0/1 dev" in hub.node.run(["ip", "route"]).stdout)
        client.stop()
        with client.start_again() as again:
            again.wait_until_joined()
            assert reaches(hub.node, again.address)


def test_a_client_without_ipv6_has_all_the_rest_and_ipv6_once_it_is_on(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, push_routes=PUSHED) as hub:
        node = lab.nodes[1]
        node.sysctl("net.ipv6.conf.default.disable_ipv6=1")
        client = hub.join(node, **PLAIN)
        eventually(lambda: set(client.routes()) == {"10.99.0.0/24", PUSHED[0]}, what="the routes of IPv4")
        assert reaches(node, hub.server.address)
        node.sysctl(f"net.ipv6.conf.{client.tun_name}.disable_ipv6=0")
        eventually(lambda: {"fd99::/64", PUSHED[1]} <= set(client.routes()))
        eventually(lambda: reaches(node, hub.server.address6, count=1, seconds=0.3))


def test_a_reload_prints_what_the_kernel_does_not_have_and_applies_the_rest(lab: Lab, tmp_path: Path) -> None:
    node = lab.nodes[1]
    node.ip("route add 10.61.0.0/16 via 10.77.0.1 metric 10")
    try:
        with tunnel(lab, tmp_path) as (_, client):
            client.config["routes"] = ["10.61.0.0/16", "10.62.0.0/16"]
            client.write(client.config)
            done = client.command("reload")
            assert done.returncode == 1 and done.stdout == "changed: routes\n"
            assert (
                "tunnel-supervisor: route 10.61.0.0/16 is left out: 10.61.0.0/16 via 10.77.0.1 dev link0" in done.stderr
            )
            assert "10.62.0.0/16 dev" in node.run(["ip", "route"]).stdout
            client.signal(signal.SIGHUP)
            assert client.is_running()
    finally:
        node.ip("route del 10.61.0.0/16 via 10.77.0.1 metric 10")


def test_two_servers_with_one_subnet_on_a_host_name_each_other(lab: Lab, tmp_path: Path) -> None:
    node = lab.nodes[0]
    with Instance(node, server_config(node), tmp_path) as first:
        first.wait_until_running()
        with Instance(node, server_config(node), tmp_path) as second:
            second.wait_until_running()
            assert f"10.99.0.0/24 dev {first.tun_name} is there with metric 10" in second.log
        assert f"10.99.0.0/24 dev {first.tun_name}" in node.run(["ip", "route"]).stdout
