"""A hub and its clients, as people use it: invited, joined, slowed down, killed, revoked. Fixtures are in `sites`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.observe.observer import Observer
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.hub import BOTH, PLAIN, Client, Hub, established, inside, reaches
from tests.netns.harness.instance import Instance, traces
from tests.netns.harness.shared_hub import BEHIND_HUB, RATE_MBIT, networks_behind
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.namespace import stop
from tools.lab.network import Lab, Node
from tools.load.flows import UdpFlow

ALONE = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    'for place in /run /dev/shm /var/lib; do mount -t tmpfs tmpfs $place; done; exec "$@"',
    "sh",
]
"""Words in front of a command: as on a machine of its own, where nobody has its names and it may leave its state."""


@contextmanager
def running(node: Node, *argv: str, standard_input: str = "") -> Iterator[subprocess.Popen]:
    with node.popen(argv, stdin=subprocess.PIPE, text=True) as process:
        try:
            with process.stdin as pipe:
                pipe.write(standard_input)
            yield process
        finally:
            stop([process], 10)


# -- in


@pytest.mark.slow
def test_a_server_with_nothing_set_and_the_line_that_it_prints_are_all_that_it_takes(tmp_path: Path) -> None:
    with Lab() as lab, running(lab.nodes[0], *ALONE, EXECUTABLE, "start", "--mode", "server") as server:
        a, b = lab

        def shell(*words: str) -> str:
            """The output of a command in another shell of the server's machine."""
            return subprocess.run(
                ["nsenter", "--mount", "--target", str(server.pid), EXECUTABLE, *words], capture_output=True, text=True
            ).stdout

        invitation = eventually(
            lambda: shell("invite", "laptop", "--address", a.address), 20.0, "the server runs"
        ).strip()
        file = tmp_path / "line"
        file.touch(0o600)
        file.write_text(invitation)
        for join, standard_input in ((f"@{file}", ""), ("-", invitation), (invitation, "")):
            with running(b, *ALONE, EXECUTABLE, "start", "--join", join, standard_input=standard_input) as client:
                eventually(lambda: reaches(b, "10.0.0.1", seconds=0.3), 20.0, "the server answers")
                assert reaches(a, "10.0.0.2")
                assert invitation not in Path(f"/proc/{client.pid}/cmdline").read_text()
                client.send_signal(signal.SIGTERM)
                assert client.wait(10) == 0
        assert "laptop" in shell("peers") and "10.0.0.2" in shell("peers")
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


@BOTH
@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_the_hub_and_each_client_reach_each_other(hub: Hub, name: str, six: bool) -> None:
    assert reaches(hub[name].node, inside(hub.server, six))
    assert reaches(hub.node, inside(hub[name], six))


