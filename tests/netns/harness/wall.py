"""A wall in front of a node: some kinds of packets do not come in from outside.

It stands at the device, in front of packet sockets too, as a wall on the way would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tools.lab.network import INTERFACE, Node

WALL = """
table netdev wall {{
    chain arrive {{
        type filter hook ingress device "{device}" priority 0; policy accept;
        {rules}
    }}
}}
"""
UDP = "meta l4proto udp"


def fake_tcp_to(port: int) -> str:
    return f"tcp dport {port}"


def fake_tcp_from(port: int) -> str:
    return f"tcp sport {port}"


@contextmanager
def wall(node: Node, *what: str) -> Iterator[None]:
    """Nothing of these kinds, each in words of nft(8), comes to this node."""
    rules = "\n        ".join(f"{each} counter drop" for each in what)
    node.run(["nft", "-f", "-"], input=WALL.format(device=INTERFACE, rules=rules))
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", "netdev", "wall"])
