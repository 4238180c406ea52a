"""The network beneath a client's connections changes, for real: addresses, links, routes, names, a forgetful router.

Default pauses and limits would take ten seconds and more where these tests wait for two.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.transport.kernel_route import RouteNews
from tests.netns.harness.hosts import with_hosts
from tests.netns.harness.hub import Hub, established
from tests.netns.harness.instance import Instance, Instances, client_config, reaches, server_config, tunnel
from tests.support import eventually
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node
from tools.load.flows import Echoes

SERVICE = "10.50.0.1"  # the server's address on its loopback, which both uplinks lead to
SOON = 2.0  # seconds until a client is back
CONNECTIONS = {"connections": 5, "light_connections": 3, "fec": "auto"}
ALL = 8
TRIES = 3  # other load on the machine can only add to a time

FORGETFUL = """
table inet forgetful {
    set forgotten { type inet_service; }
    chain in { type filter hook input priority 0; tcp sport @forgotten drop; }
}
"""


def sources(server: Instance) -> set[str]:
    """The addresses that the server's connections come from."""
    return {
        row["address"].rpartition(":")[0] for row in server.running()["connections"] if row["state"] == "established"
    }


@contextmanager
def silence(instances: Instances, seconds: float) -> Iterator[list[float]]:
    """Ping through the tunnel meanwhile; then the list has the longest silence in seconds."""
    server, client = instances
    interval = 0.05
    found: list[float] = []
    echoes = Echoes(client.node, server.address, count=round(seconds / interval), interval=interval)
    yield found
    lost = echoes.finish().lost
    runs = itertools.groupby(enumerate(lost), key=lambda pair: pair[1] - pair[0])
    found.append(interval * max((len(list(run)) for _, run in runs), default=0))


@pytest.fixture
def two_uplinks(tmp_path: Path) -> Iterator[tuple[Lab, Instances]]:
    """A client with a second link to the server, and a tunnel over the first one, whose route has the lower metric."""
    with Lab() as lab:
        a, b = lab
        a.run(["ip", "link", "add", "link1", "type", "veth", "peer", "name", "link1", "netns", str(b.pid)])
        a.ip(f"address add {SERVICE}/32 dev lo", "address add 10.78.0.1/24 dev link1", "link set link1 up")
        b.ip("address add 10.78.0.2/24 dev link1", "link set link1 up")
        b.ip(*routes(lab))
        with tunnel(lab, tmp_path, host=SERVICE, **CONNECTIONS) as instances:
            yield lab, instances


def routes(lab: Lab) -> list[str]:
    return [
        f"route replace {SERVICE} via {lab.nodes[0].address} metric 100",
        f"route replace {SERVICE} via 10.78.0.1 metric 200",
    ]


@pytest.mark.slow
def test_the_kernel_tells_of_changes_and_a_flood_of_them_is_taken_at_once() -> None:
    flood = "".join(f"route add blackhole 10.{number // 256}.{number % 256}.0/24\n" for number in range(2000))
    with closing(Namespace("client")) as node:
        news = node.inside(RouteNews)
        with closing(news):
            assert not news.take()
            for change in ("link set lo up", "address add 192.0.2.1/32 dev lo", "rule add from 192.0.2.9 lookup 7"):
                node.run(["ip", *change.split()])
                assert news.take() and not news.take(), change
            node.run(["ip", "-batch", "-"], input=flood)
            assert news.take() and not news.take()


@pytest.mark.alone
def test_a_client_whose_address_is_replaced_is_back_within_two_seconds(tmp_path: Path) -> None:
    with Lab() as lab, tunnel(lab, tmp_path, **CONNECTIONS) as instances:
        server, client = instances
        with silence(instances, 3.5) as longest:
            lab.nodes[1].ip(f"address del {lab.nodes[1].address}/24 dev link0", "address add 10.77.0.99/24 dev link0")
        assert longest[0] < SOON
        eventually(lambda: established(client) == ALL)
        eventually(lambda: sources(server) == {"10.77.0.99"}, what="each connection has taken the place of one before")
        client.wait_for_log("8 connections ended: this machine no longer has the address")
        assert client.counter("tcp.connections_timed_out") == 0


