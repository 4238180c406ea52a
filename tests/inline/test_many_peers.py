"""Clients of a hub that connect, reconnect, are refused or revoked, and the clients that get their indexes afterwards.

An index is given to another client after its client has disconnected. No packet for the one may reach the other.
"""

from __future__ import annotations

import time

import pytest

from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.registry import KnownPeer
from tests.inline.harness.ends import (
    REFUSED,
    WELCOME,
    Dial,
    End,
    Make,
    Peer,
    block_of,
    ended,
    hello,
    number_of,
    step_for,
    until,
)
from tests.inline.harness.hub_ends import (
    ACCEPTS_SHARDS,
    BULK_BYTES,
    addresses_of,
    all_packets,
    between,
    configure,
    destinations,
    forget_admission_times,
    index_of,
    inside,
    name_of,
    packet,
    peers_by_number,
    run_duty,
)

SUPERSEDED, FULL, ADDRESS_TAKEN, ADDRESS_OUTSIDE, TOO_MANY = 3, 4, 5, 6, 8  # docs/wire.md


def dial_refused(server: End, dial: Dial, hello_frame: bytes) -> tuple[int, str]:
    """Dial and be refused: the reason and the text."""
    peer = dial(server)
    peer.send(hello_frame)
    ended(peer, server)
    ((kind, body),) = peer.frames
    assert kind == REFUSED
    return body[0], body[1:].decode()


def disconnect(server: End, *peers: Peer) -> None:
    """Close connections, and wait until the server has closed them, too."""
    expected = server.established() - len(peers)
    for peer in peers:
        peer.close()
    until(lambda: server.established() == expected, server)


# -- sessions


@pytest.mark.parametrize("worker", ["tcp-0", "tcp-1"], ids=["the-same-worker", "another-worker"])
@pytest.mark.parametrize("connections", [1, 3])
def test_a_newer_session_replaces_the_older_one_and_keeps_its_addresses(
    make: Make, worker: str, connections: int
) -> None:
    server = make("server", lanes=2, capacity=4)
    other = make("client", port=server.port, client_id=2, session=1)
    older = make("client", port=server.port, client_id=1, session=5, connections=connections)
    until(
        lambda: (server.step("tcp-0") and False) or (older.established() == connections and other.established()),
        older,
        other,
    )
    addresses = peers_by_number(server)[1]["addresses"]
    newer = make("client", port=server.port, client_id=1, session=6, connections=connections)
    until(lambda: (server.step(worker) and False) or newer.established() == connections, newer)
    until(lambda: not older.established() and server.established() == 1 + connections, server, older, newer, other)
    until(lambda: older.count("tcp.dials_failed") > 2, server, older, newer, other)  # and it continues to dial
    assert peers_by_number(server)[1]["addresses"] == addresses
    here = addresses[0]
    for number in range(5):
        server.write(packet("10.0.0.1", here, number))
        other.write(packet(peers_by_number(server)[2]["addresses"][0], here, 10 + number))
        newer.write(packet(here, "10.0.0.1", number))
    until(lambda: len(newer.packets()) == 10 and len(server.packets()) == 5, server, older, newer, other)
    assert older.packets() == []
    assert newer.count("tcp.connections_lost") == other.count("tcp.connections_lost") == 0


def test_an_older_session_is_refused_while_a_newer_one_is_connected_and_admitted_afterwards(
    make: Make, dial: Dial
) -> None:
    server = make("server", capacity=4)
    disconnect(server, dial(server, hello(client=1, session=5)))
    newer = dial(server, hello(client=1, session=6))
    reason, text = dial_refused(server, dial, hello(client=1, session=5))
    assert (reason, text) == (SUPERSEDED, "a newer session of the same peer is connected")
    server.write(*between(0, 1, range(1)))
    until(lambda: newer.packets() == between(0, 1, range(1)), server)
    disconnect(server, newer)
    forget_admission_times(server)
    older = dial(server, hello(client=1, session=5))
    server.write(*between(0, 1, range(1, 2)))
    until(lambda: older.packets() == between(0, 1, range(1, 2)), server)


def test_a_session_may_have_several_connections_and_each_replaces_its_predecessor(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4)
    first, second = (dial(server, hello(client=1, index=index, connections=2)) for index in (0, 1))
    assert server.memory.peer_table.established_count(index_of(server, 1)) == 2
    first.send(block_of(*between(1, 0, range(1))))
    second.send(block_of(*between(1, 0, range(1, 2))))
    until(lambda: sorted(map(number_of, server.packets())) == [0, 1], server)
    again = dial(server)
    again.send(hello(client=1, index=1, connections=2))
    ended(second, server)
    until(lambda: WELCOME in again.kinds() and server.established() == 2, server)
    assert not first.read_frames().ended


