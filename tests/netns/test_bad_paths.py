"""Paths that lose, reorder, duplicate, delay and swallow packets, and boxes that reset connections: bytes inside a
tunnel over them arrive unaltered, and no worker is replaced for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instance, tunnel
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab

CONNECTIONS = 8
"""Of a client with the default settings."""


class BadPath(NamedTuple):
    spec: LinkSpec
    enough_bytes: int
    """That arrive each way. Few where the path is slow."""
    effect: str = "offered"
    """The counter of the link that says so."""


PATHS = {
    "loses 10 percent": BadPath(LinkSpec(delay_ms=5, loss_percent=10), 300_000, "lost"),
    "loses 30 percent": BadPath(LinkSpec(delay_ms=2, loss_percent=30), 50_000, "lost"),
    "loses in spells": BadPath(LinkSpec(delay_ms=5, loss_percent=5, burst=10), 300_000, "lost"),
    "reorders": BadPath(LinkSpec(delay_ms=5, reorder_percent=20, reorder_ms=10), 500_000, "reordered"),
    "duplicates": BadPath(LinkSpec(delay_ms=5, duplicate_percent=20), 500_000, "duplicated"),
    "1 Mbit a second": BadPath(LinkSpec(delay_ms=10, rate_mbit=1), 50_000),
    "round trips of 600 ms": BadPath(LinkSpec(delay_ms=300), 50_000),
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The link is perfect until a test says so."""
    with Lab(link=LinkSpec()) as made:
        yield made


def undisturbed(*instances: Instance) -> bool:
    return all(set(instance.restarts().values()) == {0} for instance in instances)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_bytes_arrive_unaltered_over_a_path_that(lab: Lab, tmp_path: Path, path: BadPath) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        lab.link.change(path.spec)
        with Flow(client, server) as up, Flow(server, client, six=True) as down:
            up.wait_for(path.enough_bytes, 40.0)
            down.wait_for(path.enough_bytes, 40.0)
            eventually(
                lambda: all(getattr(stats, path.effect) for stats in lab.link.stats().values()),
                40.0,
                f"packets {path.effect} each way",
            )
            lab.link.change(LinkSpec())  # what is on its way arrives soon
        assert undisturbed(server, client)


@pytest.mark.slow
def test_bytes_arrive_where_packets_above_1280_bytes_vanish_without_a_word(lab: Lab, tmp_path: Path) -> None:
    """Neither end is told of it: the kernels probe for a size that passes, for each connection anew.

    The streams inside have Cubic. With BBR the kernel may send one segment with each timeout for 30 s, once a stream
    has stood still for seconds, however quickly the tunnel passes it on by then.
    """
    for node in lab:
        node.sysctl("net.ipv4.tcp_mtu_probing=1")
    with tunnel(lab, tmp_path) as (server, client):
        lab.link.change(LinkSpec(mtu=1280))
        with Flow(client, server, congestion="cubic") as up, Flow(server, client, congestion="cubic") as down:
            up.wait_for(200_000, 40.0)
            down.wait_for(200_000, 40.0)
        stats = lab.link.stats()
        assert stats["forward"].dropped_too_big and stats["backward"].dropped_too_big
        assert "dialed it again" not in client.log + server.log
        assert undisturbed(server, client)


def test_a_box_that_resets_every_connection_costs_no_byte_once_it_stops(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server) as up, Flow(server, client) as down:
        up.wait_for(100_000)
        down.wait_for(100_000)
        port = server.config["local_addr"].rpartition(":")[2]
        server.node.run(["nft", "-f", "-"], input=RESETS.format(port=port))
        eventually(lambda: client.counter("tcp.connections_lost") >= CONNECTIONS)
        server.node.run(["nft", "delete", "table", "inet", "resets"])
        up.wait_for(100_000)
        down.wait_for(100_000)
        assert undisturbed(server, client)


RESETS = """\
table inet resets {{
    chain input {{
        type filter hook input priority 0;
        tcp dport {port} reject with tcp reset
    }}
}}
"""
