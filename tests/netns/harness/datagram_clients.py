"""Clients of a hub whose blocks travel in datagrams, and how many bytes of an end go which way."""

from __future__ import annotations

from tests.netns.harness.hub import Client, Hub, reaches
from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.lab.network import Node


def in_datagrams(instance: Instance) -> int:
    return instance.counter("dgram.bytes_sent")


def on_connections(instance: Instance) -> int:
    return instance.counter("tcp.bytes_sent")


def joined(hub: Hub, node: Node, carrier: str = "auto") -> Client:
    """A client whose blocks travel in datagrams."""
    client = hub.join(node, carrier=carrier)
    eventually(lambda: datagrams_pass(client, hub), what="a path of datagrams both ways")
    return client


def datagrams_pass(client: Client, hub: Hub) -> bool:
    """Whether a ping and its answer go in datagrams."""
    before = in_datagrams(client), in_datagrams(hub.server)
    return (
        reaches(client.node, hub.server.address, count=1, seconds=0.5)
        and in_datagrams(client) > before[0]
        and in_datagrams(hub.server) > before[1]
    )