def test_a_connection_beyond_max_connections_per_client_is_refused(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, connections_max=5)
    most = 5
    for index in range(most):
        dial(server, hello(client=1, index=index, connections=most + 1))
    reason, _ = dial_refused(server, dial, hello(client=1, index=most, connections=most + 1))
    assert reason == TOO_MANY
    assert server.established() == most
    dial(server, hello(client=2))


# -- addresses


def test_each_client_gets_the_addresses_that_it_requests(make: Make) -> None:
    server = make("server", capacity=4)
    requested = {1: ["10.0.0.99", "fd00::99"], 2: ["10.0.0.7"]}
    clients = {
        number: make("client", port=server.port, client_id=number, session=1, requested_addresses=addresses)
        for number, addresses in requested.items()
    }
    until(lambda: all(client.established() for client in clients.values()), server, *clients.values())
    for number, addresses in requested.items():
        assert peers_by_number(server)[number]["addresses"] == addresses
        for address in addresses:
            server.write(packet("10.0.0.1" if "." in address else "fd00::1", address))
    until(lambda: len(clients[1].packets()) == 2 and len(clients[2].packets()) == 1, server, *clients.values())
    clients[1].write(packet("fd00::99", "fd00::1"))
    until(server.packets, server, *clients.values())


def test_a_request_for_the_address_of_another_client_is_refused_with_the_reason(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4)
    first = dial(server, hello(client=1, requested=["10.0.0.9"]))
    reason, text = dial_refused(server, dial, hello(client=2, requested=["10.0.0.9"]))
    assert reason == ADDRESS_TAKEN
    assert text.startswith("10.0.0.9 belongs to another peer")
    server.write(packet("10.0.0.1", "10.0.0.9"))
    until(lambda: first.packets() == [packet("10.0.0.1", "10.0.0.9")], server)
    dial(server, hello(client=2, requested=["10.0.0.10"]))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1", ADDRESS_TAKEN),
        ("10.0.0.0", ADDRESS_OUTSIDE),
        ("10.0.0.255", ADDRESS_OUTSIDE),
        ("192.0.2.1", ADDRESS_OUTSIDE),
        ("127.0.0.1", ADDRESS_OUTSIDE),
        ("fd00::1", ADDRESS_TAKEN),
        ("fe80::1", ADDRESS_OUTSIDE),
        ("ff02::1", ADDRESS_OUTSIDE),
    ],
)
def test_no_client_gets_an_address_of_the_server_or_one_that_no_host_can_have(
    make: Make, dial: Dial, address: str, expected: int
) -> None:
    server = make("server", capacity=4)
    assert dial_refused(server, dial, hello(client=1, requested=[address]))[0] == expected
    assert server.memory.peer_table.established_count(0) == 0


def test_a_client_that_lost_its_address_while_away_gets_packets_when_it_returns(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, inside=["10.0.0.1/30"])  # one client has an address
    (there,) = between(0, 1, range(1))
    disconnect(server, dial(server, hello(client=1)))
    forget_admission_times(server)
    disconnect(server, dial(server, hello(client=2)))
    forget_admission_times(server)
    back = dial(server, hello(client=1))  # the same session: it had only lost its connection
    server.write(there)
    until(lambda: back.packets() == [there], server, seconds=3)
    back.send(block_of(packet(inside(1, 4), inside(0, 4))))
    until(server.packets, server, seconds=3)


def test_a_client_that_returns_with_another_request_gets_the_new_address(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4)
    disconnect(server, dial(server, hello(client=1, requested=["10.0.0.9"])))
    forget_admission_times(server)
    back = dial(server, hello(client=1, requested=["10.0.0.10"]))
    assert peers_by_number(server)[1]["addresses"] == ["10.0.0.10"]
    there = packet("10.0.0.1", "10.0.0.10")
    server.write(there)
    until(lambda: back.packets() == [there], server, seconds=3)


# -- limits


def test_there_are_at_most_max_clients_at_a_time(make: Make, dial: Dial) -> None:
    server = make("server", capacity=2)
    first, second = (dial(server, hello(client=client)) for client in (1, 2))
    reason, text = dial_refused(server, dial, hello(client=3))
    assert reason == FULL
    assert "max_clients 2" in text
    assert not first.read_frames().ended and not second.read_frames().ended
    disconnect(server, first)
    forget_admission_times(server)
    third = dial(server, hello(client=3))
    server.write(packet("10.0.0.1", peers_by_number(server)[3]["addresses"][0]))
    until(third.packets, server)
    assert dial_refused(server, dial, hello(client=1))[0] == FULL


