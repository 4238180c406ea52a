"""A client with several uplinks, for real: each connection leaves by its own interface, whatever happens to another."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.credentials import keys
from tests.netns.harness.hosts import with_hosts
from tests.netns.harness.hub import hub_config, port_of
from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab, Node

SERVICE = "10.50.0.1"  # the server's address on its loopback, which both uplinks lead to
UPLINKS = {"uplinks": ["link0", "link1"], "reconnect_max": 0.5}
BOTH = {"connections": 5, "light_connections": 3, "fec": "auto"}
SLOW = 25.0  # beside other load
FIRST, SECOND = 5, 3  # of 5 and 3 in turn: 3 + 2, and 2 + 1


def add_uplink(lab: Lab, name: str = "link1", net: str = "10.78.0") -> None:
    """A further cable between the two nodes, with a route that the kernel likes less."""
    a, b = lab.nodes
    a.run(["ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(b.pid)])
    a.ip(f"address add {net}.1/24 dev {name}", f"link set {name} up")
    b.ip(f"address add {net}.2/24 dev {name}", f"link set {name} up")
    b.ip(f"route add {SERVICE} via {net}.1 dev {name} metric 200")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        a, b = made.nodes
        a.ip(f"address add {SERVICE}/32 dev lo")
        b.ip(f"route add {SERVICE} via {a.address} dev link0 metric 100")
        yield made


@pytest.fixture
def started(lab: Lab, tmp_path: Path) -> Iterator[Any]:
    """A function that starts both ends; settings of the client."""
    made: list[Instance] = []

    def start(
        host: str = SERVICE, server: dict[str, Any] | None = None, wrap: Sequence[str] = (), **settings: Any
    ) -> tuple[Instance, Instance]:
        a, b = lab.nodes
        serving = server_config(a, **BOTH) | (server or {})
        for node, config in ((a, serving), (b, client_config(serving, host, **{**BOTH, **UPLINKS, **settings}))):
            made.append(Instance(node, config, tmp_path, wrap=wrap if made else ()).__enter__())
        made[0].wait_until_running()
        made[1].wait_until_running()
        return made[0], made[1]

    yield start
    for each in reversed(made):
        each.__exit__(None, None, None)


def sockets(node: Node) -> Counter[str]:
    """How many connections to the server are bound to each interface, as the kernel has them."""
    shown = node.run(["ss", "-Htn", "state", "established", "dst", SERVICE]).stdout
    return Counter(re.findall(r"%([\w.-]+):", shown))


def trouble_of(client: Instance, interface: str) -> list[str]:
    """Why not all connections of an uplink stand, as `status` says it."""
    (uplink,) = (each for each in client.running()["server"]["uplinks"] if each["interface"] == interface)
    trouble: list[str] = uplink["trouble"]
    return trouble


def findings(client: Instance) -> str:
    """What the doctor says in the client's network."""
    return client.node.run([EXECUTABLE, "doctor", "--name", client.name], check=False).stdout


def sources(server: Instance) -> Counter[str]:
    rows = [row for row in server.running()["connections"] if row["state"] == "established"]
    return Counter(row["address"].rpartition(":")[0] for row in rows)


