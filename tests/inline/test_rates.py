"""Clients of a hub that have a rate: they send and get so much and no more, and other clients do not notice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.registry import KnownPeer
from pipeline.runtime.worker import NOTHING
from pipeline.shm.layout import LINK_RECEIVED_BYTES, RECORD_WORDS, SENT_BYTES
from tests.inline.harness.ends import Dial, End, Make, Peer, block_of, hello, push, step_for, until
from tests.inline.harness.hub_ends import (
    BULK_BYTES,
    between,
    configure,
    connected_hub,
    dropped_for,
    index_of,
    name_of,
    on_worker,
    run_duty,
    tls,
)

pytestmark = pytest.mark.alone

RATE = 2_000_000
SMALL_SOCKETS = {"send_buffer_bytes": 200_000, "receive_buffer_bytes": 65_536}  # so that one call takes little
SLOW = 20_000
MEASURED_S = 1.5
STALL_S = 0.1  # less than the burst of a bucket: a step that took longer may have lost some of the rate
MEASUREMENTS_MAX = 5
BLOCK = block_of(*between(1, 0, range(1), size=BULK_BYTES))


def limit(server: End, client: int, rate: int) -> None:
    configure(server, KnownPeer(PeerPolicy(name_of(client), rate=rate)))


def sent_to(server: End, client: int) -> int:
    at = index_of(server, client) * RECORD_WORDS + SENT_BYTES
    return sum(lines[at] for lines in server.memory.peer_table.sent)


def received_from(server: End, client: int) -> int:
    at = index_of(server, client) * RECORD_WORDS + LINK_RECEIVED_BYTES
    return sum(lines[at] for lines in server.memory.peer_table.links)


def rates(step: Callable[[], object], measures: list[Callable[[], int]]) -> list[float]:
    """Bytes a second, once the bucket's first burst is used up. Measured again if the machine stood still meanwhile."""
    for _ in range(MEASUREMENTS_MAX):
        _, stalled_before = step_so_long(step, 0.3)
        before = [measure() for measure in measures]
        took, stalled = step_so_long(step, MEASURED_S)
        found = [(measure() - first) / took for measure, first in zip(measures, before, strict=True)]
        if not stalled_before and not stalled:
            break
    return found


def step_so_long(step: Callable[[], object], seconds: float) -> tuple[float, bool]:
    """How long it took, and whether a step took too long."""
    began = now = time.monotonic()
    stalled = False

    def over() -> bool:
        nonlocal now, stalled
        step()
        before, now = now, time.monotonic()
        stalled |= now - before > STALL_S
        return now - began > seconds

    until(over)
    return now - began, stalled


def rate_of(server: End, step: Callable[[], object], way: str) -> float:
    """Of client 1, which "sends" or "gets"."""
    measure = received_from if way == "sends" else sent_to
    (found,) = rates(step, [lambda: measure(server, 1)])
    return found


def send(peer: Peer, unsent: bytes) -> bytes:
    """As much of a block as the socket takes. The rest of it, with which the next call begins."""
    unsent = unsent or BLOCK
    try:
        return unsent[peer.socket.send(unsent) :]
    except BlockingIOError:
        return unsent


def get(server: End, peer: Peer, lane: int = 0) -> None:
    """One packet more for client 1, whose peer reads what has come."""
    peer.read_frames().frames.clear()
    if server.has_room(lane):
        server.write(between(0, 1, range(1), size=BULK_BYTES)[0], lane)