@pytest.mark.alone
def test_a_revoked_peer_loses_its_address_and_within_a_tick_its_connections(make: Make, dial: Dial) -> None:
    server = make("server", lanes=2, capacity=4)
    peers = []
    for worker, index in (("tcp-0", 0), ("tcp-1", 1)):
        peers.append(dial(server))
        peers[-1].send(hello(client=1, index=index, connections=2))
        until(lambda: (server.step(worker) and False) or WELCOME in peers[-1].kinds())
    other = dial(server, hello(client=2))
    configure(server, KnownPeer(PeerPolicy(name_of(1))))
    peers[0].send(block_of(*between(1, 0, range(1))))
    until(lambda: len(server.packets()) == 1, server)
    since = time.monotonic()
    configure(server)
    peers[0].send(block_of(*between(1, 0, range(1, 2)), *between(1, 2, range(1))))  # too late
    server.write(*between(0, 1, range(1)))
    for peer in peers:
        ended(peer, server)
    assert time.monotonic() - since < 1.0
    until(lambda: not server.step())
    assert number_of(server.packets()[-1]) == 0
    assert other.packets() == []
    assert server.count("tun.dropped_source_refused") == 2
    assert server.count("tun.dropped_no_peer") == 1
    assert peers_by_number(server).keys() == {2}
    server.write(*between(0, 2, range(5, 6)))
    until(lambda: other.packets() == between(0, 2, range(5, 6)), server)


# -- an index that passes to another client


def connect_under_freed_index(server: End, dial: Dial, client: int, features: int = 0) -> Peer:
    """A client that gets the index of a client that is away."""
    forget_admission_times(server)
    return dial(server, hello(client=client, features=features))


def expect_only_its_own(server: End, peer: Peer, client: int) -> None:
    """Packets for this client reach it, and it has received nothing else."""
    mine = [packet("10.0.0.1", peers_by_number(server)[client]["addresses"][0], 77, size) for size in (100, BULK_BYTES)]
    for each in mine:
        server.write(each)
    until(lambda: set(mine) <= set(all_packets(peer)), server)
    step_for(0.15, server)
    assert sorted(all_packets(peer)) == sorted(mine)


@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize("how", ["evicted", "revoked"])
def test_packets_that_wait_for_an_absent_client_never_reach_the_next_client_with_its_index(
    make: Make, dial: Dial, fec: str, how: str
) -> None:
    server = make("server", capacity=2, fec=fec, slots=8)
    if how == "revoked":
        configure(server, KnownPeer(PeerPolicy(name_of(1))))
    gone, _ = (dial(server, hello(client=client, features=ACCEPTS_SHARDS)) for client in (1, 2))
    index = index_of(server, 1)
    disconnect(server, gone)
    for each in between(0, 1, range(5)) + between(0, 1, range(5, 10), size=BULK_BYTES):
        server.write(each)
    until(lambda: server.count("tun.packets_read") == 10 and not server.step(), server)
    if how == "revoked":
        configure(server)
    third = connect_under_freed_index(server, dial, 3, ACCEPTS_SHARDS)
    assert index_of(server, 3) == index
    expect_only_its_own(server, third, 3)


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_partly_sent_frame_never_reaches_a_client_that_gets_the_index_at_that_moment(
    make: Make, dial: Dial, fec: str
) -> None:
    server = make("server", capacity=2, fec=fec, slots=8, send_buffer_bytes=30_000)
    gone = dial(server, hello(client=1, features=ACCEPTS_SHARDS), receive_buffer=30_000)
    other = dial(server, hello(client=2, features=ACCEPTS_SHARDS))
    index = index_of(server, 1)
    for each in between(0, 1, range(6), size=BULK_BYTES):
        server.write(each)
    until(lambda: server.count("tcp.socket_full_waits") > 3, server)
    third = at_the_same_moment(server, gone, 3)
    assert index_of(server, 3) == index
    expect_only_its_own(server, third, 3)
    assert other.packets() == []
    third.close()


@pytest.mark.parametrize("fec", ["off", "on"])
def test_packets_in_a_ring_never_reach_a_client_that_gets_the_index_at_that_moment(
    make: Make, dial: Dial, fec: str
) -> None:
    server = make("server", capacity=2, fec=fec, slots=8)
    gone, other = (dial(server, hello(client=client, features=ACCEPTS_SHARDS)) for client in (1, 2))
    for each in between(0, 1, range(3)) + between(0, 1, range(3, 6), size=BULK_BYTES):
        server.write(each)
    other.send(block_of(*between(2, 1, range(3))))
    until(
        lambda: (
            (server.count("tun.packets_read") == 6 and server.count("tun.packets_forwarded") == 3)
            or (run_duty(server, "tcp-0", "inbound") and False)
            or (server.step("tun-0") and False)
        )
    )
    third = at_the_same_moment(server, gone, 3)
    expect_only_its_own(server, third, 3)
    third.close()