def test_each_connection_leaves_by_its_uplink(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    eventually(lambda: sources(server) == {lab.nodes[1].address: FIRST, "10.78.0.2": SECOND})
    for end in (server, client):
        eventually(
            lambda: Counter(row["uplink"] for row in end.running()["connections"]) == {0: FIRST, 1: SECOND},
            what=f"{end.name} knows the uplink of each connection",
        )
    client.wait_until_connected(FIRST + SECOND)
    assert reaches(client, server)


def test_an_uplink_that_appears_later_is_used_and_its_absence_harms_nobody(lab: Lab, started: Any) -> None:
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    client.wait_until_connected(FIRST)  # the kernel has a connection before its handshake is over
    assert reaches(client, server)
    eventually(lambda: any("no interface link1" in each for each in client.running()["server"]["trouble"]))
    add_uplink(lab)
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    assert client.counter("tcp.connections_lost") == 0


@pytest.mark.alone
def test_a_pulled_cable_ends_its_connections_at_once_and_they_come_back_with_it(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    lab.nodes[0].ip("link set link1 down")
    eventually(lambda: sockets(client.node) == {"link0": FIRST}, 1.0)
    client.wait_for_log("by link1: 3 connections ended: link1 has no carrier")
    assert client.counter("tcp.connections_lost") == SECOND and reaches(client, server)
    lab.nodes[0].ip("link set link1 up")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)
    eventually(lambda: not trouble_of(client, "link1"))
    assert client.counter("tcp.connections_lost") == SECOND


def test_both_cables_are_pulled_and_one_is_plugged_again(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    lab.nodes[0].ip("link set link0 down", "link set link1 down")
    lab.nodes[0].ip("link set link0 up")
    eventually(lambda: sockets(client.node)["link0"] == FIRST and trouble_of(client, "link1"), SLOW)
    eventually(lambda: reaches(client, server), SLOW)
    lab.nodes[0].ip("link set link1 up")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)


def test_the_last_uplink_that_loses_its_carrier_keeps_its_connections(lab: Lab, started: Any) -> None:
    """They outlive a short gap, as those of a client with one uplink do."""
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    lab.nodes[0].ip("link set link1 down")
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    lab.nodes[0].ip("link set link0 down")
    threading.Event().wait(0.5)
    assert sockets(client.node) == {"link0": FIRST}
    lab.nodes[0].ip("link set link0 up")
    eventually(lambda: reaches(client, server), SLOW)


def test_another_address_of_an_uplink_renews_its_own_connections_alone(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    lab.nodes[1].ip(
        "address del 10.78.0.2/24 dev link1",
        "address add 10.78.0.3/24 dev link1",
        f"route add {SERVICE} via 10.78.0.1 dev link1 metric 200",
    )
    eventually(lambda: sources(server) == {lab.nodes[1].address: FIRST, "10.78.0.3": SECOND})
    assert client.counter("tcp.connections_lost") == SECOND


SILENT = """
table inet silent {
    chain in { type filter hook input priority 0; iifname "link1" drop; }
}
"""


@pytest.mark.slow
def test_a_gateway_that_is_dead_costs_its_own_connections_alone(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    lab.nodes[0].run(["nft", "-f", "-"], input=SILENT)
    server, client = started(server={"keepalive": 0.5}, timeout=3.0, keepalive=0.5)
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    eventually(lambda: trouble_of(client, "link1") and not trouble_of(client, "link0"))
    assert reaches(client, server)
    lab.nodes[0].run(["nft", "delete", "table", "inet", "silent"])
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)
    lab.nodes[0].run(["nft", "-f", "-"], input=SILENT)
    eventually(lambda: sockets(client.node) == {"link0": FIRST}, SLOW)
    eventually(
        lambda: client.counter("tcp.connections_lost") == SECOND, what="the worker knows what the kernel has ended"
    )
    assert reaches(client, server)


def test_one_uplink_may_have_ipv4_alone_and_another_ipv6(lab: Lab, started: Any, tmp_path: Path) -> None:
    a, b = lab.nodes
    add_uplink(lab)
    a.ip("address add fd50::1/128 dev lo nodad", "address add fd78::1/64 dev link1 nodad")
    b.ip(
        f"route del {SERVICE} dev link1",
        "address add fd78::2/64 dev link1 nodad",
        "route add fd50::1 via fd78::1 dev link1",
    )
    hosts = with_hosts(tmp_path, f"{SERVICE} server.test", "fd50::1 server.test")
    server, client = started(server={"local_addr": f":{a.free_port()}"}, host="server.test", wrap=hosts)
    eventually(lambda: sources(server) == {b.address: FIRST, "[fd78::2]": SECOND}, SLOW)
    client.wait_until_connected(FIRST + SECOND)
    assert reaches(client, server)


def test_two_uplinks_in_one_subnet_carry_once_each_answers_for_its_own_address(lab: Lab, started: Any) -> None:
    a, b = lab.nodes
    add_uplink(lab)
    a.ip(
        "address flush dev link0",
        "address flush dev link1",
        "link add br0 type bridge",
        "link set link0 master br0",
        "link set link1 master br0",
        "link set br0 up",
        f"address add {a.address}/24 dev br0",
    )
    b.ip(
        "address del 10.78.0.2/24 dev link1",
        "address add 10.77.0.9/24 dev link1",
        f"route add {SERVICE} via {a.address} dev link1 metric 200",
    )
    server, client = started()
    assert "are both in 10.77.0.0/24: each answers ARP for the other" in findings(client)
    b.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"])
    a.ip("neigh flush all")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)
    client.wait_until_connected(FIRST + SECOND)
    assert reaches(client, server) and "are both in" not in findings(client)


def test_a_strict_reverse_path_filter_is_found_by_the_doctor(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    lab.nodes[1].run(["sysctl", "-q", "-w", "net.ipv4.conf.link1.rp_filter=1"])
    _, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    assert "rp_filter drops what the server answers on link1" in findings(client)
    lab.nodes[1].run(["sysctl", "-q", "-w", "net.ipv4.conf.link1.rp_filter=2"])
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)
    assert "rp_filter" not in findings(client)


def test_an_uplink_that_is_deleted_is_found_again_when_it_is_made_anew(lab: Lab, started: Any) -> None:
    """A USB modem, which has another index then. Its name is one that VLANs have."""
    add_uplink(lab, "link0.7")
    server, client = started(uplinks=["link0", {"interface": "link0.7", "role": "backup"}])
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link0.7": SECOND})
    lab.nodes[1].ip("link del link0.7")
    eventually(lambda: sockets(client.node) == {"link0": FIRST} and trouble_of(client, "link0.7"))
    add_uplink(lab, "link0.7")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link0.7": SECOND}, SLOW)
    assert reaches(client, server)


@pytest.mark.parametrize("full_tunnel", [False, True])
def test_rules_of_policy_routing_leave_each_connection_on_its_uplink(lab: Lab, started: Any, full_tunnel: bool) -> None:
    """A rule of another program, as mwan3 has them, or our own of a full tunnel with its kill switch."""
    add_uplink(lab)
    lab.nodes[1].ip(
        f"route add default via {lab.nodes[0].address} dev link0 table 100", "rule add priority 100 lookup 100"
    )
    server, client = started(full_tunnel=full_tunnel)
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    client.wait_until_connected(FIRST + SECOND)
    assert reaches(client, server)
    lab.nodes[0].ip("link set link1 down")
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    lab.nodes[0].ip("link set link1 up")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)


