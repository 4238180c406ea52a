"""A hub with clients that have hosts behind them, for tests that leave it as it is. The fixtures are in conftest.py.

hub -- link0, a bridge --+-- one      a client with the defaults, and a host behind it
                         +-- two      one connection, and a host behind it
                         +-- three    finds the server by IPv6 alone; may send and receive RATE_MBIT
                         +-- four     for clients of a test's own
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.netns.harness.hub import PLAIN, Hub
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node, add_veth_pair

RATE_MBIT = 20
BEHIND_HUB = ["10.50.0.0/16", "fd50::/48"]
HOSTS_BEHIND = {"one": 1, "two": 2}


class HostBehind(NamedTuple):
    """A host behind a client, in a network of its own."""

    node: Namespace
    address: str
    address6: str

    @property
    def addresses(self) -> tuple[str, str]:
        return self.address, self.address6


HostsBehind = dict[str, HostBehind]
"""By the name of the client."""


def networks_behind(number: int) -> tuple[str, str]:
    return f"10.1.{number}.0/24", f"fd01:{number}::/64"


def allow(name: str) -> list[str]:
    """The words of `invite` that give a client its networks."""
    return [f"--allow={network}" for network in networks_behind(HOSTS_BEHIND[name])]


def add_host_behind(stack: ExitStack, node: Node, number: int) -> HostBehind:
    host = Namespace(f"behind-{node.name}")
    stack.callback(host.close)
    add_veth_pair(node, "behind", host)
    for where, device, last in ((node, "behind", 1), (host, "link0", 2)):
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
    return HostBehind(host, f"10.1.{number}.2", f"fd01:{number}::2")


def run_shared_hub(stack: ExitStack, lab: Lab, directory: Path) -> Hub:
    """The server and its three clients; all are stopped with the stack."""
    behind = [network for number in HOSTS_BEHIND.values() for network in networks_behind(number)]
    hub = stack.enter_context(Hub(lab, directory, lanes=2, routes=behind, push_routes=[*BEHIND_HUB, *behind]))
    hub.join(lab["one"], "", *allow("one"))
    two = {**PLAIN, "receive_buffer_bytes": 65536, "heartbeat_timeout": 60}
    hub.join(lab["two"], "", *allow("two"), **two)
    hub.join(lab["three"], "", "--address", f"[{hub.node.address6}]", "--rate", str(RATE_MBIT), **PLAIN)
    return hub
