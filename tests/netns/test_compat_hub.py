"""A hub of the original program moved to this one, and our client at such a hub.

The peers are written from the original's description alone; most of what they do here is what that program does.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.netns.test_compat import PLAIN, TLS_VERSIONS, protection
from tests.reference import packets
from tests.reference.compat_peer import (
    DATA,
    KEEPALIVE,
    Certificate,
    CompatHub,
    CompatPeer,
    echo_request,
    frame,
    in_tls,
    ipv4,
    udp,
)
from tests.support import eventually
from tools.lab.network import Lab, Node
from tools.load import flows

OWN, OWN6 = "10.99.0.1", "fd99::1"
HUB = {"compat": True, "insecure": True, "tunnel_addr": [f"{OWN}/24", f"{OWN6}/64"], "mtu": 1400}
CLIENT = {"compat": True, "mtu": 1400}
BACK_SECONDS = 15.0  # more than it takes to ask a client that does not answer

VANISHED = """
table inet vanished {{
    chain out {{ type filter hook output priority 0; tcp sport {port} drop; }}
}}
"""
UDP_PORT = 4242
SOURCE_REFUSED = "tun.dropped_source_refused"
REFUSED = "tcp.connections_refused"
SUMMARY_SECONDS = 20.0  # a server sums up its clients every ten


class Hub:
    """Our end, and the means to be its clients."""

    def __init__(self, instance: Instance, node: Node, tls: str) -> None:
        self.instance = instance
        self.node = node
        self._tls = tls

    def connect(self) -> CompatPeer:
        """A client that has sent nothing yet."""
        sock = self.node.socket()
        sock.settimeout(10)
        sock.connect((self.instance.node.address, int(self.instance.config["local_addr"].rpartition(":")[2])))
        return CompatPeer(in_tls(sock, self._tls) if self._tls else sock)

    def client(self, address: str) -> CompatPeer:
        """A client whose address the hub has learnt: its first packet was answered."""
        peer = self.connect()
        assert ping(peer, address)
        return peer

    def counter(self, name: str) -> int:
        return self.instance.counter(name)

    def peers(self) -> list[dict]:
        return json.loads(self.instance.command("peers", "--json").stdout)["peers"]

    def wait_until_left(self) -> None:
        """Until every connection has ended."""
        eventually(lambda: self.counter("tcp.connections_lost") == self.counter("tcp.connections_established"))


@contextmanager
def hub(directory: Path, tls: str = PLAIN, **settings: object) -> Iterator[Hub]:
    with Lab() as lab:
        ours, theirs = lab
        config = server_config(ours, **HUB) | protection("server", tls, Certificate(directory)) | settings
        with Instance(ours, config, directory) as instance:
            instance.wait_until_running()
            yield Hub(instance, theirs, tls)


@pytest.fixture(scope="module", params=TLS_VERSIONS, ids=lambda version: version or "plain")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    settings = {"max_handshakes_per_address": 60, "connects_per_address": 1000}
    with hub(tmp_path_factory.mktemp("hub"), request.param, **settings) as made:
        yield made


@pytest.fixture
def at(shared: Hub) -> Iterator[Hub]:
    """The hub, without connections before and after the test."""
    yield shared
    shared.wait_until_left()


def ping(peer: CompatPeer, source: str, target: str = "", number: int = 1) -> bool:
    """Whether the hub answers an echo request from this address."""
    request = packets.echo_request(source, target or (OWN6 if ":" in source else OWN), number)
    peer.send(DATA, request)
    return packets.is_reply(peer.receive_packet() or bytes(40), request)


def test_each_client_reaches_the_hub_and_every_other_one(at: Hub) -> None:
    addresses = [f"10.99.0.{host}" for host in (2, 3, 4)]
    with ExitStack() as stack:
        clients = {address: stack.enter_context(at.client(address)) for address in addresses}
        for source, sender in clients.items():
            for target, receiver in clients.items():
                if source != target:
                    packet = udp(source, target, UDP_PORT, f"{source} to {target}".encode())
                    sender.send(DATA, packet)
                    assert receiver.receive() == (DATA, packet)
            assert ping(sender, source, number=2)
        assert [peer["name"] for peer in at.peers()] == addresses
        assert {peer["endpoint"] for peer in at.peers()} == {at.node.address}


@pytest.mark.parametrize("cut", [1, 4, 5, 24, 80])
def test_the_first_packet_is_not_lost_however_it_arrives(at: Hub, cut: int) -> None:
    address = "10.99.0.5"
    requests = [packets.echo_request(address, OWN, number) for number in (1, 2, 3)]
    stream = frame(KEEPALIVE) + b"".join(frame(DATA, request) for request in requests)
    with at.connect() as peer:
        peer.write(stream[:cut])
        eventually(lambda: at.peers() != [])
        peer.write(stream[cut:])
        for request in requests:
            assert packets.is_reply(peer.receive_packet(), request)


def test_an_address_belongs_to_one_client_as_long_as_it_is_connected(at: Hub) -> None:
    refused = at.counter(REFUSED)
    with at.client("10.99.0.6") as first:
        with at.connect() as second:
            second.send(DATA, packets.echo_request("10.99.0.6", OWN, 1))
            assert second.ended()
        assert at.counter(REFUSED) == refused + 1
        refusal = f"refused: 10.99.0.6 belongs to the client at {at.node.address}"
        at.instance.wait_for_log(refusal, seconds=SUMMARY_SECONDS)
        assert ping(first, "10.99.0.6", number=2)
    at.wait_until_left()
    with at.client("10.99.0.6"):
        pass


def test_a_client_sends_from_its_own_address_alone(at: Hub) -> None:
    with at.client("10.99.0.7") as honest, at.client("10.99.0.8") as other:
        before = at.counter(SOURCE_REFUSED)
        for source in ("10.99.0.7", "10.99.0.9", OWN, "192.0.2.1", "fe80::8"):
            other.send(DATA, packets.echo_request(source, "fd99::7" if ":" in source else "10.99.0.7", 1))
        other.send(DATA, packets.echo_request("10.99.0.9", OWN, 1))
        assert ping(other, "10.99.0.8", number=2)
        assert at.counter(SOURCE_REFUSED) == before + 6
        packet = udp("10.99.0.8", "10.99.0.7", UDP_PORT, b"the only one")
        other.send(DATA, packet)
        assert honest.receive() == (DATA, packet)


NOBODYS = {
    "unspecified": "0.0.0.0",
    "server": OWN,
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "of-the-subnet": "10.99.0.255",
    "network": "10.99.0.0",
    "elsewhere": "192.0.2.77",
    "loopback": "127.0.0.1",
    "link-local": "169.254.1.1",
    "unspecified6": "::",
    "link-local6": "fe80::1",
    "multicast6": "ff02::1",
    "server6": OWN6,
    "router6": "fd99::",
}


def test_a_source_that_no_client_can_have_is_not_learnt_but_counted(at: Hub) -> None:
    before = at.counter(SOURCE_REFUSED)
    with at.connect() as peer:
        for source in NOBODYS.values():
            peer.send(DATA, packets.echo_request(source, OWN6 if ":" in source else OWN, 1))
        eventually(lambda: at.counter(SOURCE_REFUSED) == before + len(NOBODYS))
        (shown,) = at.peers()
        assert (shown["name"], shown["addresses"]) == ("-", [])
        malformed = at.counter("tun.dropped_packet_malformed")
        peer.send(DATA, udp("10.99.0.10", OWN, UDP_PORT, b"cut off")[:-1])
        peer.send(DATA, b"")
        peer.send(b"\x03", packets.echo_request("10.99.0.10", OWN, 1))
        assert ping(peer, "10.99.0.11")
        assert at.counter("tun.dropped_packet_malformed") == malformed + 2
        assert [each["addresses"] for each in at.peers()] == [["10.99.0.11"]]


def test_a_client_has_one_address_in_each_subnet(at: Hub) -> None:
    with at.client("fd99::12") as peer, at.client("10.99.0.13") as other:
        assert ping(peer, "10.99.0.12")
        assert ping(peer, "fd99::12", number=2)
        (first, _) = at.peers()
        assert first["addresses"] == ["fd99::12", "10.99.0.12"] or first["addresses"] == ["10.99.0.13"]
        before = at.counter(SOURCE_REFUSED)
        peer.send(DATA, packets.echo_request("fd99::99", OWN6, 1))
        peer.send(DATA, packets.echo_request("10.99.0.99", OWN, 1))
        assert ping(peer, "10.99.0.12", number=3)
        assert at.counter(SOURCE_REFUSED) == before + 2
        with at.connect() as thief:  # the second family is claimed behind the first
            assert ping(thief, "10.99.0.14")
            thief.send(DATA, packets.echo_request("fd99::12", OWN6, 1))
            assert thief.ended()
        assert ping(other, "10.99.0.13", number=4) and ping(peer, "fd99::12", number=5)


def test_a_packet_to_nobody_or_to_everybody_goes_nowhere(at: Hub) -> None:
    with at.client("10.99.0.15") as peer, at.client("10.99.0.16") as other:
        multicast, own = at.counter("tun.dropped_multicast"), at.counter("tun.dropped_own_destination")
        for target in ("224.0.0.251", "255.255.255.255", "10.99.0.15"):
            peer.send(DATA, ipv4("10.99.0.15", target, 17, bytes(8)))
        assert ping(peer, "10.99.0.15", number=2) and ping(other, "10.99.0.16", number=2)
        assert at.counter("tun.dropped_multicast") == multicast + 2
        assert at.counter("tun.dropped_own_destination") == own + 1


def test_a_client_that_reads_nothing_costs_the_others_nothing(tmp_path: Path) -> None:
    with hub(tmp_path, peer_queue_bytes=135168) as made, made.client("10.99.0.2"), made.client("10.99.0.3") as other:
        with made.instance.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for number in range(50):
                read = made.counter("tun.packets_read")
                for _ in range(400):  # less than the device's queue holds
                    flood.sendto(bytes(1300), ("10.99.0.2", 9))
                eventually(lambda: made.counter("tun.packets_read") >= read + 400)
                assert ping(other, "10.99.0.3", number=number)
        eventually(lambda: made.counter("tcp.dropped_peer_full") > 0)
        assert ping(other, "10.99.0.3", number=2)


def test_a_reload_keeps_clients_and_their_addresses(tmp_path: Path) -> None:
    with hub(tmp_path) as made, made.client("10.99.0.2") as one, made.client("10.99.0.3") as two:
        made.instance.write(made.instance.config | {"rate_mbit": 100})
        assert made.instance.command("reload").stdout == "changed: rate_mbit\n"
        assert {peer["rate_mbit"] for peer in made.peers()} == {100}
        packet = udp("10.99.0.2", "10.99.0.3", UDP_PORT, b"still there?")
        one.send(DATA, packet)
        assert two.receive() == (DATA, packet)
        for words in (["invite", "three"], ["revoke", "10.99.0.2"]):
            refused = made.instance.command(*words)
            assert refused.returncode == 1 and "does not say who a client is" in refused.stderr


def test_a_killed_tun_worker_costs_no_client_its_address(tmp_path: Path) -> None:
    with hub(tmp_path) as made, made.client("10.99.0.2") as one, made.client("10.99.0.3") as two:
        pid = made.instance.signal_worker("tun-0", signal.SIGKILL)
        made.instance.wait_until_replaced("tun-0", pid)
        packet = udp("10.99.0.2", "10.99.0.3", UDP_PORT, b"still there?")
        one.send(DATA, packet)
        assert two.receive() == (DATA, packet)
        assert ping(two, "10.99.0.3", number=2)


def test_clients_of_an_isolated_hub_reach_the_hub_only(tmp_path: Path) -> None:
    with hub(tmp_path, client_isolation=True) as made, made.client("10.99.0.2") as one, made.client("10.99.0.3") as two:
        one.send(DATA, echo_request("10.99.0.2", "10.99.0.3", b"hello?"))
        assert ping(one, "10.99.0.2", number=2) and ping(two, "10.99.0.3", number=2)
        assert made.counter("tun.dropped_isolated") == 1


def test_max_clients_are_served_with_an_address_or_without(tmp_path: Path) -> None:
    with hub(tmp_path, max_clients=2) as made:
        with made.connect() as silent, made.client("10.99.0.3"):
            silent.send(KEEPALIVE)
            eventually(lambda: made.counter("tcp.frames_received") == 2)
            with made.connect() as third:
                assert third.ended()
            assert made.counter(REFUSED) == 1
            made.instance.wait_for_log("max_clients 2")
        made.wait_until_left()
        with made.client("10.99.0.4") as again, made.client("10.99.0.3"):
            assert ping(again, "10.99.0.4", number=2)


def test_a_silent_client_gets_keepalives_and_is_kept_while_it_sends_its_own(tmp_path: Path) -> None:
    with hub(tmp_path, "1.3", keepalive=0.5, timeout=2.5) as made, made.connect() as peer:
        for _ in range(10):
            assert peer.receive() == (KEEPALIVE, b"")
            peer.send(KEEPALIVE)
        assert ping(peer, "10.99.0.2")
        while peer.receive() is not None:  # it falls silent
            pass
        assert made.counter("tcp.connections_timed_out") == 1


@pytest.mark.parametrize("sent", [False, True], ids=["idle", "sent-to"])
def test_a_client_that_has_vanished_and_comes_back_from_the_same_host_has_its_address_again(
    sent: bool, tmp_path: Path
) -> None:
    """Its old connection is as if its machine had lost power: no packet of it arrives any more."""
    with hub(tmp_path, connects_per_address=1000) as made:
        with made.client("10.99.0.2") as old:
            made.node.run(["nft", "-f", "-"], input=VANISHED.format(port=old.port))
            if sent:
                flows.ping(made.instance.node, "10.99.0.2", count=2, interval=0.01, timeout=0.1)
            with made.connect() as thief:  # it is refused at first, even if it is the client itself
                thief.send(DATA, packets.echo_request("10.99.0.2", OWN, 1))
                assert thief.ended()
            eventually(lambda: returns(made, "10.99.0.2"), BACK_SECONDS, "the client is back")
        assert made.counter("tcp.connections_timed_out") == 0


def test_a_client_that_is_there_keeps_its_address_however_silent_it_is_and_however_often_it_is_claimed(
    tmp_path: Path,
) -> None:
    with hub(tmp_path, connects_per_address=1000) as made, made.client("10.99.0.2") as old:
        asked_out = time.monotonic() + 5.0  # one that is not there has ended by then
        while time.monotonic() < asked_out:
            assert not returns(made, "10.99.0.2")
        assert ping(old, "10.99.0.2", number=2)
        assert made.counter("tcp.connections_lost") == made.counter(REFUSED)


def returns(made: Hub, address: str) -> bool:
    """Whether a client gets this address now. It leaves at once."""
    with made.connect() as peer:
        peer.send(DATA, packets.echo_request(address, OWN, 1))
        return peer.receive_packet() is not None


@pytest.mark.parametrize("tls", [PLAIN, "1.3"], ids=["plain", "tls"])
def test_our_clients_meet_at_our_hub_and_come_back_after_a_killed_worker(tls: str, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    with Lab(names=("hub", "one", "two")) as lab, ExitStack() as stack:
        node = lab.nodes[0]
        serving = server_config(node, **HUB, lanes=2) | protection("server", tls, certificate)
        server = stack.enter_context(Instance(node, serving, tmp_path))
        clients = []
        for number, each in enumerate(lab.nodes[1:], 2):
            mine = client_config(serving, node.address, **CLIENT) | protection("client", tls, certificate)
            mine["tunnel_addr"] = [f"10.99.0.{number}/24", f"fd99::{number}/64"]
            clients.append(stack.enter_context(Instance(each, mine, tmp_path)))
        for instance in (server, *clients):
            instance.wait_until_connected()
        meet(server, clients)
        for worker in ("tcp-0", "tcp-1"):
            pid = server.signal_worker(worker, 9)
            server.wait_until_replaced(worker, pid)
        for client in clients:
            eventually(lambda: connected(client), what="connected again")
        meet(server, clients)


def connected(client: Instance) -> bool:
    return any(each["state"] == "established" for each in client.running()["connections"])


def meet(server: Instance, clients: list[Instance]) -> None:
    for six in (False, True):
        for client in clients:  # the hub knows a client after its first packet
            eventually(lambda: reaches(client, server, count=1, six=six, seconds=1.0), what="the hub")
        assert reaches(clients[0], clients[1], six=six) and reaches(clients[1], clients[0], six=six)


@pytest.mark.parametrize("tls", TLS_VERSIONS, ids=lambda version: version or "plain")
def test_our_clients_meet_at_the_originals_hub(tls: str, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    wrap: Callable = (lambda sock: certificate.in_tls(sock, tls)) if tls else (lambda sock: sock)
    with Lab(names=("hub", "one", "two")) as lab, ExitStack() as stack:
        node = lab.nodes[0]
        listener = stack.enter_context(node.socket())
        listener.bind((node.address, 0))
        listener.listen()
        theirs = CompatHub(listener, OWN, wrap)
        stack.callback(theirs.close)
        clients = []
        for number, each in enumerate(lab.nodes[1:], 2):
            address = {"local_addr": f"{node.address}:{listener.getsockname()[1]}"}
            mine = client_config(address, node.address, **CLIENT) | protection("client", tls, certificate)
            mine["tunnel_addr"] = f"10.99.0.{number}/24"
            clients.append(stack.enter_context(Instance(each, mine, tmp_path)))
        for client in clients:
            client.wait_until_connected()
            assert not packets_lost(client, OWN)
        assert not packets_lost(clients[0], "10.99.0.3") and not packets_lost(clients[1], "10.99.0.2")


def packets_lost(client: Instance, address: str) -> list[int]:
    return flows.ping(client.node, address, count=3, interval=0.01, size=1000).lost
