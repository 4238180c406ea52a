"""Faults under a running tunnel: connections inside it notice a pause and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.shm.segment import SHM_DIRECTORY
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.instance import (
    Instance,
    Instances,
    client_config,
    reaches,
    server_config,
    traces,
    tunnel,
    unique_name,
)
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab

ROUTES = {"routes": ["10.98.0.0/16", "fd98::/48"]}
BEAR_ALL = {"restart_intensity": 1000}
KILLS = {1: 3, 2: 2}
"""Of each worker, by the number of lanes."""

CONNECTIONS = 8
"""Of a client with the default settings."""

QUICK = {"timeout": 1.0, "keepalive": 0.3}
NOTICED_SECONDS = QUICK["timeout"] + 1.0
"""Until a dead connection is seen in the counters: its timeout, and some ticks on a busy machine."""


@pytest.fixture
def lab_of_three() -> Iterator[Lab]:
    with Lab(names=("server", "one", "two")) as made:
        yield made


@pytest.fixture(scope="module", params=[1, 2], ids=["1-lane", "2-lanes"])
def instances(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    with Lab() as lab, tunnel(lab, tmp_path_factory.mktemp("kills"), lanes=request.param, **BEAR_ALL) as made:
        yield made


# -- workers


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
@pytest.mark.parametrize("kind", ["tcp", "fec", "tun"])
def test_a_worker_killed_under_load_again_and_again_costs_no_byte(instances: Instances, which: int, kind: str) -> None:
    server, client = instances
    instance = instances[which]
    workers = [name for name in instance.workers() if name.startswith(kind)]
    kills = KILLS[len(workers)]
    for worker in workers:
        before, supervisor = instance.restarts(), instance.running()["pid"]
        with Flow(client, server) as up, Flow(server, client, six=True) as down:
            for _ in range(kills):
                up.wait_for(100_000)
                down.wait_for(100_000)
                pid = instance.signal_worker(worker, signal.SIGKILL)
                instance.wait_until_replaced(worker, pid)
            up.wait_for(100_000)
            down.wait_for(100_000)
        assert instance.restarts() == {**before, worker: before[worker] + kills}
        assert instance.running()["pid"] == supervisor
        assert f"{worker} died: SIGKILL" in instance.log


def test_all_workers_of_both_ends_killed_at_once_cost_no_byte(instances: Instances) -> None:
    server, client = instances
    with Flow(client, server) as up, Flow(server, client) as down:
        up.wait_for(100_000)
        workers = [(instance, name) for instance in instances for name in instance.workers()]
        killed = [instance.signal_worker(name, signal.SIGKILL) for instance, name in workers]
        for (instance, name), pid in zip(workers, killed, strict=True):
            instance.wait_until_replaced(name, pid)
        up.wait_for(100_000)
        down.wait_for(100_000)


@pytest.mark.parametrize("worker", ["tcp-0", "fec-0", "tun-0"])
def test_a_worker_that_hangs_is_replaced_and_costs_no_byte(lab: Lab, tmp_path: Path, worker: str) -> None:
    with tunnel(lab, tmp_path, client={"heartbeat_timeout": 1.0}) as (server, client):
        with Flow(client, server) as up, Flow(server, client) as down:
            up.wait_for(100_000)
            pid = client.signal_worker(worker, signal.SIGSTOP)
            client.wait_until_replaced(worker, pid)
            up.wait_for(100_000)
            down.wait_for(100_000)
        assert client.restarts() == {"tcp-0": 0, "fec-0": 0, "tun-0": 0, worker: 1}
        assert f"{worker} hangs (no heartbeat for" in client.log


def test_a_worker_that_hangs_leaves_its_stack_in_the_log(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, client={"heartbeat_timeout": 0.5}) as (_, client):
        pid = client.signal_worker("tun-0", signal.SIGSTOP)
        client.wait_until_replaced("tun-0", pid)
        assert "Fatal Python error: Aborted" in client.log and "worker.py" in client.log


def test_a_worker_that_pauses_within_the_heartbeat_timeout_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        for worker in client.workers():
            client.signal_worker(worker, signal.SIGSTOP)
            eventually(lambda: client.worker(worker)["heartbeat_age_ms"] > 300)
            client.signal_worker(worker, signal.SIGCONT)
            assert reaches(client, server)
        assert set(client.restarts().values()) == {0}


def test_a_hung_worker_that_is_to_be_restarted_by_command_is_replaced_too(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, client={"drain_timeout": 0.2}) as (server, client):
        pid = client.signal_worker("tcp-0", signal.SIGSTOP)
        assert client.command("restart", "tcp-0").returncode == 0
        client.wait_until_replaced("tcp-0", pid)
        eventually(lambda: reaches(client, server))


def test_traffic_goes_on_while_the_supervisor_is_stopped(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        client.signal(signal.SIGSTOP)
        try:
            transfer(client, server, streams=1, size=2_000_000)
        finally:
            client.signal(signal.SIGCONT)
        assert set(client.restarts().values()) == {0}


def test_a_worker_that_dies_again_and_again_ends_the_instance(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    with Instance(a, server_config(a, name=name, restart_intensity=2), tmp_path) as instance:
        instance.wait_until_running()
        for _ in range(3):
            pid = instance.signal_worker("tcp-0", signal.SIGKILL)
            eventually(lambda: not has_worker(instance, pid), what="the death of tcp-0 noticed")
        assert instance.wait() == 1
        assert "stopping: tcp-0 has died 3 times in 30 s" in instance.log
    assert traces(a, name) == before


def has_worker(instance: Instance, pid: int) -> bool:
    """One that is about to end has none: it does not answer any more."""
    status = instance.status()
    return status is not None and pid in [each["pid"] for each in status["workers"]]


# -- names that vanish


@pytest.mark.parametrize("what", ["*{}@*", "sem.{}@tcp-0.inbound.*", "{}@scoreboard.*"])
def test_names_that_vanish_from_shared_memory_are_made_anew_with_all_workers(
    lab: Lab, tmp_path: Path, what: str
) -> None:
    """A cleaner removes them, and another user puts names of its own there. The device stays, and so do addresses,
    routes and the connections inside the tunnel."""
    with tunnel(lab, tmp_path) as instances, Flow(instances[1], instances[0]) as flow:
        for instance in instances:
            flow.wait_for(100_000)
            before, run, device = instance.worker_pids(), instance.running()["run"], shown(instance)
            counted = instance.counter("tcp.connections_established")
            names = list(Path(SHM_DIRECTORY).glob(what.format(f"tunnel@{instance.name}@{run}")))
            assert names
            for path in names:  # each at once, since the supervisor may see it meanwhile, and remove its own others
                other = path.with_name(f"another-{path.name}")
                other.touch(0o666)
                os.chown(other, 4242, 4242)
                other.rename(path)
            for name, pid in before.items():
                instance.wait_until_replaced(name, pid)
            assert instance.running()["run"] != run
            assert instance.counter("tcp.connections_established") >= counted
            assert shown(instance) == device
            assert all(path.exists() for path in names)
            for path in names:
                path.unlink()
            assert set(instance.restarts().values()) == {1}
            assert instance.log.count("are gone from /dev/shm") == 1
        flow.wait_for(100_000)


def shown(instance: Instance) -> str:
    """Number, addresses and routes of its device."""
    return "".join(
        instance.node.run(["ip", *words, "dev", instance.tun_name]).stdout
        for words in (["-o", "link", "show"], ["address", "show"], ["route", "show"])
    )


def test_names_that_vanish_during_the_start_are_made_anew(lab: Lab, tmp_path: Path) -> None:
    name = unique_name("s")
    with Instance(lab.nodes[0], server_config(lab.nodes[0], name=name), tmp_path) as instance:
        first = eventually(lambda: list(Path(SHM_DIRECTORY).glob(f"tunnel@{name}@*")))
        for path in first:
            path.unlink(missing_ok=True)
        instance.wait_for_log("are gone from /dev/shm")
        instance.wait_until_running()


# -- the peer and the network


@pytest.mark.alone
@pytest.mark.slow
def test_a_peer_that_vanishes_while_nothing_is_sent_is_noticed_in_time(tmp_path: Path) -> None:
    with Lab(link=LinkSpec()) as lab, tunnel(lab, tmp_path, **QUICK) as instances:
        server, client = instances
        with Flow(client, server) as flow:
            flow.wait_for(100_000)
            flow.pause()
            cut_at = time.monotonic()
            lab.cut()
            for instance in instances:
                eventually(lambda: instance.counter("tcp.connections_timed_out") == CONNECTIONS, NOTICED_SECONDS)
                assert time.monotonic() - cut_at > QUICK["timeout"] - QUICK["keepalive"] - 0.1
            lab.join()
            for instance in instances:
                eventually(lambda: instance.counter("tcp.connections_established") == 2 * CONNECTIONS)
            flow.resume()
            flow.wait_for(100_000)


@pytest.mark.alone
@pytest.mark.slow
def test_a_peer_that_vanishes_with_data_in_flight_is_noticed_in_time(tmp_path: Path) -> None:
    with Lab(link=LinkSpec()) as lab, tunnel(lab, tmp_path, **QUICK) as instances:
        server, client = instances
        with Flow(client, server) as up, Flow(server, client) as down:
            up.wait_for(100_000)
            down.wait_for(100_000)
            lab.cut()
            for instance in instances:
                eventually(lambda: instance.counter("tcp.connections_lost") == CONNECTIONS, NOTICED_SECONDS)
            lab.join()
            up.wait_for(100_000)
            down.wait_for(100_000)


def test_a_connection_that_is_silent_but_alive_is_kept(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, timeout=3.0, keepalive=0.5) as instances:
        enough = 7 * CONNECTIONS  # after which a connection without any would have ended
        eventually(lambda: all(instance.counter("tcp.keepalives_sent") > enough for instance in instances), 20.0)
        assert [instance.counter("tcp.connections_lost") for instance in instances] == [0, 0]


@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_end_that_comes_back_costs_no_byte(lab: Lab, tmp_path: Path, which: int, how: str) -> None:
    with tunnel(lab, tmp_path) as instances, ExitStack() as stack:
        server, client = instances
        with Flow(client, server) as up, Flow(server, client) as down:
            up.wait_for(100_000)
            down.wait_for(100_000)
            getattr(instances[which], how)()
            stack.enter_context(instances[which].start_again()).wait_until_connected()
            up.wait_for(100_000)
            down.wait_for(100_000)


def test_a_client_may_start_before_its_server(lab: Lab, tmp_path: Path) -> None:
    a, b = lab
    serving = server_config(a)
    with Instance(b, client_config(serving, a.address), tmp_path) as client:
        client.wait_until_running()
        client.wait_for_log("trying again until it succeeds")
        eventually(lambda: client.counter("tcp.dials_failed") >= 3)
        assert client.log.count("trying again until it succeeds") == 1
        with Instance(a, serving, tmp_path) as server:
            client.wait_until_connected()
            server.wait_until_running()
            assert reaches(client, server)


@pytest.mark.slow
def test_a_second_client_is_refused_and_the_first_does_not_notice(lab_of_three: Lab, tmp_path: Path) -> None:
    with tunnel(lab_of_three, tmp_path) as (server, client), Flow(client, server) as flow:
        second = client_config(server.config, lab_of_three["server"].address, tunnel_addr="10.99.0.3/24")
        with Instance(lab_of_three["two"], second, tmp_path) as late:
            late.wait_until_running()
            late.wait_for_log("refused by the server: another client is connected")
            flow.wait_for(100_000)
            assert server.counter("tcp.connections_refused") >= 1
            assert late.counter("tcp.connections_established") == 0
        assert [server.counter(f"tcp.connections_{what}") for what in ("established", "lost")] == [CONNECTIONS, 0]


@pytest.mark.slow
def test_a_second_client_may_come_once_the_first_has_gone(lab_of_three: Lab, tmp_path: Path) -> None:
    with tunnel(lab_of_three, tmp_path) as (server, client):
        second = client_config(server.config, lab_of_three["server"].address, tunnel_addr="10.99.0.3/24")
        with Instance(lab_of_three["two"], second, tmp_path) as late:
            late.wait_for_log("refused by the server")
            client.stop()
            late.wait_until_connected()
            assert reaches(late, server)


def test_a_client_that_is_back_replaces_its_dead_session_at_once(lab_of_three: Lab, tmp_path: Path) -> None:
    with tunnel(lab_of_three, tmp_path) as (server, client):
        lab_of_three.cut(lab_of_three["one"])  # for good: the server learns nothing of the end of this client
        client.kill()
        with Instance(lab_of_three["two"], client.config, tmp_path) as back:
            back.wait_until_connected()
            assert reaches(back, server)
            server.wait_for_log("replaced by a newer session of its peer")
            assert [server.counter(f"tcp.connections_{what}") for what in ("refused", "timed_out")] == [0, 0]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: tunnel\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303"),
        b"SSH-2.0-x\r\n",
        b"\xff" * 65536,
        b"\x7f\xff\xff\xff\x10",
        b"\x00\x00\x00\x01\x01",
        b"\x00\x00\x00\x05\x12\x01bad",
    ],
    ids=["http", "tls", "ssh", "ones", "2-gigabytes", "data-before-hello", "answer-instead-of-hello"],
)
def test_an_unauthenticated_client_that_sends_nonsense_loses_its_connection_and_no_other_does(
    instances: Instances, garbage: bytes
) -> None:
    server, client = instances
    before = server.restarts()
    host, _, port = client.config["remote_addr"].rpartition(":")
    lost = server.counter("tcp.connections_lost")
    with client.node.socket() as sock:
        sock.settimeout(5)
        sock.connect((host, int(port)))
        try:
            sock.sendall(garbage)
            assert sock.recv(1) == b""
        except ConnectionError:
            pass  # it hung up on the rest
    assert reaches(client, server)
    assert server.restarts() == before and server.counter("tcp.connections_lost") == lost


# -- the device


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_device_set_down_and_up_again_costs_no_byte(lab: Lab, tmp_path: Path, six: bool) -> None:
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server, six=six) as flow:
        flow.wait_for(100_000)
        client.node.ip(f"link set {client.tun_name} down")
        eventually(lambda: server.counter("tcp.frames_sent") and client.is_running())
        client.node.ip(f"link set {client.tun_name} up")
        flow.wait_for(100_000)
        assert set(client.restarts().values()) == {0}


def test_a_device_set_down_and_up_again_has_its_routes(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, client=ROUTES) as (_, client):
        before = network(client)
        client.node.ip(f"link set {client.tun_name} down")
        client.node.ip(f"link set {client.tun_name} up")
        eventually(lambda: network(client) == before, what=f"{before}, got {network(client)}")


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_device_deleted_under_us_is_made_again_at_no_cost(lab: Lab, tmp_path: Path, lanes: int) -> None:
    with tunnel(lab, tmp_path, lanes=lanes, client=ROUTES) as (server, client):
        before = network(client)
        with Flow(client, server) as up, Flow(server, client, six=True) as down:
            up.wait_for(100_000)
            down.wait_for(100_000)
            client.node.ip(f"link delete {client.tun_name}")
            client.wait_for_log("was deleted: making it again")
            eventually(lambda: network(client) == before)
            up.wait_for(100_000)
            down.wait_for(100_000)
        assert set(client.restarts().values()) == {0}


def test_a_device_made_again_hands_out_only_what_the_far_end_takes(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, server={"offload": False}) as (server, client):
        client.node.ip(f"link delete {client.tun_name}")
        eventually(lambda: reaches(client, server, seconds=0.2))
        packets, size = client.counter("tun.packets_read"), client.counter("tun.bytes_read")
        transfer(client, server, streams=1, size=2_000_000)
        packets, size = client.counter("tun.packets_read") - packets, client.counter("tun.bytes_read") - size
        assert size <= packets * 1400, f"{size} bytes in {packets} packets: super-packets"


def test_another_mtu_of_the_devices_costs_no_byte(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server) as up, Flow(server, client, six=True) as down:
        for mtu in (1280, 9000, 1400):
            for end in (server, client):
                end.node.ip(f"link set {end.tun_name} mtu {mtu}")
            up.wait_for(100_000)
            down.wait_for(100_000)
        assert set(client.restarts().values()) == set(server.restarts().values()) == {0}
        assert reaches(client, server, size=1300)


def test_a_device_that_is_renamed_and_named_back_has_its_routes_and_costs_no_byte(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, client=ROUTES) as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        before = network(client)
        for old, new in ((client.tun_name, "renamed"), ("renamed", client.tun_name)):
            for command in (f"link set {old} down", f"link set {old} name {new}", f"link set {new} up"):
                client.node.ip(command)
        eventually(lambda: network(client) == before, what=f"{before}, got {network(client)}")
        flow.wait_for(100_000)
        eventually(client.is_running)
        assert set(client.restarts().values()) == {0}


def network(instance: Instance) -> dict[str, Any]:
    """Addresses, routes and settings of the device, as `ip` tells them."""

    def ask(*words: str) -> Any:
        said = instance.node.run(["ip", "-j", *words, "dev", instance.tun_name], check=False).stdout
        return json.loads(said or "[]")

    addresses = {
        (one["local"], one["prefixlen"]) for each in ask("address", "show") for one in each.get("addr_info", [])
    }
    link = [(each["mtu"], each["txqlen"], "UP" in each["flags"]) for each in ask("link", "show")]
    routes = {each["dst"] for family in ("-4", "-6") for each in ask(family, "route", "show")}
    return {"addresses": addresses, "link": link, "routes": routes}