def expect_a_limit_for_the_first(
    ends: list[End], write: Callable[[], object], measure: Callable[[End, int], int]
) -> None:
    """Client 1 has its rate and client 2 more than that, while `write` gives the ends what there is room for."""
    server = ends[0]

    def step() -> None:
        write()
        for end in ends:
            end.step()
            end.received[0].clear()

    limited, other = rates(step, [lambda: measure(server, 1), lambda: measure(server, 2)])
    assert 0.9 * RATE < limited < 1.08 * RATE
    assert other > 1.3 * RATE


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_client_with_a_rate_gets_no_more_and_another_as_much_as_there_is(make: Make, fec: str) -> None:
    server, first, second = connected_hub(make, slots=16, fec=fec, connections=2, **SMALL_SOCKETS)
    limit(server, 1, RATE)

    def write() -> None:
        for client in (1, 2):
            if server.has_room():
                server.write(*between(0, client, range(1), size=BULK_BYTES))

    expect_a_limit_for_the_first([server, first, second], write, sent_to)
    assert dropped_for(server, 2) == 0


@pytest.mark.parametrize("encryption", ["none", "tls"])
def test_a_client_with_a_rate_sends_no_more_and_another_as_much_as_it_likes(make: Make, encryption: str) -> None:
    with_tls = tls() if encryption == "tls" else (None, None)
    server, first, second = connected_hub(
        make, slots=16, tls=with_tls[0], clients={"tls": with_tls[1]}, **SMALL_SOCKETS
    )
    limit(server, 1, RATE)

    def write() -> None:
        for number, end in ((1, first), (2, second)):
            push(end, between(number, 0, range(1), size=BULK_BYTES))

    expect_a_limit_for_the_first([server, first, second], write, received_from)
    assert server.count("tcp.rate_pauses") > 0
    assert not [name for name in server.counts() | first.counts() if ".dropped_" in name]  # TCP slows it down


def test_light_packets_of_a_client_beyond_its_rate_go_on_up_to_that_rate(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=16, **SMALL_SOCKETS)
    bulk, light = (dial(server, hello(index=each, connections=2, traffic_class=each)) for each in (0, 1))
    dial(server, hello(client=2))
    limit(server, 1, SLOW)
    client = server.workers["tcp-0"].duty("inbound").connections.peers[index_of(server, 1)]

    def flood(peer: Peer, unsent: bytes) -> bytes:
        server.step()
        server.received[0].clear()
        return send(peer, unsent)

    unsent = b""
    while not client.paused:
        unsent = flood(bulk, unsent)
    client.bucket.spend(100 * SLOW, time.monotonic_ns())  # it stays paused, whatever the last receive has brought
    (packet,) = between(1, 0, range(1), size=100)
    for _ in range(20):
        server.received[0].clear()
        light.send(block_of(packet))
        until(lambda: packet in server.packets(), server)
        assert client.paused and not client.light_waits
    unsent = b""
    while not client.light_waits:
        unsent = flood(light, unsent)
    client.light_bucket.spend(100 * SLOW, time.monotonic_ns())  # likewise, however slow this machine is
    before = received_from(server, 1)
    for _ in range(100):
        unsent = flood(light, unsent)
    assert client.paused and received_from(server, 1) == before


def test_a_connection_more_does_not_free_a_client_from_its_rate(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=16, **SMALL_SOCKETS)
    peers = [dial(server, hello(client=1, index=0, connections=8))]
    limit(server, 1, RATE)
    unsent = [b""]

    def step() -> None:
        if len(peers) < 8 and server.count("tcp.rate_pauses") > len(peers):
            peers.append(dial(server, hello(client=1, index=len(peers), connections=8)))
            unsent.append(b"")
        for turn, peer in enumerate(peers):
            unsent[turn] = send(peer, unsent[turn])
        server.step()
        server.received[0].clear()

    (limited,) = rates(step, [lambda: received_from(server, 1)])
    assert len(peers) > 1
    assert limited < 1.1 * RATE


