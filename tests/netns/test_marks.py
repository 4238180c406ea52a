"""Marks (DSCP) of what an end sends, as a router on the path sees them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.instance import Instance, Instances, reaches, tunnel
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import UdpFlow

ETH_P_ALL = 3
ETHERNET_BYTES = 14
IPPROTO_TCP = 6
SECONDS = 10.0
COUNT = 1500
EF, LE, CS1, CS2 = 46, 1, 8, 16
PING_BYTES = 84
SETTINGS = {"connections": 2, "light_connections": 1, "keepalive": 0.2}
CONNECTIONS = 3


@pytest.fixture(scope="module", params=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    """The server marks its light packets, the client its bulk as well. A client by IPv4 meets a socket of IPv6."""
    with Lab() as lab:
        port = lab.nodes[0].free_port()
        host = lab.nodes[0].address
        if request.param == "ipv6":
            host = f"[{lab.nodes[0].address6}]"
        server = {"local_addr": f":{port}", "dscp_light": "ef"}
        client = {"dscp_light": EF, "dscp_bulk": "LE"}
        with tunnel(lab, tmp_path_factory.mktemp("marks"), host=host, server=server, client=client, **SETTINGS) as made:
            yield made


def marks(ends: Instances, ours: bool) -> set[int]:
    """Marks of the segments that pass the client's link: those that it sends, or gets.

    Pings are on light connections, and keepalives on the others."""
    server, client = ends
    port = int(server.config["local_addr"].rpartition(":")[2])
    found = set()
    with client.node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.bind(("link0", ETH_P_ALL))
        sock.settimeout(SECONDS)
        assert reaches(client, server)

        def has_two() -> bool:
            mark = mark_of(sock.recv(65535), port, ours)
            if mark is not None:
                found.add(mark)
            return len(found) == 2

        eventually(has_two, SECONDS, "segments with two marks")
    return found


def mark_of(frame: bytes, port: int, ours: bool) -> int | None:
    packet = frame[ETHERNET_BYTES:]
    if packet[0] >> 4 == 4:
        protocol, at, traffic_class = packet[9], (packet[0] & 15) * 4, packet[1]
    else:
        protocol, at, traffic_class = packet[6], 40, int.from_bytes(packet[:2], "big") >> 4 & 0xFF
    end = packet[at + 2 : at + 4] if ours else packet[at : at + 2]
    if protocol != IPPROTO_TCP or int.from_bytes(end, "big") != port:
        return None
    return traffic_class >> 2


def test_each_end_marks_what_it_sends_by_the_class_of_the_connection(ends: Instances) -> None:
    assert marks(ends, ours=True) == {EF, LE}
    assert marks(ends, ours=False) == {EF, 0}


def test_a_reload_brings_another_mark(ends: Instances) -> None:
    _, client = ends
    pid, before = client.worker_pids()["tcp-0"], client.counter("tcp.connections_established")
    client.write({**client.config, "dscp_bulk": "CS1"})
    assert client.command("reload").returncode == 0
    client.wait_until_replaced("tcp-0", pid)
    client.wait_until_connected(before + CONNECTIONS)  # a handshake has no mark
    eventually(lambda: reaches(*ends[::-1]), 10)
    assert marks(ends, ours=True) == {EF, CS1}


@pytest.mark.slow
def test_rules_make_packets_bulk_and_light(lab: Lab, tmp_path: Path) -> None:
    """The client has rules, the server has none: with them a flow of 14 Mbit/s is light, else it is not."""
    settings = {"fec": "off", "light_connections": 1, "connections": 1}
    rules = {"always_bulk": ["CS1"], "always_light": ["udp/1-65535"]}
    with tunnel(lab, tmp_path, client=rules, **settings) as (server, client):
        for mark, is_light in ((CS1, False), (0, True)):
            before = light_packets(client)
            client.node.run(["ping", "-c", "20", "-i", "0.01", "-Q", hex(mark << 2), server.address])
            eventually(lambda: (light_packets(client) >= before + 20) is is_light)
        assert light_share(server, client) < 0.5
        # a source that stood still catches up with more than the rate of rules, and what is beyond it is bulk
        eventually(lambda: light_share(client, server) > 0.9, 60, "a flow that is light")


def light_share(source: Instance, sink: Instance) -> float:
    """Of the packets of a flow of 14 Mbit/s."""
    before = light_packets(source)
    with UdpFlow(source.node, sink.node, sink.address, rate=1500, size=1200) as flow:
        eventually(lambda: len(flow.arrivals) >= COUNT, 20)
        sent = flow.end()
        flow.wait_for_all(time.monotonic() + SECONDS)  # then they are counted as well
        return (light_packets(source) - before) / sent


@pytest.mark.parametrize("fec", ["off", "on"])
def test_each_class_arrives_whole_and_is_counted_at_the_end_that_sends_it(lab: Lab, tmp_path: Path, fec: str) -> None:
    with tunnel(lab, tmp_path, client={"class_by_dscp": True, "always_bulk": ["CS2"]}, fec=fec) as (server, client):
        for mark, name in ((EF, "voice"), (0, "normal_light"), (LE, "bulk"), (CS2, "bulk")):
            before = class_bytes(client)
            client.node.run(["ping", "-c", "20", "-i", "0.01", "-Q", hex(mark << 2), server.address])
            eventually(lambda: class_bytes(client)[name] >= before[name] + 20 * PING_BYTES, what=f"bytes of {name}")
            grown = {each: count - before[each] for each, count in class_bytes(client).items()}
            assert {each for each, count in grown.items() if count > 5 * PING_BYTES} == {name}
        assert class_bytes(server)["voice"] == 0


def class_bytes(end: Instance) -> dict[str, int]:
    (peer,) = end.running()["peers"]
    counted: dict[str, int] = peer["class_bytes"]
    return counted


def light_packets(end: Instance) -> int:
    return end.counter("tun.packets_light_read")
