"""Real instances whose blocks travel in datagrams: what arrives, and what happens when datagrams do not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.peers.peer_datagrams import BULK_BY_TCP
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.datagram_clients import datagrams_pass, in_datagrams, joined, on_connections
from tests.netns.harness.full_tunnel import Tunnel
from tests.netns.harness.hub import BOTH, Client, Hub, established, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.uplink import OUTSIDE, World
from tests.netns.harness.wall import UDP, fake_tcp_to, wall
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab
from tools.load.flows import TcpFlow

pytestmark = pytest.mark.slow

MIB = 1 << 20
THROTTLE = """
table inet throttle {
    chain arrive {
        type filter hook prerouting priority raw; policy accept;
        iifname "link0" meta l4proto udp limit rate over 400 kbytes/second burst 40 kbytes drop
    }
}
"""
THROTTLED_FOR_SECONDS = 40


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


@BOTH
def test_all_bytes_arrive_and_connections_carry_none_of_them(lab: Lab, tmp_path: Path, six: bool) -> None:
    with Hub(lab, tmp_path, carrier="auto", lanes=2) as hub:
        client = joined(hub, lab["one"])
        before = on_connections(client) + on_connections(hub.server)
        for source, sink in ((client, hub.server), (hub.server, client)):
            sent = in_datagrams(source)
            transfer(source, sink, streams=3, size=4 * MIB, six=six)
            assert in_datagrams(source) - sent > 12 * MIB
        assert on_connections(client) + on_connections(hub.server) - before < 100_000
        assert hub.server.restarts() == dict.fromkeys(hub.server.workers(), 0)


def test_clients_reach_each_other_whatever_carrier_each_of_them_has(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        one = joined(hub, lab["one"])
        two = hub.join(lab["two"], carrier="tcp")
        sent, taken = in_datagrams(hub.server), on_connections(hub.server)
        transfer(one, two, streams=2, size=2 * MIB)
        assert on_connections(hub.server) - taken > 4 * MIB
        transfer(two, one, streams=2, size=2 * MIB)
        assert in_datagrams(hub.server) - sent > 4 * MIB


def test_where_datagrams_end_connections_go_on_and_later_datagrams_again(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        with Flow(client, hub.server) as flow:
            flow.wait_for(MIB)
            with wall(hub.node, UDP, fake_tcp_to(hub.port + 1)):
                flow.wait_for(MIB)
                before = on_connections(client)
                flow.wait_for(4 * MIB)
                assert on_connections(client) - before > MIB
            eventually(lambda: _sends_datagrams_alone(client, flow), 20, "datagrams again")


def _sends_datagrams_alone(source: Instance, flow: Flow) -> bool:
    before = on_connections(source), in_datagrams(source)
    flow.wait_for(MIB)
    return on_connections(source) - before[0] < MIB // 8 and in_datagrams(source) - before[1] > MIB // 2


def test_with_udp_nothing_goes_by_connections_while_no_datagramdatagrams_pass(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="udp") as hub:
        client = joined(hub, lab["one"], "udp")
        with wall(hub.node, UDP), wall(client.node, UDP):
            eventually(lambda: not reaches(client.node, hub.server.address, count=1, seconds=0.3), what="the wall")
            before = on_connections(client) + on_connections(hub.server)
            assert not reaches(client.node, hub.server.address, count=1, seconds=2)
            for node, address in ((client.node, hub.server.address), (hub.node, client.address)):
                for _ in range(5):
                    assert not reaches(node, address, count=1, seconds=0.2)
            assert on_connections(client) + on_connections(hub.server) == before
            assert established(client) == 8
        eventually(lambda: reaches(client.node, hub.server.address, count=1, seconds=0.3), 20, "datagrams again")


@pytest.mark.parametrize("of_server", [False, True], ids=["client", "server"])
def test_a_flow_survives_the_death_of_a_dgram_worker(lab: Lab, tmp_path: Path, of_server: bool) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        end = hub.server if of_server else client
        with Flow(client, hub.server) as flow, Flow(hub.server, client) as back:
            for _ in range(3):
                flow.wait_for(MIB)
                back.wait_for(MIB)
                end.wait_until_replaced("dgram-0", end.signal_worker("dgram-0", signal.SIGKILL))
            flow.wait_for(MIB)
            back.wait_for(MIB)
        assert end.restarts()["dgram-0"] == 3
        assert {name for name, count in end.restarts().items() if count} == {"dgram-0"}


def test_other_workers_die_and_the_path_goes_on(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        with Flow(client, hub.server) as flow:
            for name in ("tun-0", "tcp-0", "fec-0"):
                flow.wait_for(MIB)
                hub.server.wait_until_replaced(name, hub.server.signal_worker(name, signal.SIGKILL))
            flow.wait_for(MIB)


def test_a_client_with_another_address_is_followed(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        with Flow(hub.server, client) as flow:
            flow.wait_for(MIB)
            client.node.ip(f"address del {client.node.address}/24 dev link0", "address add 10.77.0.99/24 dev link0")
            flow.wait_for(MIB)
            eventually(lambda: _sends_datagrams_alone(hub.server, flow), 20, "datagrams to the other address")


def test_over_a_path_that_loses_packets_all_bytes_arrive(tmp_path: Path) -> None:
    link = LinkSpec(delay_ms=10, rate_mbit=50, loss_percent=2)
    with Lab(names=("hub", "one"), link=link) as lab, Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        transfer(client, hub.server, streams=2, size=2 * MIB)
        transfer(hub.server, client, streams=2, size=2 * MIB)
        assert hub.server.counter("dgram.blocks_recovered") + hub.server.counter("dgram.segments_repeated")


def test_a_server_with_two_lanes_and_a_client_with_one_over_ipv6(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto", lanes=2) as hub:
        line = hub.invite("one", "--address", f"[{hub.node.address6}]:{hub.port}")
        client = hub.adopt("one", Client(lab["one"], line, tmp_path, carrier="auto", lanes=1))
        client.wait_until_joined()
        eventually(lambda: datagrams_pass(client, hub), what="a path of datagrams both ways")
        before = on_connections(client) + on_connections(hub.server)
        transfer(client, hub.server, streams=3, size=2 * MIB)
        transfer(hub.server, client, streams=3, size=2 * MIB)
        assert on_connections(client) + on_connections(hub.server) - before < 100_000


def test_after_a_start_of_the_server_and_after_lost_memory_datagrams_go_on(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        for instance in (hub.server, client):
            pids = instance.worker_pids()
            next(Path("/dev/shm").glob(f"tunnel@{instance.name}@*@scoreboard*")).unlink()
            for name, pid in pids.items():
                instance.wait_until_replaced(name, pid, 20)
            eventually(lambda: datagrams_pass(client, hub), 20, "datagrams with other memory")
        hub.server.stop()
        hub.start_again()
        eventually(lambda: datagrams_pass(client, hub), 20, "datagrams of another session")


def test_with_a_full_tunnel_datagrams_go_around_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        world = World(stack)
        tunnel = Tunnel(stack, world, tmp_path, hub={"carrier": "auto"}, carrier="auto")
        client = tunnel.joined()
        eventually(lambda: datagrams_pass(client, tunnel.hub), what="a path of datagrams both ways")
        assert reaches(client.node, OUTSIDE)


def test_bulk_goes_by_tcp_where_datagrams_are_throttled_and_light_flows_stay(tmp_path: Path) -> None:
    with Lab(names=("hub", "one"), link=LinkSpec(delay_ms=5, rate_mbit=40)) as lab:
        for node in lab:
            node.run(["nft", "-f", "-"], input=THROTTLE)
        with Hub(lab, tmp_path, carrier="auto") as hub:
            client = joined(hub, lab["one"])
            with TcpFlow(client.node, hub.node, hub.server.address, seconds=THROTTLED_FOR_SECONDS) as flow:
                eventually(lambda: _datagrams(client)["reason"] == BULK_BY_TCP, 30, "bulk by TCP")
                assert _datagrams(client)["state"] == "open" and client.running()["peers"][0]["carrier"] == "udp"
                flow.wait_for_bytes(4 * MIB, seconds=20)
                before = in_datagrams(client)
                assert reaches(client.node, hub.server.address, count=10)
                assert in_datagrams(client) > before
                assert _datagrams(client)["reason"] == BULK_BY_TCP and _datagrams(hub.server)["reason"] != BULK_BY_TCP


def test_a_path_that_becomes_narrower_under_load_carries_smaller_segments(tmp_path: Path) -> None:
    wide = LinkSpec(delay_ms=5, rate_mbit=40)
    with Lab(names=("hub", "one"), link=wide) as lab, Hub(lab, tmp_path, carrier="udp") as hub:
        client = joined(hub, lab["one"], "udp")
        eventually(lambda: _datagrams(client)["segment_bytes"] > 1400, what="large segments")
        with TcpFlow(client.node, hub.node, hub.server.address, seconds=60) as flow:
            flow.wait_for_bytes(MIB)
            lab.link.change(msgspec.structs.replace(wide, mtu=1300))
            eventually(lambda: _datagrams(client)["segment_bytes"] < 1300, what="smaller segments")
            flow.wait_for_bytes(4 * MIB, seconds=40)
            assert _datagrams(client)["state"] == "open"


def _datagrams(instance: Instance) -> dict[str, Any]:
    return instance.running()["peers"][0]["datagrams"]
