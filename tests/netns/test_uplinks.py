"""A client with several uplinks, for real: each connection leaves by its own interface, whatever happens to another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.support import eventually
from tools.lab.network import Lab, Node

SERVICE = "10.50.0.1"  # the server's address on its loopback, which both uplinks lead to
UPLINKS = {"uplinks": ["link0", "link1"], "reconnect_max": 0.5}
BOTH = {"connections": 5, "light_connections": 3, "fec": "auto"}
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

    def start(**settings: Any) -> tuple[Instance, Instance]:
        a, b = lab.nodes
        serving = server_config(a, **BOTH)
        for node, config in ((a, serving), (b, client_config(serving, SERVICE, **{**BOTH, **UPLINKS, **settings}))):
            made.append(Instance(node, config, tmp_path).__enter__())
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


def sources(server: Instance) -> Counter[str]:
    rows = [row for row in server.running()["connections"] if row["state"] == "established"]
    return Counter(row["address"].rpartition(":")[0] for row in rows)


def test_each_connection_leaves_by_its_uplink(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    eventually(lambda: sources(server) == {lab.nodes[1].address: FIRST, "10.78.0.2": SECOND})
    assert reaches(client, server)


def test_an_uplink_that_appears_later_is_used_and_its_absence_harms_nobody(lab: Lab, started: Any) -> None:
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST})
    assert reaches(client, server)
    eventually(lambda: any("no interface link1" in each for each in client.running()["server"]["trouble"]))
    add_uplink(lab)
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    assert client.counter("tcp.connections_lost") == 0


def test_a_pulled_cable_ends_its_connections_at_once_and_they_come_back_with_it(lab: Lab, started: Any) -> None:
    add_uplink(lab)
    server, client = started()
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    lab.nodes[0].ip("link set link1 down")
    eventually(lambda: sockets(client.node) == {"link0": FIRST}, 1.0)
    client.wait_for_log("by link1: 3 connections ended: link1 has no carrier")
    assert client.counter("tcp.connections_lost") == SECOND and reaches(client, server)
    lab.nodes[0].ip("link set link1 up")
    eventually(lambda: sockets(client.node) == {"link0": FIRST, "link1": SECOND})
    assert client.counter("tcp.connections_lost") == SECOND


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