@BOTH
@pytest.mark.parametrize(("name", "size"), [("one", 20_000_000), ("two", 20_000_000), ("three", 1_000_000)])
def test_what_a_client_and_the_hub_send_each_other_arrives_byte_for_byte(
    hub: Hub, name: str, size: int, six: bool
) -> None:
    transfer(hub[name], hub.server, streams=2, size=size // 2, six=six)
    transfer(hub.server, hub[name], streams=2, size=size // 2, six=six)


def test_peers_shows_each_peer_with_its_addresses_and_rate(hub: Hub) -> None:
    peers = hub.peers()
    assert hub.connected() == {"one", "two", "three"} == set(peers)
    for name, connections in (("one", 8), ("two", 1), ("three", 1)):
        assert peers[name]["addresses"] == [hub[name].address, hub[name].address6]
        assert peers[name]["connections"] == connections
        eventually(lambda: (peer := hub.peers()[name])["received_bytes"] and peer["sent_bytes"], what=name)
    assert peers["one"]["allowed"] == list(networks_behind(1))
    assert peers["two"]["endpoint"] == hub.lab["two"].address
    assert peers["three"]["endpoint"] == f"[{hub.lab['three'].address6}]"
    said = hub.server.command("peers").stdout
    assert all(name in said for name in peers)


def test_a_client_that_joins_is_not_told_to_join(hub: Hub) -> None:
    assert all("unless this client is started with --join" not in client.log for client in hub.clients.values())


def test_workers_of_both_ends_are_a_user_without_rights(hub: Hub) -> None:
    for instance in (hub.server, *hub.clients.values()):
        for pid in instance.worker_pids().values():
            status = Path(f"/proc/{pid}/status").read_text()
            (uids,) = (line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
            assert len(set(uids)) == 1 and "0" not in uids
            assert "CapEff:\t0000000000000000\n" in status and "CapPrm:\t0000000000000000\n" in status


def test_nothing_is_left_of_a_hub_and_its_client(tmp_path: Path) -> None:
    with Lab() as lab:
        _a, b = lab

        def left(names: tuple[str, str] = ("", "")) -> list[Any]:
            return [
                *(traces(node, name) for node, name in zip(lab, names, strict=True)),
                *(node.run(["nft", "list", "tables"]).stdout for node in lab),
            ]

        before = left()
        with Hub(lab, tmp_path, push_routes=BEHIND_HUB) as hub:
            client = hub.join(b, **PLAIN)
            eventually(lambda: set(BEHIND_HUB) <= set(client.routes()), what="the pushed routes")
            names = hub.server.name, client.name
            now = left(names)
            assert names[0] in now[2] and names[1] in now[3], "each has a table of nftables"
            assert all(each["files"] for each in now[:2])
        assert left(names) == before


# -- who is who


def test_a_key_that_the_server_does_not_know_lets_nobody_in(hub: Hub, tmp_path: Path) -> None:
    before = hub.server.counter("tcp.closed_proof_wrong")
    with Instance(hub.lab["four"], keyed(hub, new_key(tmp_path)), tmp_path) as unknown:
        unknown.wait_for_log("it does not know us")
        eventually(lambda: hub.server.counter("tcp.closed_proof_wrong") > before + 1)
        assert unknown.counter("tcp.connections_established") == 0
    assert hub.connected() == {"one", "two", "three"}


def new_key(directory: Path) -> Path:
    file = directory / "key"
    assert subprocess.run([EXECUTABLE, "genkey", file], capture_output=True).returncode == 0
    return file


def keyed(hub: Hub, key: Path) -> dict[str, Any]:
    """A client that has a key and no invitation."""
    return {
        "mode": "client",
        "remote_addr": f"{hub.node.address}:{hub.port}",
        "key_file": str(key),
        "reconnect_max": 0.5,
        **PLAIN,
    }


def test_of_two_clients_with_one_key_the_newer_is_admitted_and_stays(hub: Hub, tmp_path: Path) -> None:
    older = hub["two"]
    refused = hub.server.counter("tcp.connections_refused")
    with Client(hub.lab["four"], older.invitation, tmp_path, **PLAIN) as newer:
        newer.wait_until_joined()
        assert (newer.address, newer.address6) == (older.address, older.address6)
        eventually(lambda: hub.server.counter("tcp.connections_refused") >= refused + 3, what="the older one dials on")
        older.wait_for_log("refused by the server: a newer session of the same peer is connected")
        assert newer.counter("tcp.connections_lost") == 0 == established(older)
        assert reaches(newer.node, hub.server.address)
    eventually(lambda: reaches(older.node, hub.server.address, count=1, seconds=0.3), what="the older one is back")


def test_an_address_that_another_has_is_refused_and_one_that_is_free_is_given(
    hub: Hub, invitation: str, tmp_path: Path
) -> None:
    wish = [f"{hub['one'].address}/24", "fd99::44/64"]
    with Client(hub.lab["four"], invitation, tmp_path, tunnel_addr=wish, **PLAIN) as taken:
        taken.wait_for_log(
            f"refused by the server: {hub['one'].address} belongs to another peer: choose another tunnel_addr"
        )
        assert not established(taken)
    wish = ["10.99.0.44/24", "fd99::44/64"]
    with Client(hub.lab["four"], invitation, tmp_path, tunnel_addr=wish, **PLAIN) as free:
        free.wait_until_joined()
        assert hub.peers()["four"]["addresses"] == ["10.99.0.44", "fd99::44"]
        assert reaches(hub.node, "10.99.0.44") and reaches(free.node, hub.server.address6)
    assert reaches(hub["one"].node, hub.server.address)


@pytest.mark.slow
def test_without_multi_client_one_client_is_admitted_and_the_next_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Lab(names=("hub", "one", "two")) as lab, Hub(lab, tmp_path, multi_client=False) as hub:
        invitation = hub.invite("two")
        one = hub.join(lab["one"], **PLAIN)
        with Client(lab["two"], invitation, tmp_path, **PLAIN) as two:
            two.wait_for_log("refused by the server: ")
            assert not established(two) and reaches(one.node, hub.server.address)
            one.stop()
            two.wait_until_joined()
            assert reaches(two.node, hub.server.address)


@pytest.mark.alone
def test_a_revoked_client_is_out_at_once_and_for_good_and_no_other_notices(
    hub: Hub, invitation: str, tmp_path: Path
) -> None:
    before = hub["one"].counter("tcp.connections_lost")
    with Client(hub.lab["four"], invitation, tmp_path, **PLAIN) as four, Flow(hub["one"], hub.server) as flow:
        four.wait_until_joined()
        flow.wait_for(1_000_000)
        assert hub.server.command("revoke", "four").stdout == "revoked: four\n"
        eventually(lambda: "four" not in hub.peers() and not established(four), 2.0, "four is out")
        four.wait_for_log("refused by the server: this invitation has been revoked")  # it tries again
        assert not established(four) and not reaches(four.node, hub.server.address, count=1, seconds=0.1)
        flow.wait_for(1_000_000)
    assert hub["one"].counter("tcp.connections_lost") == before


@pytest.mark.alone
def test_peers_of_the_configuration_come_and_go_under_load_and_the_others_lose_nothing(
    hub: Hub, tmp_path: Path
) -> None:
    key = new_key(tmp_path)
    workers = hub.server.worker_pids()
    with (
        UdpFlow(hub["two"].node, hub.node, hub.server.address, rate=1000, size=500) as packets,
        Flow(hub.server, hub["one"]) as flow,
        Instance(hub.lab["four"], keyed(hub, key), tmp_path) as carol,
    ):
        hub.server.write({**hub.server.config, "peers": [{"name": "carol", "key_file": str(key)}]})
        hub.server.signal(signal.SIGHUP)
        hub.server.wait_for_log("reloaded: peers")
        carol.wait_until_connected()
        eventually(lambda: "carol" in hub.connected())
        flow.wait_for(1_000_000)
        hub.configure()
        eventually(lambda: "carol" not in hub.peers() and not established(carol), 2.0, "carol is out")
        flow.wait_for(1_000_000)
        packets.end()
        packets.wait_for_all(time.monotonic() + 5)
        assert packets.missing() == 0 and packets.sent > 100
    assert hub.server.worker_pids() == workers


# -- what one costs the others


@pytest.mark.alone
@pytest.mark.parametrize("way", ["sends", "receives"])
def test_a_client_sends_and_receives_at_its_rate_and_the_others_faster(hub: Hub, way: str) -> None:
    three = (hub["three"], hub.server) if way == "sends" else (hub.server, hub["three"])
    other = (hub["two"], hub.server) if way == "sends" else (hub.server, hub["two"])
    rate = RATE_MBIT * 125_000
    with Flow(*three) as limited, Flow(*other) as free:
        limited.wait_for(rate // 2)  # its burst, and what the sockets take
        free_before = free.received
        seconds = taken(limited, rate)
        assert 0.8 < seconds < 2.0
        assert free.received - free_before > 2 * rate


def taken(flow: Flow, count: int) -> float:
    """Seconds for `count` more bytes."""
    began = time.monotonic()
    flow.wait_for(count)
    return time.monotonic() - began


@pytest.mark.alone
@pytest.mark.parametrize("how", ["stopped", "cut"])
def test_a_client_that_takes_nothing_costs_the_others_little(hub: Hub, how: str) -> None:
    one, two = hub["one"], hub["two"]
    worker = two.worker_pids()["tcp-0"]
    dropped = hub.server.counter("tcp.dropped_peer_full")
    size = 20_000_000
    with Flow(hub.server, one) as flow, UdpFlow(hub.node, two.node, two.address, rate=4000, size=1200) as flood:
        eventually(lambda: len(flood.arrivals) > 100)
        flow.wait_for(size)
        before = min(taken(flow, size) for _ in range(3))
        os.kill(worker, signal.SIGSTOP) if how == "stopped" else hub.lab.cut(two.node)
        try:
            eventually(lambda: hub.server.counter("tcp.dropped_peer_full") > dropped, what="its queue is full")
            eventually(lambda: taken(flow, size) < before / 0.5, what=f"{size} bytes in {before / 0.5:.2f} s")
        finally:
            os.kill(worker, signal.SIGCONT) if how == "stopped" else hub.lab.join(two.node)
        flood.end()
    eventually(lambda: reaches(two.node, hub.server.address, count=1, seconds=0.3), what="it is back")
    eventually(lambda: reaches(one.node, two.address6, count=1, seconds=0.3))


def test_an_observer_sees_what_a_command_has_changed_as_soon_as_it_is_answered(hub: Hub) -> None:
    asked = {"name": "later", "allowed": [], "rate_mbit": None}
    with closing(Observer(hub.server.name)) as observer:
        observer.snapshot()
        for _ in range(3):
            for word, state in (("invite", "invited"), ("disable", "disabled"), ("enable", "invited"), ("revoke", "")):
                assert hub.server.ask({"command": word, **asked})["ok"]
                states = {peer["name"]: peer["state"] for peer in observer.snapshot()["peers"]}
                assert states.get("later", "") == state


# -- what dies


@pytest.mark.parametrize("kind", ["tcp", "fec", "tun"])
def test_a_killed_worker_of_the_server_ends_no_connection_inside(hub: Hub, kind: str) -> None:
    with ExitStack() as stack:
        flows = [
            stack.enter_context(Flow(*instances))
            for name in ("one", "two")
            for instances in ((hub[name], hub.server), (hub.server, hub[name]))
        ]
        for lane in range(2):
            pid = hub.server.signal_worker(f"{kind}-{lane}", signal.SIGKILL)
            hub.server.wait_until_replaced(f"{kind}-{lane}", pid)
            for flow in flows:
                flow.wait_for(100_000)


@pytest.mark.slow
def test_after_restarts_and_a_kill_eight_clients_are_back_with_the_addresses_that_they_had(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(8)]
    with Lab(names=("hub", *names)) as lab, Hub(lab, tmp_path) as hub:
        for name in names:
            hub.start(lab[name], name, **PLAIN, connections=3)
        for client in hub.clients.values():
            client.wait_until_joined()

        def addresses() -> dict[str, tuple[str, str]]:
            return {name: (client.address, client.address6) for name, client in hub.clients.items()}

        had = addresses()
        assert len(set(had.values())) == 8
        hub.server.stop()
        hub.start_again()
        assert hub.connected() == set(names) and addresses() == had
        hub.server.kill()
        hub.start_again()
        for name in ("n5", "n2"):
            hub[name].stop()
        for name in ("n2", "n5"):
            hub.adopt(name, hub[name].start_again()).wait_until_joined()
        assert hub.connected() == set(names) and addresses() == had
        for client in hub.clients.values():  # an offer that is used up serves the handshakes that are under way
            assert "gets none" not in client.log and "used up" not in client.log