@pytest.mark.alone
@pytest.mark.slow
def test_a_client_goes_to_another_uplink_and_back_to_the_better_one(two_uplinks: tuple[Lab, Instances]) -> None:
    lab, instances = two_uplinks
    server, client = instances
    node = lab.nodes[1]
    with silence(instances, 2.5) as longest:
        node.ip("link set link0 down")  # its address stays: packets from there would go out of the other link
        eventually(lambda: sources(server) == {"10.78.0.2"}, 2 * SOON)
    assert longest[0] < SOON
    with silence(instances, 2.5) as longest:
        node.ip("link set link0 up", *routes(lab))
        eventually(lambda: sources(server) == {node.address}, 4 * SOON)
    assert longest[0] < 0.5  # the new connections are there before the old ones end
    eventually(lambda: established(client) == ALL)
    assert client.counter("tcp.connections_timed_out") == 0


def settled(client: Instance) -> int:
    """How many connections have been established, once all are there and none has come for two seconds."""
    last = (0.0, -1)

    def is_settled() -> bool:
        nonlocal last
        count = client.counter("tcp.connections_established")
        if count != last[1] or established(client) != ALL:
            last = (time.monotonic(), count)
        return time.monotonic() - last[0] > 2.0

    eventually(is_settled, 20.0, "no more connections")
    return last[1]


@pytest.mark.slow
def test_what_does_not_concern_a_connection_leaves_it_alone(two_uplinks: tuple[Lab, Instances]) -> None:
    """Equal routes, other routes and addresses, an address that is no longer preferred, the tunnel's own device."""
    lab, (server, client) = two_uplinks
    node = lab.nodes[1]
    node.ip(f"route del {SERVICE} via {lab.nodes[0].address} metric 100", f"route del {SERVICE} via 10.78.0.1")
    node.ip(f"route add {SERVICE} nexthop via {lab.nodes[0].address} nexthop via 10.78.0.1")
    before = settled(client)  # the connections may go to the other link, once
    assert reaches(client, server)
    for number in range(20):
        node.ip(
            f"address add 10.79.0.{number + 1}/24 dev link1",
            f"route add 10.80.{number}.0/24 via 10.78.0.1",
            f"link set {client.tun_name} txqueuelen {1000 + number}",
        )
        threading.Event().wait(0.03)
    node.ip(f"address change {node.address6}/64 dev link0 preferred_lft 0 valid_lft 3600")
    threading.Event().wait(0.5)
    assert client.counter("tcp.connections_established") == before
    assert client.counter("tcp.connections_lost") <= ALL


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 6.0])
@pytest.mark.parametrize("far", [False, True], ids=["own-link", "far-link"])
def test_a_link_that_was_down_carries_packets_within_a_second_of_its_return(
    tmp_path: Path, seconds: float, far: bool
) -> None:
    """The kernel would wait for seconds before it sends again what it has sent in vain."""
    with Lab() as lab, tunnel(lab, tmp_path, **CONNECTIONS) as (server, client):
        node = lab.nodes[0 if far else 1]
        for _ in range(TRIES):
            took = _seconds_until_back(server, client, node, seconds)
            print(f"{took:.2f} s after the link was up")
            eventually(lambda: established(client) == ALL)
            if took < 1.0:
                break
        assert took < 1.0


def _seconds_until_back(server: Instance, client: Instance, node: Node, seconds: float) -> float:
    """From the return of a link that was down for so many seconds, until a packet has come back."""
    stop = threading.Event()
    sending = threading.Thread(target=lambda: _keep_sending(client, server, stop))
    sending.start()
    node.ip("link set link0 down")
    threading.Event().wait(seconds)
    node.ip("link set link0 up")
    back = time.monotonic()
    try:
        eventually(lambda: reaches(client, server, count=1, seconds=0.1), 5.0, "a ping")
        return time.monotonic() - back
    finally:
        stop.set()
        sending.join()


@pytest.mark.alone
@pytest.mark.slow
def test_idle_connections_that_another_network_does_not_know_are_dialed_anew_when_the_link_is_back(
    tmp_path: Path,
) -> None:
    """Another access point gives this machine the address and the gateway that it had, and has a NAT of its own."""
    with Lab() as lab, tunnel(lab, tmp_path, **CONNECTIONS) as (server, client):
        node = lab.nodes[1]
        server.node.run(["nft", "-f", "-"], input=FORGETFUL)
        ports = ", ".join(row["address"].rpartition(":")[2] for row in server.running()["connections"])
        node.ip("link set link0 down")
        server.node.run(["nft", "add", "element", "inet", "forgetful", "forgotten", f"{{ {ports} }}"])
        threading.Event().wait(0.7)
        node.ip("link set link0 up")
        back = time.monotonic()
        eventually(lambda: reaches(client, server, count=1, seconds=0.1), 10.0, "a ping")
        took = time.monotonic() - back
        print(f"{took:.2f} s after the link was up")
        assert took < 2.0
        eventually(lambda: established(client) == ALL)