def test_bytes_inside_the_tls_channel_of_a_client_beyond_its_rate_wait_like_the_others(make: Make) -> None:
    server, sender = connected_hub(make, 1, slots=16, tls=tls()[0], clients={"tls": tls()[1]})
    limit(server, 1, 1000)
    step_for(0.2, server, sender)
    packets = between(1, 0, range(30), size=BULK_BYTES)
    waiting = list(packets)
    until(lambda: push(sender, waiting) and sender.count("tun.packets_read") == 30 and not sender.step(), sender)
    until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or server.count("tcp.rate_pauses"))
    before = received_from(server, 1)
    inbound = server.workers["tcp-0"].duty("inbound")
    for connection in inbound.connections.established.values():
        inbound._add_readable(connection)  # as if a burst had left something
    assert {inbound.work() for _ in range(20)} == {NOTHING}
    assert received_from(server, 1) == before
    limit(server, 1, 0)
    until(lambda: server.packets() == packets, server, sender)


@pytest.mark.parametrize("way", ["sends", "gets"])
def test_a_rate_is_for_all_connections_of_a_client_whichever_worker_has_them(make: Make, way: str) -> None:
    server = make("server", lanes=2, capacity=4, slots=16, **SMALL_SOCKETS)
    peers = [on_worker(server, worker, 1, index) for index, worker in enumerate(("tcp-0", "tcp-1"))]
    limit(server, 1, RATE)
    unsent = [b"", b""]

    def step() -> None:
        for turn, peer in enumerate(peers):
            if way == "gets":
                get(server, peer, turn)
            else:
                unsent[turn] = send(peer, unsent[turn])
        server.step()
        for received in server.received:
            received.clear()

    try:
        limited = rate_of(server, step, way)
    finally:
        for peer in peers:
            peer.close()
    assert 0.8 * RATE < limited < 1.15 * RATE


@pytest.mark.parametrize("way", ["sends", "gets"])
def test_connections_that_come_and_go_give_a_client_no_more_than_its_rate(make: Make, way: str) -> None:
    server = make("server", lanes=2, capacity=4, slots=16, **SMALL_SOCKETS)
    peer = on_worker(server, "tcp-0", 1)
    limit(server, 1, 500_000)
    unsent = b""
    other: list[Peer] = []

    def step() -> None:
        nonlocal unsent
        if int(time.monotonic() / 0.13) % 2:  # longer than a tick
            while other:
                other.pop().close()
        elif not other and server.established() == 1:
            other.append(on_worker(server, "tcp-1", 1, 1))
        if way == "gets":
            get(server, peer)
        else:
            unsent = send(peer, unsent)
        for _ in range(3):
            server.step()
        for received in server.received:
            received.clear()

    try:
        limited = rate_of(server, step, way)
    finally:
        for each in (peer, *other):
            each.close()
    assert limited < 1.5 * 500_000  # one more or less is a quarter of that


@pytest.mark.parametrize("way", ["gets", "sends"])
def test_clients_share_the_rate_of_all_and_one_that_wants_less_has_what_it_wants(make: Make, way: str) -> None:
    """Clients 1 and 2 take all that they can, client 3 a packet now and then."""
    server, *clients = connected_hub(make, 3, slots=16, **SMALL_SOCKETS)
    total = 2 * RATE
    config = msgspec.structs.replace(server.hub.config, total_rate_mbit=total * 8 / 1e6)
    server.hub.configure(config, ())
    turns = itertools.count()

    def step() -> None:
        for number, end in enumerate(clients, 1):
            if number < 3 or not next(turns) % 100:
                if way == "sends":
                    push(end, between(number, 0, range(1), size=BULK_BYTES))
                elif server.has_room():
                    server.write(*between(0, number, range(1), size=BULK_BYTES))
        server.hub.tick(time.monotonic_ns())
        for end in (server, *clients):
            end.step()
            end.received[0].clear()

    measure = sent_to if way == "gets" else received_from
    rates(step, [])  # until the parts are found
    first, second, third = rates(step, [partial(measure, server, number) for number in (1, 2, 3)])
    assert first == pytest.approx(second, rel=0.2)
    assert third < 0.8 * first
    assert 0.8 * total < first + second + third < 1.1 * total
