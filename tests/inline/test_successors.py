"""Workers of a hub that are killed: their successors go on, and no client gets the packets of another."""

from __future__ import annotations

import pytest

from pipeline.wire import framing
from tests.inline.harness.ends import Dial, Make, Peer, block_of, hello, number_of, until
from tests.inline.harness.hub_ends import (
    ACCEPTS_SHARDS,
    addresses_of,
    all_packets,
    between,
    blocks_in_runs,
    connected_hub,
    destinations,
)


@pytest.mark.parametrize("worker", ["tun-0", "fec-0"])
def test_after_a_killed_worker_blocks_go_on_under_new_numbers_each_to_its_own_client(
    make: Make, dial: Dial, worker: str
) -> None:
    server = make("server", capacity=4, slots=8, fec="on")
    first, second, sender = (dial(server, hello(client=client, features=ACCEPTS_SHARDS)) for client in (1, 2, 3))
    for number in range(60):
        for client in (1, 2):
            server.write(*between(0, client, range(number, number + 1), size=5000 + 100 * client))
            sender.send(block_of(*between(3, client, range(number, number + 1), 6, 5000 + 100 * client)))
        server.step(*server.workers)
        if number in (20, 40):
            server.step("tun-0")  # so that there is something in hand
            server.kill(worker)
            server.step()
            server.start(worker)
    until(
        lambda: all(
            {59} <= {number_of(each) for each in all_packets(peer) if each[10] >> 4 == version}
            for peer in (first, second)
            for version in (4, 6)
        ),
        server,
    )
    for client, peer in ((1, first), (2, second)):
        assert destinations(all_packets(peer)) == addresses_of(client)
        streams = decoded_in_order(peer)
        assert len(streams) == 2  # from the server and from the client
        assert all(len(set(packets)) == len(packets) for packets in streams)
        assert sum(map(len, streams)) > 100
    assert server.count("tcp.connections_lost") == 0


def decoded_in_order(peer: Peer) -> list[list[bytes]]:
    """The packets of each bulk stream; decoded() sees to it that no number stands for two blocks."""
    return [
        [each for packets in stream.values() for each in packets]
        for number, stream in blocks_in_runs(peer).items()
        if number & 1 == framing.BULK
    ]


@pytest.mark.parametrize("duty", ["outbound", "inbound"])
def test_the_number_of_a_block_that_its_worker_died_with_is_not_used_again(make: Make, dial: Dial, duty: str) -> None:
    server = make("server", capacity=4, slots=8, fec="on")
    receiver, sender = (dial(server, hello(client=client, features=ACCEPTS_SHARDS)) for client in (1, 2))

    def give(number: int) -> None:
        if duty == "outbound":
            server.write(*between(0, 1, range(number, number + 1), size=5000))
        else:
            sender.send(block_of(*between(2, 1, range(number, number + 1), size=5000)))

    for number in range(3):
        give(number)
        until(lambda: len(all_packets(receiver)) == number + 1, server)
    it = server.workers["tun-0"].duty(duty)
    port = it._packer._burst.rings[1].port if duty == "outbound" else it._forwarder._port
    port.advance = die
    give(3)
    with pytest.raises(Killed):
        until(lambda: False, server)
    server.kill("tun-0")
    server.start("tun-0")
    give(4)
    until(lambda: number_of(all_packets(receiver)[-1]) == 4, server)
    (stream,) = blocks_in_runs(receiver).values()
    assert [number_of(packet) for packets in stream.values() for packet in packets] in ([0, 1, 2, 4], [0, 1, 2, 3, 4])
    assert max(stream) - min(stream) == len(stream)  # one is missing


class Killed(Exception):
    """A worker has ended in the middle of a step."""


def die(count: int) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("worker", "fec"), [("tun-0", "off"), ("tcp-0", "off"), ("tun-0", "on"), ("tcp-0", "on"), ("fec-0", "on")]
)
def test_a_killed_worker_of_a_hub_has_a_successor_and_no_client_gets_packets_of_another(
    make: Make, worker: str, fec: str
) -> None:
    server, first, second = connected_hub(make, slots=8, fec=fec, connections=2, light_connections=1, timeout=5.0)
    clients = {1: first, 2: second}
    numbers = iter(range(1_000_000))
    killed = []

    def traffic() -> None:
        number = next(numbers)
        if server.has_room():
            for client in clients:
                server.write(*between(0, client, range(number, number + 1), 4 + 2 * (number % 2), 100 + number % 7000))
        for client, end in clients.items():
            if end.has_room():
                end.write(*between(client, 3 - client, range(number, number + 1), 4, 100 + number % 7000))

    def enough() -> bool:
        traffic()
        if len(killed) < 3 and min(len(end.packets()) for end in clients.values()) > 100 * (1 + len(killed)):
            server.kill(worker)
            server.start(worker)
            killed.append(worker)
        return len(killed) == 3 and min(len(end.packets()) for end in clients.values()) > 500

    until(enough, server, first, second, seconds=20)
    for client, end in clients.items():
        assert destinations(end.packets()) <= addresses_of(client)
        sources = {each[22:26] for each in end.packets() if each[10] >> 4 == 4}
        assert len(sources) == 2  # the server's and the other client's
    assert not [name for name in server.counts() if "malformed" in name or "checksum" in name or "refused" in name]
