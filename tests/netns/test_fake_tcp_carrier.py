"""Real instances whose blocks travel behind TCP headers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from pipeline.faketcp.packet import RST, SYN
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.datagram_clients import datagrams_pass, in_datagrams, joined, on_connections
from tests.netns.harness.fake_tcp import Routed, Watch, ip
from tests.netns.harness.full_tunnel import Tunnel
from tests.netns.harness.hub import BOTH, Client, Hub, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.uplink import OUTSIDE, World
from tests.netns.harness.wall import UDP, fake_tcp_from, wall
from tests.netns.test_datagram_status import changes
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab

pytestmark = pytest.mark.slow

MIB = 1 << 20


def carrier(client: Client) -> str:
    found: str = client.running()["server"]["carrier"]
    return found


@pytest.fixture
def routed() -> Iterator[Routed]:
    """A NAT and a firewall between the ends, which lets nothing through that is outside a connection's window."""
    with Routed() as made:
        yield made


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


@BOTH
def test_all_bytes_arrive_and_connections_carry_none_of_them(lab: Lab, tmp_path: Path, six: bool) -> None:
    with Hub(lab, tmp_path, carrier="faketcp", lanes=2) as hub:
        client = joined(hub, lab["one"], "faketcp")
        before = on_connections(client) + on_connections(hub.server)
        for source, sink in ((client, hub.server), (hub.server, client)):
            sent = in_datagrams(source)
            transfer(source, sink, streams=3, size=4 * MIB, six=six)
            assert in_datagrams(source) - sent > 12 * MIB
        assert on_connections(client) + on_connections(hub.server) - before < 100_000
        assert hub.server.restarts() == dict.fromkeys(hub.server.workers(), 0)


def _sends_datagrams_alone(source: Instance, flow: Flow) -> bool:
    before = on_connections(source), in_datagrams(source)
    flow.wait_for(MIB)
    return on_connections(source) - before[0] < MIB // 8 and in_datagrams(source) - before[1] > MIB // 2


