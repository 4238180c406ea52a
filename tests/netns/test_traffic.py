"""Traffic through real tunnels of every shape: pings, TCP and UDP, IPv4 and IPv6, inside and outside."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from pipeline.config import parse
from tests.netns.harness.checked_flow import transfer
from tests.netns.harness.instance import Instance, Instances, client_config, reaches, server_config, tunnel
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab
from tools.load import flows
from tools.load.pattern import connect

UDP_SEGMENT = 103  # linux/udp.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
RECEIVE_BUFFER_BYTES = 4 << 20
BURST_PACKETS = 800  # fewer than wait in the device's queue while nobody reads
PING_PAYLOAD = 56
V4_HEADERS, V6_HEADERS = 20 + 8, 40 + 8  # IP and ICMP
FRAME_BYTES, LENGTH_BYTES, VNET_BYTES = 7, 4, 10  # of a block frame; for each packet in it


ONLY_V4 = {"server": {"tunnel_addr": "10.99.0.1/24"}, "client": {"tunnel_addr": "10.99.0.2/24"}}
ONLY_V6 = {"server": {"tunnel_addr": "fd99::1/64"}, "client": {"tunnel_addr": "fd99::2/64"}}


class Shape(NamedTuple):
    """A tunnel as its two ends are configured."""

    both: Mapping[str, Any] = MappingProxyType({})
    server: Mapping[str, Any] = MappingProxyType({})
    client: Mapping[str, Any] = MappingProxyType({})
    six_outside: bool = False


SHAPES = {
    "defaults": Shape(),
    "ipv6-outside-mtu-1280": Shape({"mtu": 1280}, six_outside=True),
    "no-offload-mtu-9000": Shape({"offload": False, "mtu": 9000}),
    "no-offload-at-the-server": Shape(server={"offload": False}),
    "lanes-2": Shape({"lanes": 2}),
    "lanes-3-to-1": Shape(server={"lanes": 3}),
    "lanes-1-to-2": Shape(client={"lanes": 2}),
    "lanes-3-connections-5": Shape({"lanes": 3}, client={"connections": 5}),
    "connections-4": Shape(client={"connections": 4}),
    "fec-off": Shape({"fec": "off"}),
    "fec-on": Shape({"fec": "on"}),
    "fec-on-lanes-3-to-2": Shape({"fec": "on"}, server={"lanes": 3}, client={"lanes": 2}),
    "fec-off-at-the-server": Shape(server={"fec": "off"}, client={"fec": "on"}),
    "fec-37-and-6-no-offload": Shape({"fec": "on", "fec_data": 37, "fec_parity": 6, "offload": False}),
    "compat": Shape({"compat": True}),
}


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """For a tunnel of the test's own: in the shared lab another one with the same addresses runs."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module", params=SHAPES)
def instances(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    """Each in a lab of its own: a TCP connection inside that has not ended yet, ends in the next tunnel of its lab."""
    shape = SHAPES[request.param]
    with Lab() as lab:
        a = lab.nodes[0]
        server, host = shape.server, a.address
        if shape.six_outside:
            server, host = {**server, "local_addr": f"[::]:{a.free_port()}"}, f"[{a.address6}]"
        directory = tmp_path_factory.mktemp(request.param)
        with tunnel(lab, directory, server=server, client=shape.client, host=host, **shape.both) as made:
            yield made


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", [64, 1440, 3000])
def test_pings_of_every_size_come_back(instances: Instances, size: int, six: bool) -> None:
    server, client = instances
    assert reaches(client, server, count=3, size=size, six=six)


@pytest.mark.parametrize(
    ("streams", "size"), [(1, 16_000_000), (4, 2_000_000), (50, 100_000)], ids=["1-stream", "4-streams", "50-streams"]
)
def test_tcp_streams_arrive_byte_for_byte(instances: Instances, streams: int, size: int) -> None:
    server, client = instances
    transfer(client, server, streams=streams, size=size)
    transfer(server, client, streams=streams, size=size, six=True)


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_burst_of_small_udp_packets_arrives_whole_and_in_order(instances: Instances, six: bool) -> None:
    server, client = instances
    source = random.Random(2)
    sent = [source.randbytes(source.randrange(0, 200)) for _ in range(BURST_PACKETS)]
    assert exchange_datagrams(client, server, sent, six) == sent


def test_a_burst_that_is_more_than_a_long_path_takes_at_once_arrives_in_order(tmp_path: Path) -> None:
    """The first one: no connection knows yet how much it may send. All its packets have copies."""
    source = random.Random(3)
    sent = [source.randbytes(source.randrange(0, 200)) for _ in range(BURST_PACKETS)]
    with Lab(link=LinkSpec(delay_ms=20)) as lab, tunnel(lab, tmp_path, fec="on") as (server, client):
        assert exchange_datagrams(client, server, sent, six=False) == sent


def exchange_datagrams(source: Instance, sink: Instance, sent: list[bytes], six: bool) -> list[bytes]:
    family = socket.AF_INET6 if six else socket.AF_INET
    with (
        sink.node.socket(family, socket.SOCK_DGRAM) as receiving,
        source.node.socket(family, socket.SOCK_DGRAM) as sending,
    ):
        receiving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        receiving.bind(("", 0))
        receiving.settimeout(5)
        sending.connect((sink.address6 if six else sink.address, receiving.getsockname()[1]))
        for datagram in sent:
            sending.send(datagram)
        return [receiving.recv(65536) for _ in sent]


def test_status_shows_every_connection(instances: Instances) -> None:
    server, client = instances
    effective = parse(client.config)
    wanted = effective.connections + effective.light_connections

    def established(instance: Instance) -> list[dict[str, Any]]:
        return [row for row in instance.running()["connections"] if row["state"] == "established"]

    for instance in (server, client):
        rows = eventually(
            lambda: len(established(instance)) == wanted and established(instance),
            5.0,
            f"{wanted} established connection(s) in the status of {instance.name}",
        )
        assert {row["worker"] for row in rows} <= set(instance.workers())
        assert all(0 <= row["last_received_ms_ago"] < 60_000 for row in rows)


def test_nothing_was_refused_or_dropped(instances: Instances) -> None:
    bad = (".dropped_", ".closed_", "_lost", "_errors")
    for instance in instances:
        counted = instance.running()["counters"]
        found = {name: count for name, count in counted.items() if any(word in name for word in bad)}
        assert set(found.values()) == {0}, found
        assert set(instance.restarts().values()) == {0}


def test_a_connection_inside_may_go_both_ways_at_once(instances: Instances) -> None:
    server, client = instances
    near, far = connect(client.node, server.node, server.address)
    with near, far:
        for size in (1, 1399, 65536, 200_000):
            question, answer = random.Random(size).randbytes(size), random.Random(-size).randbytes(size)
            near.sendall(question)
            assert receive(far, size) == question
            far.sendall(answer)
            assert receive(near, size) == answer


def receive(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (data := sock.recv(size - len(got))):
        got += data
    return bytes(got)


def test_a_udp_super_packet_arrives_as_the_datagrams_that_it_stands_for(own_lab: Lab, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(10_000)
    with (
        tunnel(own_lab, tmp_path) as (server, client),
        server.node.socket(kind=socket.SOCK_DGRAM) as receiving,
        client.node.socket(kind=socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind(("", 0))
        receiving.settimeout(5)
        sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sending.sendto(content, (server.address, receiving.getsockname()[1]))
        expected = [content[at : at + 1000] for at in range(0, 10_000, 1000)]
        assert [receiving.recv(65536) for _ in expected] == expected


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_ten_pings_are_counted_to_the_byte_everywhere(own_lab: Lab, tmp_path: Path, six: bool) -> None:
    size = 10 * (PING_PAYLOAD + (V6_HEADERS if six else V4_HEADERS))
    ends = ONLY_V6 if six else ONLY_V4
    with tunnel(own_lab, tmp_path, **ends, fec="off") as (server, client):  # without copies each travels once
        before = {instance: instance.device() for instance in (server, client)}
        counted = {instance: instance.running()["counters"] for instance in (server, client)}

        def grown_by(instance: Instance, name: str) -> int:
            return instance.counter(name) - counted[instance][name]

        def is_counted() -> bool:
            """A worker counts what it has written or sent a moment later than others have it."""
            ways = (server, client), (client, server)
            return all(grown_by(each, "tun.packets_written") == 10 for each in (server, client)) and all(
                grown_by(one, "tcp.bytes_sent") == grown_by(other, "tcp.bytes_received") for one, other in ways
            )

        assert reaches(client, server, count=10, size=PING_PAYLOAD, six=six)
        eventually(is_counted, what="ten packets written at each end, and what was sent has been received")
        for instance in (server, client):
            now = instance.device()
            grown = {name: now[name] - before[instance][name] for name in now}
            assert grown == {"rx_packets": 10, "tx_packets": 10, "rx_bytes": size, "tx_bytes": size}
        for instance, other in ((server, client), (client, server)):
            ours, theirs = (each.running()["counters"] for each in (instance, other))
            mine, far = (
                {name: now[name] - counted[each][name] for name in now}
                for each, now in ((instance, ours), (other, theirs))
            )
            assert (mine["tun.packets_read"], mine["tun.bytes_read"]) == (10, size)
            assert (mine["tun.packets_written"], mine["tun.bytes_written"]) == (10, size)
            on_the_wire = mine["tcp.frames_sent"] * FRAME_BYTES + 10 * (LENGTH_BYTES + VNET_BYTES) + size
            assert mine["tcp.bytes_sent"] == on_the_wire == far["tcp.bytes_received"]
            assert mine["tcp.frames_sent"] == far["tcp.frames_received"]


def test_an_idle_tunnel_with_ipv4_inside_reads_no_packet_at_all(own_lab: Lab, tmp_path: Path) -> None:
    with tunnel(own_lab, tmp_path, **ONLY_V4) as instances:
        for instance in instances:
            assert instance.device()["tx_packets"] == instance.counter("tun.packets_read") == 0


def test_a_server_is_found_by_its_name_at_the_address_that_answers(own_lab: Lab, tmp_path: Path) -> None:
    a, b = own_lab
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{a.address6} tunnel.test\n{a.address} tunnel.test\n")
    serving = server_config(a)  # listens on IPv4 alone
    private_hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    with Instance(a, serving, tmp_path) as server:
        server.wait_until_running()
        with Instance(b, client_config(serving, "tunnel.test"), tmp_path, wrap=private_hosts) as client:
            client.wait_until_connected()
            assert reaches(client, server)


def test_what_is_routed_into_the_tunnel_goes_through_it(own_lab: Lab, tmp_path: Path) -> None:
    a, _ = own_lab
    a.ip("address add 10.98.0.1/32 dev lo", "address add fd98::1/128 dev lo")
    with tunnel(own_lab, tmp_path, client={"routes": ["10.98.0.0/16", "fd98::/48"]}) as (server, client):
        for address in ("10.98.0.1", "fd98::1"):
            assert not flows.ping(client.node, address, count=2, interval=0.01).lost
        eventually(lambda: server.counter("tun.packets_written") >= 4, what="they went through it")


def test_ends_with_different_mtus_say_so_and_carry_what_fits_both(own_lab: Lab, tmp_path: Path) -> None:
    with tunnel(own_lab, tmp_path, server={"mtu": 1300}) as (server, client):
        client.wait_for_log("its tunnel MTU is 1300, ours is 1400")
        server.wait_for_log("its tunnel MTU is 1400, ours is 1300")
        transfer(client, server, streams=1, size=1_000_000)
        transfer(server, client, streams=1, size=1_000_000)