def _keep_sending(client: Instance, server: Instance, stop: threading.Event) -> None:
    """So that something is outstanding on many connections."""
    while not stop.is_set():
        reaches(client, server, count=5, size=1000, seconds=0.05)


@pytest.mark.alone
@pytest.mark.slow
def test_an_uplink_that_returns_ends_every_pause(tmp_path: Path) -> None:
    pauses = {"reconnect_min": 30.0, "reconnect_max": 60.0, "timeout": 1.0, "keepalive": 0.3}
    with Lab() as lab, tunnel(lab, tmp_path, client=pauses, **CONNECTIONS) as (server, client):
        node = lab.nodes[1]
        node.ip("link set link0 down")
        client.wait_for_log("trying again until it succeeds")
        eventually(lambda: established(client) == 0)
        node.ip("link set link0 up")
        eventually(lambda: reaches(client, server, count=1, seconds=0.2), SOON, "the first ping")
        eventually(lambda: established(client) == ALL)


def test_status_says_in_a_line_why_connections_are_missing_whatever_becomes_of_the_workers(tmp_path: Path) -> None:
    with Lab() as lab:
        a, b = lab
        serving = server_config(a, **CONNECTIONS, lanes=2, timeout=2.0, keepalive=0.5)
        dialling = client_config(serving, a.address, **CONNECTIONS, lanes=2, timeout=2.0, keepalive=0.5)
        port = serving["local_addr"].rpartition(":")[2]
        with Instance(b, dialling, tmp_path) as client:
            start = f"{client.name}: not connected: {a.address} port {port}: "

            def line() -> str:
                return client.command("status").stdout.splitlines()[0]

            client.wait_until_running()
            eventually(lambda: line().startswith(f"{start}connection refused: ") and "failed attempt" in line())
            b.ip("link set link0 down")
            eventually(lambda: "route" in line() or "the network" in line(), what=line())
            pid = client.signal_worker("tcp-0", signal.SIGKILL)
            client.wait_until_replaced("tcp-0", pid)
            b.ip("link set link0 up")
            eventually(lambda: line().startswith(f"{start}connection refused: "), what=line())
            with Instance(a, serving, tmp_path) as server:
                eventually(lambda: line().startswith(f"{client.name}: connected to {a.address} "), what="all is well")
                eventually(lambda: " of 8 connections" not in line(), what="all is well")
                eventually(lambda: client.running()["server"]["trouble"] == [], what="no trouble")
                eventually(lambda: established(server) == ALL, what="the server knows all connections")
                b.ip("link set link0 down")
                eventually(  # a part of them may be there for a moment
                    lambda: (now := line()).startswith(start) and ("route" in now or "the network" in now),
                    what=f"{start}no route",
                )


@pytest.mark.alone
@pytest.mark.slow
def test_a_link_that_flaps_costs_few_dials_and_is_used_again_when_it_stays(tmp_path: Path) -> None:
    with Lab() as lab, tunnel(lab, tmp_path, **CONNECTIONS) as (server, client):
        node = lab.nodes[1]
        for _ in range(20):
            node.ip(f"address del {node.address}/24 dev link0")
            threading.Event().wait(0.05)
            node.ip(f"address add {node.address}/24 dev link0")
            threading.Event().wait(0.05)
        eventually(lambda: established(client) == ALL and reaches(client, server), 3 * SOON)
        assert client.counter("tcp.connections_established") <= 4 * ALL
        assert client.counter("tcp.dials_failed") <= 20


@pytest.mark.slow
def test_connections_that_a_router_forgets_are_dialed_anew_long_before_their_timeout(tmp_path: Path) -> None:
    with Lab() as lab, tunnel(lab, tmp_path, keepalive=0.5, **CONNECTIONS) as (server, client):
        node = server.node
        node.run(["nft", "-f", "-"], input=FORGETFUL)
        ports = ", ".join(row["address"].rpartition(":")[2] for row in server.running()["connections"])
        node.run(["nft", "add", "element", "inet", "forgetful", "forgotten", f"{{ {ports} }}"])
        eventually(lambda: client.counter("tcp.connections_established") >= 2 * ALL, 12.0, "eight more connections")
        eventually(lambda: reaches(client, server))
        assert client.counter("tcp.connections_timed_out") == 0


# -- names and addresses