def test_where_udp_ends_fake_tcp_goes_on_and_later_udp_again_and_no_byte_is_lost(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"], "auto")
        assert carrier(client) == "udp" and client.counter("dgram.flows_fake_opened") == 0
        with Flow(client, hub.server) as flow, Flow(hub.server, client) as back:
            flow.wait_for(MIB)
            with wall(hub.node, UDP):
                eventually(lambda: carrier(client) == "faketcp", 20, "fake TCP")
                eventually(lambda: _sends_datagrams_alone(client, flow), 20, "datagrams of the client")
                eventually(lambda: _sends_datagrams_alone(hub.server, back), 20, "datagrams of the server")
                about = client.running()["peers"][0]["datagrams"]
                assert about["reason"].startswith("UDP: ") and about["endpoint"].endswith(f":{hub.port + 1}")
            eventually(lambda: carrier(client) == "udp", 30, "UDP again")
            flow.wait_for(MIB)
            back.wait_for(MIB)
        texts = [text for _, text in changes(client)]
        assert texts[0].startswith("by UDP to ") and any(text.startswith("by fake TCP to ") for text in texts)


def test_where_udp_is_blocked_from_the_beginning_fake_tcp_is_used_and_where_both_are_connections(
    lab: Lab, tmp_path: Path
) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub, wall(hub.node, UDP):
        client = hub.join(lab["one"], carrier="auto")
        eventually(lambda: carrier(client) == "faketcp", 20, "fake TCP")
        with Flow(client, hub.server) as flow:
            flow.wait_for(MIB)
            with wall(lab["one"], fake_tcp_from(hub.port + 1)):
                eventually(lambda: carrier(client) == "tcp", 20, "connections")
                before = on_connections(client)
                flow.wait_for(2 * MIB)
                assert on_connections(client) - before > MIB
            eventually(lambda: carrier(client) == "faketcp", 30, "fake TCP again")
            flow.wait_for(MIB)


@pytest.mark.parametrize("of_server", [False, True], ids=["client", "server"])
def test_a_flow_inside_survives_the_death_of_a_dgram_worker(lab: Lab, tmp_path: Path, of_server: bool) -> None:
    with Hub(lab, tmp_path, carrier="faketcp") as hub:
        client = joined(hub, lab["one"], "faketcp")
        end = hub.server if of_server else client
        with Flow(client, hub.server) as flow, Flow(hub.server, client) as back:
            for _ in range(3):
                flow.wait_for(MIB)
                back.wait_for(MIB)
                end.wait_until_replaced("dgram-0", end.signal_worker("dgram-0", signal.SIGKILL))
            flow.wait_for(MIB)
            back.wait_for(MIB)
        assert {name for name, count in end.restarts().items() if count} == {"dgram-0"}


def test_with_several_lanes_at_both_ends_and_udp_blocked_each_lane_has_a_flow(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto", lanes=2) as hub, wall(hub.node, UDP):
        client = hub.join(lab["one"], carrier="auto", lanes=2)
        eventually(lambda: client.counter("dgram.flows_fake_opened") == 2, 20, "a flow of each lane")
        eventually(lambda: datagrams_pass(client, hub), 20, "a path of datagrams both ways")
        before = on_connections(client) + on_connections(hub.server)
        transfer(client, hub.server, streams=4, size=2 * MIB)
        transfer(hub.server, client, streams=4, size=2 * MIB)
        assert on_connections(client) + on_connections(hub.server) - before < 200_000


def test_a_reload_that_replaces_all_workers_costs_no_byte(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="faketcp") as hub:
        client = joined(hub, lab["one"], "faketcp")
        with Flow(client, hub.server) as flow:
            flow.wait_for(MIB)
            hub.configure(anew=True, idle="spin-then-block")
            flow.wait_for(2 * MIB)
        eventually(lambda: datagrams_pass(client, hub), what="a path of datagrams both ways")


def test_a_client_with_another_address_is_followed(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="faketcp") as hub:
        client = joined(hub, lab["one"], "faketcp")
        with Flow(hub.server, client) as flow:
            flow.wait_for(MIB)
            client.node.ip(f"address del {client.node.address}/24 dev link0", "address add 10.77.0.99/24 dev link0")
            flow.wait_for(MIB)
            eventually(lambda: _sends_datagrams_alone(hub.server, flow), 20, "datagrams to the other address")


def test_over_a_path_that_loses_packets_all_bytes_arrive(tmp_path: Path) -> None:
    link = LinkSpec(delay_ms=10, rate_mbit=50, loss_percent=2)
    with Lab(names=("hub", "one"), link=link) as lab, Hub(lab, tmp_path, carrier="faketcp") as hub:
        client = joined(hub, lab["one"], "faketcp")
        transfer(client, hub.server, streams=2, size=2 * MIB)
        transfer(hub.server, client, streams=2, size=2 * MIB)
        assert hub.server.counter("dgram.blocks_recovered") + hub.server.counter("dgram.segments_repeated")


def test_after_a_start_of_the_server_and_after_lost_memory_datagrams_go_on(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="faketcp") as hub:
        client = joined(hub, lab["one"], "faketcp")
        for instance in (hub.server, client):
            pids = instance.worker_pids()
            next(Path("/dev/shm").glob(f"tunnel@{instance.name}@*@scoreboard*")).unlink()
            for name, pid in pids.items():
                instance.wait_until_replaced(name, pid, 20)
            eventually(lambda: datagrams_pass(client, hub), 20, "datagrams with other memory")
        hub.server.stop()
        hub.start_again()
        eventually(lambda: datagrams_pass(client, hub), 20, "datagrams of another session")


def test_with_a_full_tunnel_it_goes_around_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        world = World(stack)
        tunnel = Tunnel(stack, world, tmp_path, hub={"carrier": "faketcp"}, carrier="faketcp")
        client = tunnel.joined()
        eventually(lambda: datagrams_pass(client, tunnel.hub), what="a path of datagrams both ways")
        assert reaches(client.node, OUTSIDE)


def test_without_the_right_to_packet_sockets_auto_does_without_and_says_so(lab: Lab, tmp_path: Path) -> None:
    bare = ["setpriv", "--bounding-set", "-net_raw"]
    with Hub(lab, tmp_path, carrier="auto", wrap=bare) as hub:
        client = joined(hub, lab["one"], "auto")
        assert carrier(client) == "udp"
        assert any("CAP_NET_RAW" in note for note in hub.server.running()["notes"])
        with Flow(client, hub.server) as flow, wall(hub.node, UDP):
            eventually(lambda: carrier(client) == "tcp", 20, "connections")
            flow.wait_for(MIB)


@BOTH
def test_a_nat_and_a_firewall_that_follows_windows_see_a_clean_conversation(
    routed: Routed, tmp_path: Path, six: bool
) -> None:
    with Hub(cast("Lab", routed), tmp_path, carrier="faketcp") as hub:
        address = f"[{routed.server.address6}]" if six else routed.server.address
        line = hub.invite("one", "--address", f"{address}:{hub.port}")
        before, port = routed.invalid(), hub.port + 1
        with Watch(routed.router, "near") as watch:
            client = hub.adopt("one", Client(routed.client, line, tmp_path, carrier="faketcp"))
            client.wait_until_joined()
            eventually(lambda: datagrams_pass(client, hub), what="a path of datagrams both ways")
            transfer(client, hub.server, streams=2, size=2 * MIB)
            transfer(hub.server, client, streams=2, size=2 * MIB)
        assert routed.invalid() == before
    ours = [each for each in watch.packets if port.to_bytes(2, "big") in (each.key[-4:-2], each.key[-2:])]
    assert sum(bool(each.flags & SYN) for each in ours) == 2, "one handshake"
    assert not [each for each in ours if each.flags & RST]
    with_bytes = [(each.key, each.sequence) for each in ours if each.end > each.begin]
    assert len(with_bytes) == len(set(with_bytes)) > 100, "no byte is sent twice"


def test_behind_a_link_of_1400_bytes_segments_are_as_small_as_they_have_to_be(routed: Routed, tmp_path: Path) -> None:
    """And the router says nothing of it."""
    ip(routed.router, "link set near mtu 1400")
    silent = "chain own { type filter hook output priority 0; icmp type destination-unreachable drop\n }"
    routed.router.run(["nft", "-f", "-"], input=f"table inet silent {{\n {silent}\n }}\n")
    with Hub(cast("Lab", routed), tmp_path, carrier="faketcp") as hub:
        client = joined(hub, routed.client, "faketcp")
        transfer(client, hub.server, streams=1, size=2 * MIB)
        transfer(hub.server, client, streams=1, size=2 * MIB)
        eventually(lambda: client.running()["peers"][0]["datagrams"]["segment_bytes"] > 1300, 20, "the size")
        assert client.running()["peers"][0]["datagrams"]["segment_bytes"] <= 1400 - 52


@pytest.mark.parametrize("trouble", ["a box resets the flow", "a NAT forgets it", "rules of the firewall are lost"])
def test_reports_of_users_of_such_programs_are_no_trouble(routed: Routed, tmp_path: Path, trouble: str) -> None:
    with Hub(cast("Lab", routed), tmp_path, carrier="faketcp") as hub:
        client = joined(hub, routed.client, "faketcp")
        with Flow(client, hub.server) as flow, Flow(hub.server, client) as back:
            for each in (flow, back):
                each.wait_for(MIB)
            match trouble:
                case "a box resets the flow":
                    port = str(hub.port + 1)
                    with routed.rule("tcp", "dport", port, "reject", "with", "tcp", "reset"):
                        eventually(lambda: client.counter("dgram.flows_fake_ended"), what="a reset")
                case "a NAT forgets it":
                    routed.forget()
                case _:
                    for node in (client.node, hub.node):
                        node.run(["nft", "flush", "ruleset"])
            for each in (flow, back):
                each.wait_for(4 * MIB)


def test_another_gateway_is_taken_as_the_routes_change(tmp_path: Path) -> None:
    with Lab(names=("hub", "one", "old", "new")) as lab, Hub(lab, tmp_path, carrier="faketcp") as hub:
        node = lab["one"]
        for gateway in (lab["old"], lab["new"]):
            gateway.sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
            gateway.sysctl("net.ipv4.conf.link0.send_redirects=0")
        node.sysctl("net.ipv4.conf.all.accept_redirects=0")
        node.ip(f"route add {hub.node.address}/32 via {lab['old'].address}")
        client = joined(hub, node, "faketcp")
        with Flow(client, hub.server) as flow:
            flow.wait_for(MIB)
            node.ip(f"route replace {hub.node.address}/32 via {lab['new'].address}")
            lab["old"].ip("link set link0 down")
            flow.wait_for(16 * MIB)
            eventually(lambda: _sends_datagrams_alone(client, flow), 20, "datagrams by the new gateway")
