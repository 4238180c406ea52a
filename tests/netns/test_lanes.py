"""Several lanes on a real device: the kernel spreads flows over them, each stays in order, and connections are shared
out. Workers are two processes each here, as on a machine with cores enough."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import parse
from tests.netns.harness.hub import established
from tests.netns.harness.instance import (
    Instance,
    Instances,
    client_config,
    command,
    reaches,
    server_config,
    tunnel,
)
from tests.support import eventually
from tools.lab.network import Lab, Node

LANES = 2
SPLIT = {"lanes": LANES, "split_workers": ["tun", "fec"]}
FLOWS, ROUNDS = 24, 20
BECOMES_BULK = 160  # packets of 1300 bytes: a flow that has sent so many is bulk
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def sealed() -> dict[str, Any]:
    return {"client": {"tls_skip_verify": True}, "encryption": "tls"}


@pytest.fixture(scope="module", params=["clear", "sealed"])
def instances(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    protection = sealed() if request.param == "sealed" else {}
    with Lab() as lab, tunnel(lab, tmp_path_factory.mktemp("lanes"), **SPLIT, **protection) as made:
        server, client = made
        config = parse(client.config)
        for instance in (server, client):  # a flow may change its connection when another one comes
            eventually(lambda: established(instance) == config.connections + config.light_connections)
        yield made


def datagram_socket(node: Node, port: int = 0) -> socket.socket:
    made: socket.socket = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    made.bind(("", port))
    made.settimeout(10)
    return made


def lanes_of(instance: Instance) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = instance.running()["lanes"]
    return found


def test_many_flows_that_are_answered_use_all_lanes_of_both_ends_and_each_stays_in_order(instances: Instances) -> None:
    server, client = instances
    before = {each.name: lanes_of(each) for each in instances}
    asking = [datagram_socket(client.node) for _ in range(FLOWS)]
    answering = datagram_socket(server.node)
    try:
        for sock in asking:
            sock.connect((server.address, answering.getsockname()[1]))
        heard: dict[int, list[int]] = {}
        for number in range(ROUNDS):
            for sock in asking:
                for part, size in enumerate((100, 700, 1300)):
                    sock.send((3 * number + part).to_bytes(4, "big").ljust(size))
            for _ in range(3 * FLOWS):
                data, address = answering.recvfrom(65536)
                heard.setdefault(address[1], []).append(int.from_bytes(data[:4], "big"))
                answering.sendto(data[:4].ljust(900), address)
            for sock in asking:
                answers = [int.from_bytes(sock.recv(65536)[:4], "big") for _ in range(3)]
                assert answers == [3 * number, 3 * number + 1, 3 * number + 2]
        assert all(numbers == list(range(3 * ROUNDS)) for numbers in heard.values()) and len(heard) == FLOWS
    finally:
        for sock in (*asking, answering):
            sock.close()
    for instance in instances:
        for way in ("sent_packets", "received_packets"):

            def counts() -> list[int] | None:
                pairs = zip(before[instance.name], lanes_of(instance), strict=True)
                found = [after[way] - was[way] for was, after in pairs]
                return found if sum(found) >= 3 * FLOWS * ROUNDS else None

            counted = eventually(counts)
            assert min(counted) >= sum(counted) / 6, f"{instance.name}, {way} by lane: {counted}"
    assert all(lane["flows"] >= FLOWS / 6 for lane in lanes_of(client))


def test_a_flow_of_bulk_that_is_answered_stays_in_order(instances: Instances) -> None:
    server, client = instances
    with datagram_socket(client.node) as asking, datagram_socket(server.node) as answering:
        asking.connect((server.address, answering.getsockname()[1]))
        for numbers in (range(BECOMES_BULK), range(BECOMES_BULK, BECOMES_BULK + 600)):
            heard = []
            for number in numbers:
                asking.send(number.to_bytes(4, "big").ljust(1300))
                if number % 8 == 7:  # an answer moves the flow to the lane that it comes from
                    for _ in range(8):
                        data, address = answering.recvfrom(65536)
                        heard.append(int.from_bytes(data[:4], "big"))
                    answering.sendto(data[:4], address)
                    asking.recv(65536)
        assert heard == list(numbers)


def test_status_shows_where_everything_runs_and_how_it_is_spread(instances: Instances) -> None:
    server, _ = instances
    names = [each["name"] for each in server.running()["workers"]]
    assert names == [f"{kind}-{lane}" for kind in ("tcp", "fec-in", "fec-out", "tun-in", "tun-out") for lane in (0, 1)]
    text = server.command("status", "--verbose").stdout
    assert "lane  cores" in text and "flows" in text and "no worker is pinned" in text


@pytest.mark.parametrize("half", ["tun-in-0", "tun-out-1", "fec-in-1", "fec-out-0"])
def test_a_half_that_is_killed_is_replaced_and_the_other_half_is_not(instances: Instances, half: str) -> None:
    server, client = instances
    before = server.worker_pids()
    pid = server.signal_worker(half, signal.SIGKILL)
    server.wait_until_replaced(half, pid)
    assert reaches(client, server, count=5, seconds=5.0)
    after = server.worker_pids()
    assert {name for name in before if before[name] != after[name]} == {half}


def test_a_restart_of_the_whole_worker_replaces_both_halves(instances: Instances) -> None:
    server, client = instances
    before = server.worker_pids()
    assert server.command("restart", "tun-0").stdout == "workers: tun-in-0, tun-out-0\n"
    for half in ("tun-in-0", "tun-out-0"):
        server.wait_until_replaced(half, before[half])
    assert reaches(client, server, count=5, seconds=5.0)


@pytest.mark.alone
@pytest.mark.parametrize("connections", [8, 32])
def test_connections_are_shared_out_among_the_tcp_workers(tmp_path: Path, connections: int) -> None:
    both = {"lanes": LANES, "fec": "off"}
    with Lab() as lab:
        serving = server_config(lab.nodes[0], **both, connects_per_address=1000)
        with Instance(lab.nodes[0], serving, tmp_path) as server:
            server.wait_until_running()  # a worker that starts alone takes those that have waited for too long
            dialling = client_config(serving, lab.nodes[0].address, **both, connections=connections)
            with Instance(lab.nodes[1], dialling, tmp_path) as client:

                def by_worker() -> Counter[str] | None:
                    rows = [row for row in server.running()["connections"] if row["state"] == "established"]
                    return Counter(row["worker"] for row in rows) if len(rows) == connections else None

                found = eventually(by_worker, 20, f"{connections} connections")
                assert len(found) == LANES
                assert max(found.values()) - min(found.values()) <= connections // 4, found
                client.wait_until_connected(connections)
                assert reaches(client, server)


def test_what_tune_sets_is_put_back_exactly() -> None:
    """In the network namespace of the tests, where these files are its own."""
    files = [
        Path("/proc/sys/net/ipv4") / name
        for name in ("tcp_rmem", "tcp_wmem", "tcp_mtu_probing", "tcp_slow_start_after_idle")
    ]
    before = [file.read_text() for file in files]
    try:
        files[2].write_text("0\n")
        worse = [file.read_text() for file in files]
        said = command("tune", "--apply")
        assert "net.ipv4.tcp_mtu_probing = 1" in said.stdout, said
        assert files[2].read_text() == "1\n"
        assert command("tune", "--revert").returncode == 0
        assert [file.read_text() for file in files] == worse
        assert not os.path.lexists("/var/lib/tunnel-supervisor/tuned.json")
    finally:
        for file, text in zip(files, before, strict=True):
            file.write_text(text)