@pytest.mark.alone
@pytest.mark.slow
def test_dead_addresses_in_front_of_a_good_one_cost_a_moment_once(tmp_path: Path) -> None:
    with Lab() as lab:
        a, b = lab
        dead = ["fd77::98", "10.77.0.98"]
        b.ip(*(f"neighbour replace {each} lladdr {a.mac} dev link0 nud permanent" for each in dead))
        serving = server_config(a, **CONNECTIONS)
        config = client_config(serving, "hub.test", **CONNECTIONS)
        wrap = with_hosts(tmp_path, *(f"{host} hub.test" for host in (*dead, a.address)))
        with Instance(b, config, tmp_path, wrap=wrap) as client:
            client.wait_until_running()
            with Instance(a, serving, tmp_path) as server:
                client.wait_until_connected(ALL, SOON + 1)
                for host in dead:
                    client.wait_for_log(f"{host} does not work")
                assert f"{a.address} does not" not in client.log
                server.stop()
            eventually(lambda: established(client) == 0)
            with server.start_again() as successor:
                successor.wait_until_running()
                client.wait_until_connected(2 * ALL, SOON)
            assert client.log.count("does not work") == 2


@pytest.mark.parametrize("encryption", ["none", "tls"])
def test_a_link_local_address_with_its_interface_is_a_server_like_any_other(tmp_path: Path, encryption: str) -> None:
    with Lab() as lab:
        a, b = lab
        for node, address in ((a, "fe80::a"), (b, "fe80::b")):
            node.ip(f"address add {address}/64 dev link0 nodad")
        if encryption == "none":
            serving = server_config(a, local_addr=f"[::]:{a.free_port()}")
            with Instance(a, serving, tmp_path), Instance(
                b, client_config(serving, "[fe80::a%link0]"), tmp_path
            ) as client:  # fmt: skip
                client.wait_until_connected()
        else:
            with Hub(lab, tmp_path, local_addr=f"[::]:{a.free_port()}") as hub:
                client = hub.join(b, "b", "--address", "fe80::a%link0")
                assert reaches(client, hub.server)


# -- what answers is no tunnel


class Nonsense(threading.Thread):
    """A listener that closes, resets, or answers as a web server does, in turn."""

    def __init__(self, node: Namespace, port: int) -> None:
        super().__init__()
        self.accepted = 0
        self._listener = node.socket()
        self._listener.bind(("", port))
        self._listener.listen()

    def run(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                if number % 3 == 0:
                    connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: close() resets
                elif number % 3 == 1:
                    connection.recv(1000)
                    connection.send(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    def stop(self) -> None:
        self._listener.shutdown(2)
        self.join()
        self._listener.close()


def test_a_proxy_without_its_server_is_dialed_once_a_pause_and_costs_a_line_for_each_reason(tmp_path: Path) -> None:
    with Lab() as lab:
        a, b = lab
        config: dict[str, Any] = client_config(server_config(a), a.address, **CONNECTIONS)
        config |= {"encryption": "tls", "tls_skip_verify": True, "insecure": True, "reconnect_max": 0.1}
        nonsense = Nonsense(a, int(config["remote_addr"].rpartition(":")[2]))
        nonsense.start()
        try:
            with Instance(b, config, tmp_path) as client:
                client.wait_until_running()
                eventually(lambda: client.counter("tcp.dials_failed") >= 20)
                assert client.counter("tcp.dials_failed") <= nonsense.accepted <= client.counter("tcp.dials_failed") + 3
                warnings = [line for line in client.log.splitlines() if "trying again" in line]
                assert 1 <= len(warnings) <= 3
                assert "speaks no TLS" in client.log and "_ssl" not in client.log
        finally:
            nonsense.stop()


@pytest.mark.alone
def test_a_client_at_its_limit_of_connections_changes_its_address_and_all_are_back(tmp_path: Path) -> None:
    """The server has the old connections for as long as `timeout`, at any of its workers."""
    limits = {"max_connections_per_client": ALL, "lanes": 2, "multi_client": True, "state_dir": str(tmp_path / "state")}
    with Lab() as lab, tunnel(lab, tmp_path, server=limits, **CONNECTIONS) as (server, client):
        for last in (98, 99, 100):
            lab.nodes[1].ip("address flush dev link0", f"address add 10.77.0.{last}/24 dev link0")
            eventually(
                lambda: sources(server) == {f"10.77.0.{last}"} and established(client) == ALL == established(server),
                2 * SOON,
                f"{ALL} connections from 10.77.0.{last}",
            )
        assert client.counter("tcp.connections_timed_out") == server.counter("tcp.connections_timed_out") == 0
        assert server.counter("tcp.connections_refused") == 0
        assert reaches(client, server)
