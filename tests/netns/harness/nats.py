"""Clients of a hub behind NATs that nftables makes.

    hub -- link0, a bridge --+-- a NAT -- inside, a bridge -- machines in its own network
                             +-- another NAT -- ...

    cone          keeps the port, and lets in answers alone (RFC 4787: endpoint-independent, port-restricted)
    restricted    keeps the port, and lets in each host to which something was sent
    full          keeps the port, and lets in everybody
    symmetric     another port for each other end

A datagram that nobody has asked for is dropped, as by any router: Linux would take it for one of its own, and would
give another port to the machine that sends there a moment later. With several machines inside, those that let in more
than answers let it in to the first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.netns.harness.connection_tracking import forget_connections
from tools.lab.namespace import Namespace
from tools.lab.network import INTERFACE, add_veth_pair

SEEN = """
    set seen { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
    chain sent {
        type filter hook forward priority -10;
        oifname "link0" add @seen { ip daddr }
    }
"""

_IN = 'iifname "link0" fib daddr type local meta l4proto udp'

_KINDS = {
    "cone": ("", "", ""),
    "restricted": (SEEN, f"{_IN} ip saddr @seen dnat ip to FIRST", ""),
    "full": ("", f"{_IN} dnat ip to FIRST", ""),
    "symmetric": ("", "", "random,fully-random"),
}

RULES = """
table ip nat {
    SEEN
    chain from_outside {
        type nat hook prerouting priority dstnat;
        DNAT
    }
    chain to_outside {
        type nat hook postrouting priority srcnat;
        oifname "link0" masquerade HOW
    }
    chain unasked {
        type filter hook input priority 0;
        iifname "link0" meta l4proto udp drop
    }
}
"""


WALL = """
table ip wall {
    chain arrive {
        type filter hook prerouting priority raw;
        iifname "link0" ip saddr HOST meta l4proto udp drop
    }
}
"""


class Machine(Namespace):
    """A host behind a NAT."""

    def __init__(self, name: str, network: int, number: int) -> None:
        super().__init__(name)
        self.network = network
        self.address = f"192.168.{network}.{number}"

    def ip(self, *commands: str) -> None:
        self.run(["ip", "-batch", "-"], input="\n".join(commands))


class Nat:
    """A router on a node of the lab, and the machines behind it."""

    def __init__(self, node: Namespace, network: int, kind: str) -> None:
        """`node`: its `link0` is outside, with `address`."""
        self.node = node
        self.network = network
        self.machines: list[Machine] = []
        node.sysctl("net.ipv4.ip_forward=1")
        node.run(
            ["ip", "-batch", "-"],
            input=f"link add inside type bridge\nlink set inside up\naddress add {self.gateway}/24 dev inside\n",
        )
        self.become(kind)

    @property
    def gateway(self) -> str:
        return f"192.168.{self.network}.1"

    def become(self, kind: str) -> None:
        """Another NAT from now on: all that it knew is forgotten."""
        seen, dnat, how = _KINDS[kind]
        rules = RULES.replace("SEEN", seen).replace("DNAT", dnat).replace("HOW", how)
        rules = rules.replace("FIRST", f"192.168.{self.network}.2")
        self.node.run(["nft", "-f", "-"], input=f"table ip nat\ndelete table ip nat\n{rules}")
        self.forget()

    def forget(self) -> None:
        forget_connections(self.node)

    @contextmanager
    def deaf_to(self, address: str) -> Iterator[None]:
        """No datagram of this host gets in."""
        self.node.run(["nft", "-f", "-"], input=WALL.replace("HOST", address))
        try:
            yield
        finally:
            self.node.run(["nft", "delete", "table", "ip", "wall"])

    def add(self, name: str) -> Machine:
        number = 2 + len(self.machines)
        machine = Machine(name, self.network, number)
        self.machines.append(machine)
        add_veth_pair(self.node, f"port{number}", machine)
        self.node.run(["ip", "link", "set", f"port{number}", "master", "inside", "up"])
        machine.ip(
            "link set lo up",
            f"link set {INTERFACE} up",
            f"address add {machine.address}/24 dev {INTERFACE}",
            f"route add default via {self.gateway}",
        )
        return machine

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
