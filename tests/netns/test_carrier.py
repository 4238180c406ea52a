"""Sessions whose blocks may travel in datagrams: both ends have their secrets and sockets, and no others have them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LocalError
from pipeline.policy import bypass
from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import KeyTable
from tests.harness.process_memory import found_in
from tests.netns.harness.full_tunnel import Tunnel
from tests.netns.harness.hub import Hub, established, hub_config, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.secret_tables import records_in
from tests.netns.harness.uplink import World
from tests.support import eventually
from tools.lab.network import Lab, Node

LANES = 2
SETTINGS = {"carrier": "auto", "lanes": LANES}


def secrets_in(instance: Instance) -> list[DatagramSecrets]:
    return records_in(instance, DatagramSecretTable)


def sockets(node: Node) -> list[dict[str, Any]]:
    """The UDP sockets of a node that are bound: port, inode, mark."""
    found = []
    for line in node.run(["ss", "-Hluane"]).stdout.splitlines():
        words = dict(word.split(":", 1) for word in line.split() if word.startswith(("ino:", "fwmark:")))
        found.append(
            {
                "port": int(line.split()[3].rpartition(":")[2]),
                "inode": int(words["ino"]),
                "mark": int(words.get("fwmark", "0"), 0),
            }
        )
    return found


def held(pid: int) -> set[int]:
    """The inodes of the sockets that a process has."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def dgram_workers(instance: Instance) -> list[str]:
    return [each for each in instance.workers() if each.startswith("dgram")]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


@pytest.mark.slow
def test_both_ends_of_a_session_have_its_secrets_and_a_socket_for_each_lane(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, **SETTINGS) as hub:
        client = hub.join(lab["one"], **SETTINGS)
        (theirs,), (ours,) = secrets_in(hub.server), secrets_in(client)
        assert (ours.suite, ours.send, ours.receive) == (theirs.suite, theirs.receive, theirs.send)
        assert (ours.host, ours.port, ours.scope, ours.fake_tcp_port) == DatagramServer.at(
            lab.nodes[0].address, hub.port, 0, hub.port + 1
        )
        assert (theirs.host, theirs.port, theirs.fake_tcp_port) == (bytes(16), 0, 0)
        assert [each["port"] for each in sockets(hub.node)] == [hub.port] * LANES
        assert len({each["port"] for each in sockets(lab["one"])}) == LANES
        for instance, node in ((hub.server, hub.node), (client, lab["one"])):
            inodes = {each["inode"] for each in sockets(node)}
            pids = instance.worker_pids()
            each_has = [held(pids[name]) & inodes for name in dgram_workers(instance)]
            assert len(each_has) == LANES and all(len(one) == 1 for one in each_has)
            assert set.union(*each_has) == inodes <= held(instance.process.pid)


@pytest.mark.slow
def test_a_worker_that_is_replaced_has_the_socket_of_its_predecessor(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, **SETTINGS) as hub:
        client = hub.join(lab["one"], **SETTINGS)
        before, bound = secrets_in(client), sockets(lab["one"])
        inodes = {each["inode"] for each in bound}
        has = held(client.worker_pids()["dgram-1"]) & inodes
        client.wait_until_replaced("dgram-1", client.signal_worker("dgram-1", signal.SIGKILL))
        assert held(client.worker_pids()["dgram-1"]) & inodes == has and len(has) == 1
        assert sockets(lab["one"]) == bound and secrets_in(client) == before


@pytest.mark.slow
def test_dgram_workers_have_the_secrets_of_datagrams_and_no_key_of_a_block(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, **SETTINGS) as hub:
        client = hub.join(lab["one"], **SETTINGS)
        for instance in (hub.server, client):
            (of_datagrams,), (of_blocks,) = secrets_in(instance), records_in(instance, KeyTable)
            wanted = {
                "datagrams": of_datagrams.send,
                "datagrams back": of_datagrams.receive,
                "blocks": of_blocks.send,
                "blocks back": of_blocks.open_now,
            }
            for name, pid in instance.pids().items():
                found = found_in(pid, wanted)
                match name.split("-")[0]:
                    case "supervisor":
                        assert found == wanted.keys()
                    case "dgram":
                        assert found == {"datagrams", "datagrams back"}
                    case kind:
                        assert not found & {"datagrams", "datagrams back"}, kind