@pytest.mark.slow
def test_a_missing_uplink_makes_no_server_look_dead(tmp_path: Path) -> None:
    """With keys, TLS and a second server, to which a connection stands by."""
    key = tmp_path / "key"
    keys.write_secret(key, keys.generate().encode())
    peers = [{"name": "laptop", "key_file": str(key)}]
    with Lab(names=("a", "b", "client")) as lab, ExitStack() as stack:
        servers = [
            stack.enter_context(Instance(lab[name], hub_config(lab[name], tmp_path, peers=peers), tmp_path))
            for name in ("a", "b")
        ]
        for server in servers:
            server.wait_until_running()
        remotes = [f"{server.node.address}:{port_of(server)}" for server in servers]
        given = {"mode": "client", "key_file": str(key), "remote_addr": remotes, **UPLINKS}
        client = stack.enter_context(Instance(lab["client"], given, tmp_path))
        client.wait_until_running()

        def is_at(server: Instance, standby: int) -> bool:
            states = Counter(row["state"] for row in client.running()["connections"])
            there = client.running()["server"]["host"] == server.node.address
            return there and states["established"] == FIRST and states["standby"] == standby

        eventually(lambda: is_at(servers[0], 1), SLOW)
        assert "server-changed" not in client.log
        servers[0].kill()
        eventually(lambda: is_at(servers[1], 0), SLOW)


@pytest.mark.slow
def test_a_reload_changes_the_uplinks(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started(uplinks=[])
    eventually(lambda: sources(server) == {lab.nodes[1].address: FIRST + SECOND})
    client.write(client.config | UPLINKS)
    assert client.command("reload").returncode == 0
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND}, SLOW)
    eventually(lambda: [each["connections"] for each in client.running()["server"]["uplinks"]] == [FIRST, SECOND])
