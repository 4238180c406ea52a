"""What stands beside the dgram workers: blocks reach them and come from them, and those they give back go by TCP.

A BlockWay stands in for the dgram workers of both ends.
"""

from __future__ import annotations

import random

import pytest

from tests.inline.harness.datagrams import BlockWay
from tests.inline.harness.ends import End, Make, carry, ipv4, number_of, push, until
from tests.inline.harness.hub_ends import between, connected_hub, index_of, tls
from tests.inline.test_amok import STEPS, overwrite, sends_anything
from tests.inline.test_sealed import BULK_BYTES, FEC, bulk, light, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

DATAGRAMS = {"carrier": "auto", "light_connections": 1}
CASES = {"bulk": bulk, "light": light}


def joined(make: Make, way: BlockWay, lanes: tuple[int, int] = (1, 1), **settings: object) -> tuple[End, End]:
    server, client = sealed_pair(make, lanes, dgram=way.duties, **(DATAGRAMS | settings))
    way.connect(server, client)
    return server, client


def open_way(way: BlockWay, *ends: End) -> None:
    way.is_open = True
    for end in ends:
        end.step(*(name for name in end.workers if name.startswith("dgram")))


def frames(end: End) -> int:
    return end.count("tcp.frames_sent")


@pytest.mark.parametrize("packets", CASES)
@pytest.mark.parametrize("lanes", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("fec", [{}, FEC])
def test_while_a_path_is_open_all_blocks_take_it_and_no_connection_carries_any(
    make: Make, packets: str, lanes: tuple[int, int], fec: dict[str, object]
) -> None:
    way = BlockWay()
    server, client = joined(make, way, lanes, **fec)
    open_way(way, server, client)
    before = frames(server), frames(client)
    sent = CASES[packets](range(40))
    for sender, receiver in ((client, server), (server, client)):
        carry(sender, receiver, sent)
        assert sorted(map(number_of, receiver.packets())) == sorted(map(number_of, sent))
    assert (frames(server), frames(client)) == before
    assert way.carried >= 2


def test_what_goes_in_datagrams_counts_as_bytes_of_the_peer(make: Make) -> None:
    way = BlockWay()
    server, client = joined(make, way)
    open_way(way, server, client)
    before = [end.memory.peer_table.sent_bytes(0) for end in (client, server)]
    carry(client, server, bulk(range(10)))
    sent = client.memory.peer_table.sent_bytes(0) - before[0]
    assert sent > 10 * BULK_BYTES
    assert server.memory.peer_table.received_bytes(0) >= sent
    assert server.memory.peer_table.sent_bytes(0) == before[1]


@pytest.mark.parametrize("packets", CASES)
@pytest.mark.parametrize("lanes", [(1, 1), (2, 2)])
@pytest.mark.parametrize("fec", [{}, FEC])
def test_blocks_that_are_given_back_go_by_tcp_and_none_is_lost(
    make: Make, packets: str, lanes: tuple[int, int], fec: dict[str, object]
) -> None:
    way = BlockWay()
    server, client = joined(make, way, lanes, **fec)
    open_way(way, server, client)
    tun = [name for name in client.workers if name.startswith("tun")]
    sent = CASES[packets](range(3))
    for packet in sent:
        client.write(packet)
        client.step(*tun)  # its consumer is the dgram worker
    way.is_open = False
    until(lambda: len(server.packets()) == len(sent), client, server)
    assert sorted(map(number_of, server.packets())) == [0, 1, 2]
    assert not way.carried
    assert client.count("tcp.frames_sent")


def test_packets_go_on_while_the_way_opens_and_closes_and_each_comes_once(make: Make) -> None:
    way = BlockWay()
    server, client = joined(make, way, (2, 2))
    waiting: list[bytes] = []
    for number in range(0, 300, 10):
        waiting += bulk(range(number, number + 5)) + light(range(number + 5, number + 10))
    count = len(waiting)

    def moved() -> bool:
        way.is_open = bool(len(waiting) // 20 % 2)
        return push(client, waiting) and len(server.packets()) >= count

    until(moved, client, server)
    assert way.carried and client.count("tcp.frames_sent")
    assert sorted(map(number_of, server.packets())) == list(range(count))


@pytest.mark.parametrize("fec", [{}, FEC])
def test_what_a_hub_passes_from_client_to_client_takes_the_path_of_each(make: Make, fec: dict[str, object]) -> None:
    way = BlockWay()
    serving, dialling = tls()
    server, first, second = connected_hub(
        make,
        seals=True,
        tls=serving,
        clients={"tls": dialling},
        dgram=way.duties,
        **({"carrier": "udp", "light_connections": 1} | fec),
    )
    for client in (first, second):
        way.connect(server, client, index_of(server, 1 + (client is second)))
    open_way(way, server, first, second)
    before = frames(server)
    for size in (100, 50_000):
        for packet in between(1, 2, range(5), size=size):
            first.write(packet)
        until(lambda: server.has_room(), server, first, second)
    until(lambda: len(second.packets()) == 10, server, first, second)
    assert frames(server) == before and way.carried >= 4
    way.is_open = False
    for packet in between(2, 1, range(5)):
        second.write(packet)
    until(lambda: len(first.packets()) == 5, server, first, second)
    assert frames(server) > before


@pytest.mark.parametrize("worker", ["tun-0", "tcp-0", "dgram-0"])
def test_a_killed_worker_has_a_successor_that_goes_on(make: Make, worker: str) -> None:
    way = BlockWay()
    server, client = joined(make, way, reconnect_min=0.01, reconnect_max=0.02)
    open_way(way, server, client)
    carry(client, server, bulk(range(5)))
    for end in (server, client):
        end.kill(worker)
        end.start(worker)
        until(lambda: server.established() == client.established() == 2, server, client)
    open_way(way, server, client)
    before = way.carried
    carry(client, server, light(range(5, 10)))
    carry(server, client, bulk(range(5)))
    assert way.carried > before


@pytest.mark.parametrize("seed", range(2))
def test_a_dgram_worker_that_overwrites_all_that_it_can_ends_no_other(make: Make, seed: int) -> None:
    way = BlockWay()
    server, client = joined(make, way, (2, 2))
    open_way(way, server, client)
    rng = random.Random(seed)
    others = [name for name in server.workers if name != "dgram-0"]
    for number in range(STEPS):
        overwrite(server, "dgram-0", rng)
        for end, lane in ((server, 1), (client, 0), (client, 1)):
            if end.has_room(lane):
                end.write(ipv4(number, rng.choice((60, 1400, 50_000))), lane)
        server.step(*others)
        client.step()
    assert any("spoilt" in name or "mended" in name for name in server.counts())
    server.kill("dgram-0")
    server.start("dgram-0")
    for sender, receiver in ((server, client), (client, server)):
        before = len(receiver.packets())
        until(lambda: sends_anything(sender, receiver, before), server, client)
