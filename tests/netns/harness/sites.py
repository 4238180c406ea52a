"""A hub with clients that have hosts behind them, for the tests that leave it as it is: fixtures.

hub -- link0, a bridge --+-- one      a client with the defaults, and a host behind it
                         +-- two      one connection, and a host behind it
                         +-- three    finds the server by IPv6 alone; may send and receive RATE_MBIT
                         +-- four     for clients of a test's own
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.netns.harness.hub import PLAIN, Hub
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node

RATE_MBIT = 20
BEHIND_HUB = ["10.50.0.0/16", "fd50::/48"]
HOSTS_BEHIND = {"one": 1, "two": 2}


class Site(NamedTuple):
    """A host behind a client, in a network of its own."""

    node: Namespace
    address: str
    address6: str

    @property
    def addresses(self) -> tuple[str, str]:
        return self.address, self.address6


def networks_behind(number: int) -> tuple[str, str]:
    return f"10.1.{number}.0/24", f"fd01:{number}::/64"


def make_site(stack: ExitStack, node: Node, number: int) -> Site:
    host = Namespace(f"behind-{node.name}")
    stack.callback(host.close)
    subprocess.run(
        [
            "ip",
            "link",
            "add",
            "site",
            "netns",
            str(node.pid),
            "type",
            "veth",
            "peer",
            "name",
            "link0",
            "netns",
            str(host.pid),
        ],
        check=True,
        capture_output=True,
    )
    for where, device, last in ((node, "site", 1), (host, "link0", 2)):
        where.run(
            ["ip", "-batch", "-"],
            input=f"link set {device} up\n"
            f"address add 10.1.{number}.{last}/24 dev {device}\n"
            f"address add fd01:{number}::{last}/64 dev {device} nodad\n",
        )
    host.run(
        ["ip", "-batch", "-"],
        input=f"link set lo up\nroute add default via 10.1.{number}.1\nroute add default via fd01:{number}::1\n",
    )
    node.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    return Site(host, f"10.1.{number}.2", f"fd01:{number}::2")


@pytest.fixture(scope="module")
def wide_lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two", "three", "four")) as lab:
        lab.nodes[0].ip("address add 10.50.0.1/32 dev lo", "address add fd50::1/128 dev lo")
        lab["three"].ip(f"address del {lab['three'].address}/24 dev link0")
        yield lab


@pytest.fixture(scope="module")
def sites(wide_lab: Lab) -> Iterator[dict[str, Site]]:
    with ExitStack() as stack:
        yield {name: make_site(stack, wide_lab[name], number) for name, number in HOSTS_BEHIND.items()}


@pytest.fixture(scope="module")
def hub(wide_lab: Lab, sites: dict[str, Site], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """For tests that leave it as it is."""
    behind = [network for number in HOSTS_BEHIND.values() for network in networks_behind(number)]
    with Hub(
        wide_lab, tmp_path_factory.mktemp("hub"), lanes=2, routes=behind, push_routes=[*BEHIND_HUB, *behind]
    ) as made:
        made.join(wide_lab["one"], "", "--allow", *networks_behind(HOSTS_BEHIND["one"]))
        made.join(
            wide_lab["two"],
            "",
            "--allow",
            *networks_behind(HOSTS_BEHIND["two"]),
            **PLAIN,
            receive_buffer_bytes=65536,
            heartbeat_timeout=60,
        )
        made.join(wide_lab["three"], "", "--address", f"[{made.node.address6}]", "--rate", str(RATE_MBIT), **PLAIN)
        yield made


@pytest.fixture
def line(hub: Hub) -> Iterator[str]:
    """An invitation for one more, whom the server forgets afterwards."""
    yield hub.invite("four")
    hub.server.command("revoke", "four")
