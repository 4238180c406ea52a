"""Unauthenticated clients beside peers: their turn, their share of the time, and the places that they occupy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pipeline.credentials import certificates
from pipeline.transport.connection import Connection
from pipeline.transport.settings import TlsMaterial
from pipeline.transport.tls_channel import EMPTY_RECORDS_MAX
from tests.harness.tls_foreign import ForeignClient
from tests.inline.harness.ends import WELCOME, Dial, End, Make, Peer, carry, hello, step_for, until
from tests.inline.harness.hub_ends import between, connected_hub, tls

PACKETS = between(1, 0, range(100), size=1400)  # 140 kB


@pytest.fixture
def nothing_beside_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes beside traffic waits until it has ended, which is soon. However slow the machine is, bytes of
    peers are traffic."""
    monkeypatch.setattr("pipeline.policy.handshake_budget.TRAFFIC_BYTES", 1)
    monkeypatch.setattr("pipeline.policy.handshake_budget.SHARE", 1 << 60)
    monkeypatch.setattr("pipeline.policy.handshake_budget.BURST_NS", 1_000_000)
    monkeypatch.setattr("pipeline.policy.handshake_budget.BUSY_NS", 500_000_000)


@pytest.fixture
def dial_from() -> Iterator:
    """Peers that dial from an address of the loopback network."""
    with ExitStack() as stack:

        def dial(end: End, number: int) -> Peer:
            sock = socket.create_connection(("127.0.0.1", end.port), source_address=(f"127.0.1.{number}", 0))
            return Peer(stack.enter_context(sock))

        yield dial


@pytest.mark.usefixtures("nothing_beside_traffic")
def test_while_the_traffic_of_peers_takes_all_time_a_newcomer_waits_and_the_peers_do_not(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.policy.handshake_budget.BUSY_NS", 5_000_000_000)  # a busy machine is slow
    server, one = connected_hub(make, count=1)
    newcomer = make("client", port=server.port, client_id=2, session=1)
    until(lambda: server.established() == 2, server, one, newcomer)  # in quiet
    newcomer.kill("tcp-0")
    until(lambda: server.established() == 1, server, one)
    step_for(0.1, server, one)
    carry(one, server, PACKETS)
    step_for(0.1, server, one)
    server.workers["tcp-0"].duty("inbound").connections._queue._budget.spend(60_000_000)
    newcomer.start("tcp-0")
    before = len(server.packets())
    step_for(0.2, server, one, newcomer)
    assert server.established() == 1
    carry(one, server, PACKETS)
    assert len(server.packets()) == before + len(PACKETS)
    until(lambda: server.established() == 2, server, one, newcomer)


def test_clients_that_connect_beside_traffic_get_in(make: Make) -> None:
    material, plain = tls()
    server, one = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    for number in range(2, 4):
        carry(one, server, PACKETS)
        other = make("client", port=server.port, tls=plain, client_id=number, session=1)
        until(lambda: other.established() == 1, server, one, other)


def test_silent_clients_lose_their_places_to_others_once_they_have_had_time_enough(
    make: Make, dial_from: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tcp.server_connections.ENOUGH_NS", 60_000_000_000)
    server = make("server", max_handshakes=4)
    silent = [dial_from(server, number) for number in range(4)]
    step_for(0.05, server)
    early = dial_from(server, 10)
    until(lambda: early.read_frames().ended, server)
    assert server.count("tcp.closed_handshakes_full") == 1
    monkeypatch.setattr("workers.tcp.server_connections.ENOUGH_NS", 300_000_000)
    step_for(0.3, server)
    late = dial_from(server, 11)
    late.send(hello())
    until(lambda: WELCOME in late.kinds(), server)
    assert [peer.read_frames().ended for peer in silent] == [True, False, False, False]
    assert server.count("tcp.closed_for_another") == 1


def test_handshakes_that_are_over_either_way_leave_room_for_others_from_their_address(make: Make, dial: Dial) -> None:
    server = make("server", capacity=3, max_handshakes_per_address=1)
    for client in (1, 2, 3):
        dial(server, hello(client=client))
        nobody = dial(server)
        nobody.send(b"GET / HTTP/1.1\r\n\r\n")
        until(lambda: nobody.read_frames().ended, server)
    assert server.count("tcp.closed_handshakes_of_address") == 0
    assert (server.established(), server.count("tcp.closed_hello_invalid")) == (3, 3)


def test_a_client_that_says_nothing_costs_no_object_of_openssl(make: Make, dial: Dial) -> None:
    server = make("server", tls=tls()[0])
    peer = dial(server)
    until(lambda: server.workers["tcp-0"].duty("inbound").connections._handshaking.by_fd, server)
    (connection,) = server.workers["tcp-0"].duty("inbound").connections._handshaking.by_fd.values()
    assert connection.channel is None
    peer.send(b"x")
    until(lambda: connection.channel is not None, server)


def test_a_client_that_changes_its_key_without_end_and_says_no_hello_is_closed(make: Make) -> None:
    server = make("server", tls=tls()[0])
    client = ForeignClient(socket.create_connection(("127.0.0.1", server.port)))
    try:
        until(client.connect, server)
        for _ in range(EMPTY_RECORDS_MAX + 1):
            client.update_key()
        until(lambda: server.count("tcp.closed_hello_invalid") == 1, server)
    finally:
        client.close()


def test_a_connection_from_before_a_reload_shows_the_certificate_of_after_it_and_proves_that(
    make: Make, dial: Dial
) -> None:
    server = make("server", tls=tls()[0])
    peer = dial(server)
    manager = server.workers["tcp-0"].duty("inbound").connections
    until(lambda: manager._handshaking.by_fd, server)
    (connection,) = manager._handshaking.by_fd.values()
    other = certificates.make_self_signed("other")
    hash_of_other = certificates.fingerprint(other.certificate)
    renewed = TlsMaterial(other.certificate.decode(), other.key.decode(), "", "1.3", hash_of_other)
    manager._apply_settings(server.plan.settings._replace(tls=renewed))
    peer.send(b"x")
    until(lambda: connection.channel is not None, server)
    assert connection.handshake.certificate_hash.hex() == hash_of_other


def test_a_peer_that_connects_again_and_again_takes_the_time_of_unauthenticated_clients(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tcp.server_connections.HANDSHAKES_AT_ONCE", 3)
    monkeypatch.setattr("workers.tcp.server_connections.HANDSHAKE_INTERVAL_NS", 10**12)
    server, *ends = connected_hub(make, count=2)
    one, two = ends
    queue = server.workers["tcp-0"].duty("inbound").connections._queue
    given_back: list[bool] = []
    forget = queue.forget

    def recorded(connection: Connection, *, free: bool) -> None:
        given_back.append(free)
        forget(connection, free=free)

    monkeypatch.setattr(queue, "forget", recorded)
    for number in range(4):
        one.kill("tcp-0")
        until(lambda: server.established() == 1, server, two)
        one.start("tcp-0")
        until(lambda: server.established() == 2 and len(given_back) == number + 1, server, one, two)
    two.kill("tcp-0")
    two.start("tcp-0")
    until(lambda: len(given_back) == 5, server, one, two)
    assert given_back == [True, True, False, False, True] and server.count("tcp.handshakes_charged") == 2