@pytest.mark.parametrize(("of_hub", "of_client"), [("auto", "tcp"), ("tcp", "auto")])
def test_where_one_end_has_tcp_alone_there_are_no_secrets_and_packets_pass(
    lab: Lab, tmp_path: Path, of_hub: str, of_client: str
) -> None:
    with Hub(lab, tmp_path, carrier=of_hub) as hub:
        client = hub.join(lab["one"], carrier=of_client)
        assert reaches(lab["one"], hub.server.address)
        for instance, carrier in ((hub.server, of_hub), (client, of_client)):
            if carrier == "tcp":
                assert dgram_workers(instance) == [] and sockets(instance.node) == []
            else:
                assert secrets_in(instance) == [] and dgram_workers(instance) == ["dgram-0"]


@pytest.mark.slow
def test_a_peer_with_a_rate_has_none_and_one_that_gets_a_rate_loses_them(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        slow = hub.join(lab["one"], "", "--rate", "50", carrier="auto")
        quick = hub.join(lab["two"], carrier="auto")
        assert secrets_in(slow) == [] and len(secrets_in(quick)) == len(secrets_in(hub.server)) == 1
        hub.configure(rate_mbit=50)
        eventually(lambda: not secrets_in(quick) and established(quick) == 8, what="a session without datagrams")
        assert secrets_in(hub.server) == []
        assert reaches(lab["two"], hub.server.address) and reaches(lab["one"], hub.server.address)


def test_a_reload_cannot_change_the_carrier(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        hub.server.write({**hub.server.config, "carrier": "tcp"})
        done = hub.server.command("reload")
        assert done.returncode and "needs a restart: carrier" in done.stderr


@pytest.fixture
def taken(lab: Lab) -> Iterator[int]:
    """A UDP port of the hub's node that another program has; TCP is free there."""
    with lab.nodes[0].socket(kind=socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        yield other.getsockname()[1]


def test_a_port_of_another_program_ends_a_start_with_datagrams_alone(lab: Lab, tmp_path: Path, taken: int) -> None:
    settings = hub_config(lab.nodes[0], tmp_path, carrier="udp", local_addr=f":{taken}")
    with Instance(lab.nodes[0], settings, tmp_path) as server:
        assert server.wait() == LocalError.exit_status
        assert f"no datagrams on [::]:{taken}: another program has that port" in server.log


def test_with_a_port_of_another_program_auto_goes_by_fake_tcp(lab: Lab, tmp_path: Path, taken: int) -> None:
    settings = {"local_addr": f":{taken}", "public_addr": f"{lab.nodes[0].address}:{taken}"}
    with Hub(lab, tmp_path, carrier="auto", **settings) as hub:
        client = hub.join(lab["one"], carrier="auto")
        assert "another program has that port; blocks travel by fake TCP, or by TCP" in hub.server.log
        eventually(lambda: client.running()["server"]["carrier"] == "faketcp", what="fake TCP")
        assert reaches(lab["one"], hub.server.address)


def test_with_ports_of_other_programs_auto_goes_by_tcp_alone(lab: Lab, tmp_path: Path, taken: int) -> None:
    settings = {"local_addr": f":{taken}", "public_addr": f"{lab.nodes[0].address}:{taken}"}
    with lab.nodes[0].socket() as other:
        other.bind(("", taken + 1))
        other.listen()
        _goes_by_tcp_alone(lab, tmp_path, taken, **settings)


def _goes_by_tcp_alone(lab: Lab, tmp_path: Path, taken: int, **settings: Any) -> None:
    with Hub(lab, tmp_path, carrier="auto", **settings) as hub:
        client = hub.join(lab["one"], carrier="auto")
        assert dgram_workers(hub.server) == [] and secrets_in(client) == []
        assert any(f"port {taken + 1}: another program has it" in note for note in hub.server.running()["notes"])
        assert any("all blocks travel by TCP" in note for note in hub.server.running()["notes"])
        assert reaches(lab["one"], hub.server.address)


def test_a_client_in_a_full_tunnel_sends_datagrams_around_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        world = World(stack)
        tunnel = Tunnel(stack, world, tmp_path, hub={"carrier": "auto"}, carrier="auto")
        client = tunnel.joined()
        mark = bypass.numbers(client.name).table
        eventually(lambda: [each["mark"] for each in sockets(world.machine)] == [mark], what="the mark of the bypass")
