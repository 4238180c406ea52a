"""Forward error correction where it matters: a path that loses packets, a connection that dies or falls silent, a
worker that is killed with blocks in hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import established
from tests.netns.harness.instance import Instance, Instances, reaches, tunnel
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab
from tools.load import flows

PATH = LinkSpec(delay_ms=5.0, rate_mbit=50.0, queue_packets=None, queue_bytes=250_000)
LOSSY = LinkSpec(delay_ms=5.0, rate_mbit=50.0, queue_packets=None, queue_bytes=250_000, loss_percent=2.0)
ENOUGH_BYTES = 3_000_000


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The link loses nothing until a test says so: the connections stand before."""
    with Lab(link=PATH) as made:
        yield made


def recovered(instance: Instance) -> int:
    return sum(instance.counter(f"fec.blocks_recovered_{lost}") for lost in range(1, 7))


def carriers(instance: Instance) -> list[int]:
    """The local ports of the client's connections for bulk, in the order in which they were dialled."""
    port = instance.config["remote_addr"].rpartition(":")[2]
    said = instance.node.run(
        ["ss", "--tcp", "--numeric", "--no-header", "state", "established", f"( dport = :{port} )"]
    )
    return sorted(int(line.split()[2].rpartition(":")[2]) for line in said.stdout.splitlines())


@pytest.mark.slow
def test_pings_through_a_path_that_loses_packets_all_come_back(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="on") as (server, client):
        lab.link.change(LOSSY)
        pings = flows.ping(client.node, server.address, count=200, interval=0.02, timeout=3.0)
        assert not pings.lost
        lost = lab.link.stats()
        assert lost["forward"].lost + lost["backward"].lost > 0
        copied = client.counter("tun.copies_added")
        assert copied >= 190 * 2  # a connection that is dialed anew carries none meanwhile
        eventually(lambda: server.counter("tun.copies_unneeded") >= copied)  # all of them arrive in the end


def test_bulk_over_a_path_that_loses_packets_is_recovered_and_that_is_counted(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="on") as (server, client):
        lab.link.change(LOSSY)
        with Flow(client, server) as flow:
            flow.wait_for(ENOUGH_BYTES)
        assert recovered(server) > 0
        assert server.counter("fec.dropped_block_checksum") == 0
        assert client.counter("fec.blocks_coded") > 0


def test_auto_raises_parity_on_a_path_that_loses_packets_and_status_says_so(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="auto") as (server, client):
        assert client.running()["fec"]["parity"] == 0
        lab.link.change(LOSSY)
        with Flow(client, server) as flow:
            flow.wait_for(100_000)
            eventually(lambda: client.running()["fec"]["parity"] > 0)
            eventually(lambda: client.counter("fec.blocks_coded") > 0)
            flow.wait_for(100_000)
            eventually(lambda: "fec auto, now 10 + " in client.command("status").stdout, 20.0)


@pytest.mark.alone
def test_auto_sends_no_parity_on_a_path_that_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        with Flow(client, server) as flow:
            flow.wait_for(ENOUGH_BYTES)
        assert client.counter("fec.blocks_coded") == 0
        assert 0 < client.counter("tun.copies_added") <= client.counter("tun.blocks_light_filled")


def test_every_ping_comes_back_once_from_the_first_one_on(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        pings = flows.ping(client.node, server.address, count=100, interval=0.01, timeout=10.0)
        assert (pings.sent, pings.lost, pings.duplicates) == (100, [], 0)
        eventually(lambda: server.counter("tun.copies_unneeded") == client.counter("tun.copies_added"))
        assert client.counter("tun.copies_added") >= 95


@pytest.mark.alone
def test_a_worker_that_is_replaced_and_an_end_that_is_started_again_call_for_no_parity(
    lab: Lab, tmp_path: Path
) -> None:
    with tunnel(lab, tmp_path) as instances, Flow(instances[1], instances[0]) as flow:
        flow.wait_for(100_000)
        for instance in instances:
            pid = instance.signal_worker("tcp-0", signal.SIGKILL)
            instance.wait_until_replaced("tcp-0", pid)
            flow.wait_for(100_000)
        for instance, other in (instances, instances[::-1]):
            eventually(lambda: all(established(each) == 8 for each in instances))
            lost = other.counter("tcp.connections_lost")
            assert instance.command("restart").returncode == 0
            eventually(lambda: other.counter("tcp.connections_lost") >= lost + 8)
            flow.wait_for(100_000)
        for instance in instances:
            assert instance.running()["fec"]["parity"] == 0
            assert instance.counter("tcp.parity_raised") == instance.counter("fec.blocks_coded") == 0


def test_a_connection_cut_under_load_costs_no_packet(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="on") as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        before = server.counter("fec.blocks_expired")
        client.node.run(["ss", "--kill", "--tcp", "--numeric", f"( sport = :{carriers(client)[0]} )"])
        eventually(lambda: client.counter("tcp.connections_lost") == 1)
        flow.wait_for(ENOUGH_BYTES)
        assert server.counter("fec.blocks_expired") == before
        eventually(lambda: client.counter("tcp.connections_established") == 9)


@pytest.mark.slow
def test_a_connection_that_falls_silent_under_load_holds_nothing_up(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="on") as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        lab.link.silence(carriers(client)[0])
        flow.wait_for(ENOUGH_BYTES)
        assert reaches(client, server)
        assert client.counter("tcp.connections_lost") == 0  # it is not even noticed yet
        assert recovered(server) > 0


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
def test_a_fec_worker_killed_with_blocks_in_hand_costs_no_byte(lab: Lab, tmp_path: Path, which: int) -> None:
    with (
        tunnel(lab, tmp_path, fec="on") as instances,
        Flow(instances[1], instances[0]) as up,
        Flow(instances[0], instances[1]) as down,
    ):
        for _ in range(3):
            up.wait_for(100_000)
            down.wait_for(100_000)
            pid = instances[which].signal_worker("fec-0", signal.SIGKILL)
            instances[which].wait_until_replaced("fec-0", pid)
        up.wait_for(100_000)
        down.wait_for(100_000)


def test_one_connection_with_fec_works_and_both_ends_say_that_it_cannot_help(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, fec="on", client={"connections": 1}) as instances:
        with Flow(instances[1], instances[0]) as flow:
            flow.wait_for(100_000)
        for instance in instances:
            instance.wait_for_log("there is one connection")
            assert instance.log.count("there is one connection") == 1


def test_an_end_without_fec_gets_plain_blocks_and_the_other_says_so(lab: Lab, tmp_path: Path) -> None:
    instances: Instances
    with tunnel(lab, tmp_path, server={"fec": "off"}, client={"fec": "on"}) as instances:
        server, client = instances
        assert reaches(client, server) and reaches(server, client)
        with Flow(client, server) as flow:
            flow.wait_for(100_000)
        assert client.counter("fec.blocks_coded") == 0
        client.wait_for_log("the other end has fec off")
        assert client.running()["fec"]["peer_accepts_shards"] is False