def index_that_is_free(server: End) -> int:
    """The index of client 1 once it has no connection; the outbound duty of tcp-0 has not run since."""
    index = index_of(server, 1)
    until(
        lambda: (
            (run_duty(server, "tcp-0", "inbound") and False) or not server.memory.peer_table.established_count(index)
        )
    )
    forget_admission_times(server)
    return index


def at_the_same_moment(server: End, gone: Peer, client: int) -> Peer:
    """One client disconnects and another gets its index before the outbound duty of tcp-0 runs."""
    gone.reset()
    index = index_that_is_free(server)
    peer = Peer.dial(server.port)
    peer.send(hello(client=client, features=ACCEPTS_SHARDS))
    until(
        lambda: (
            (run_duty(server, "tcp-0", "inbound") and False)
            or (server.step("tun-0") and False)
            or server.memory.peer_table.established_count(index) == 1
        )
    )
    return peer


def test_the_overflow_queue_of_a_client_that_leaves_is_for_no_other_client(make: Make, dial: Dial) -> None:
    server = make("server", capacity=2, slots=4)
    gone, other = (dial(server, hello(client=client)) for client in (1, 2))
    overflow = server.workers["tun-0"].duty("outbound")._overflow

    def some_overflow() -> bool:  # while the sender of tcp-0 does not run
        if not overflow.packets:
            server.write(*between(0, 1, range(1), size=BULK_BYTES))
        server.step("tun-0")
        return bool(overflow.packets)

    until(some_overflow)
    third = at_the_same_moment(server, gone, 3)
    expect_only_its_own(server, third, 3)
    assert not overflow.packets
    assert other.packets() == []
    third.close()


def test_packets_sent_before_a_disconnect_never_count_as_the_next_clients(make: Make, dial: Dial) -> None:
    server = make("server", capacity=2)
    gone, other = (dial(server, hello(client=client)) for client in (1, 2))
    gone.send(block_of(*between(1, 0, range(3)), *between(1, 2, range(3))))
    until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or server.count("tcp.frames_received") == 1)
    gone.close()
    index = index_that_is_free(server)
    third = Peer.dial(server.port)
    third.send(hello(client=3))
    until(lambda: (server.step("tcp-0") and False) or server.memory.peer_table.established_count(index) == 1)
    until(lambda: not server.step())
    assert destinations(other.packets()) <= addresses_of(2)
    assert server.packets() == []
    assert server.count("tun.dropped_source_refused") == 6
    third.close()


def test_connections_of_one_peer_that_come_all_at_once_are_no_more_than_allowed(make: Make, dial: Dial) -> None:
    """The supervisor decides about all of them before the worker has established the first."""
    server = make("server", capacity=2, connections_max=3)
    peers = [dial(server) for _ in range(12)]
    for index, peer in enumerate(peers):
        peer.send(hello(index=index))
    for _ in range(50):
        server.step("tcp-0")  # and the supervisor after it, once
    until(lambda: sum(peer.read_frames().ended for peer in peers) == 9, server)
    assert server.established() == 3
    assert server.count("tcp.connections_refused") == 9
    again = dial(server)
    again.send(hello(index=next(index for index, peer in enumerate(peers) if not peer.ended)))
    until(lambda: WELCOME in again.kinds(), server, what="a connection that replaces another one is not one more")
    assert server.established() == 3


def test_connections_that_come_at_once_at_several_workers_are_no_more_than_allowed(make: Make, dial: Dial) -> None:
    server = make("server", lanes=3, capacity=2, connections_max=3)
    peers = [dial(server) for _ in range(12)]
    for index, peer in enumerate(peers):
        peer.send(hello(index=index))
    for _ in range(50):
        for lane in range(3):
            server.step(f"tcp-{lane}")
    until(lambda: sum(peer.read_frames().ended for peer in peers) == 9, server)
    assert server.established() == 3


def test_a_client_at_its_limit_replaces_its_connections_whichever_worker_has_them(make: Make, dial: Dial) -> None:
    """Its address has changed: nothing will ever arrive on the old connections, and nobody has ended them."""
    server = make("server", lanes=2, capacity=2, connections_max=4)

    def connect(index: int, lane: int) -> Peer:
        peer = dial(server)
        peer.send(hello(client=1, index=index, connections=4))
        until(lambda: (server.step(f"tcp-{lane}") and False) or WELCOME in peer.kinds())
        return peer

    old = [connect(index, lane) for index, lane in enumerate((0, 1, 0, 1))]
    new = [connect(index, lane) for index, lane in enumerate((1, 0, 0, 1))]
    until(lambda: all(peer.read_frames().ended for peer in old), server, what="the old connections end")
    assert server.memory.peer_table.established_count(index_of(server, 1)) == 4
    assert not any(peer.read_frames().ended for peer in new)
    reason, _ = dial_refused(server, dial, hello(client=1, index=4, connections=5))
    assert reason == TOO_MANY
