"""A hub: packets from one client to another, past the kernel of the server; and its streams of coded blocks."""

from __future__ import annotations

import struct
from collections import Counter
from functools import partial

import pytest

from pipeline.fec import shard
from pipeline.packet import ip
from pipeline.runtime.tun import TSO, TUN_F_CSUM
from pipeline.shm.layout import LINK_REQUESTS, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import read_header
from pipeline.wire import framing
from tests.inline.harness.ends import (
    KEEPALIVE,
    WELCOME,
    Dial,
    End,
    Make,
    Peer,
    block_of,
    frame,
    hello,
    number_of,
    push,
    until,
)
from tests.inline.harness.hub_ends import (
    ACCEPTS_SHARDS,
    BULK_BYTES,
    FAMILIES,
    RUN,
    Hosts,
    all_packets,
    between,
    blocks_in_runs,
    connected_hub,
    dropped,
    index_of,
    inside,
    on_worker,
    packet,
    run_duty,
    super_packet,
)

BLOCK_PACKET = 65_535  # with its header such a packet is a block

# -- from client to client


def carry_across(server: End, sender: End, receiver: End, packets: list[bytes]) -> list[bytes]:
    """Give packets to a client as fast as it takes them, and wait for as many at the other one: these."""
    waiting = list(packets)
    before = len(receiver.packets())
    until(lambda: push(sender, waiting) and len(receiver.packets()) >= before + len(packets), server, sender, receiver)
    return receiver.packets()[before:]


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize("size", [100, BULK_BYTES])
def test_packets_from_client_to_client_never_reach_the_kernel(make: Make, version: int, fec: str, size: int) -> None:
    server, first, second = connected_hub(make, fec=fec)
    there, back = between(1, 2, range(40), version, size), between(2, 1, range(40), version, size)
    assert carry_across(server, first, second, there) == there
    assert carry_across(server, second, first, back) == back
    assert server.packets() == []
    assert server.count("tun.packets_forwarded") == 80
    assert server.count("tun.packets_read") == 0
    assert not dropped(server)


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_light_packet_stays_light_on_its_way_to_another_client(make: Make, dial: Dial, fec: str) -> None:
    server = make("server", capacity=4, fec=fec)
    bulk1, light1, bulk2, light2 = (
        dial(
            server,
            hello(
                client=client, index=traffic_class, connections=2, traffic_class=traffic_class, features=ACCEPTS_SHARDS
            ),
        )
        for client in (1, 2)
        for traffic_class in (framing.BULK, framing.LIGHT)
    )
    (small,), (large,) = between(1, 2, range(1)), between(1, 2, range(1, 2))
    light1.send(block_of(small))
    until(lambda: all_packets(light2) == [small], server)
    assert all_packets(bulk2) == []
    bulk1.send(block_of(large))
    until(lambda: all_packets(bulk2) == [large], server)
    assert all_packets(light2) == [small]
    light1.send(run_of(block_of(small), stream=3))  # the last bit: of a light stream
    bulk1.send(run_of(block_of(large), stream=2))
    if fec == "on":
        until(lambda: all_packets(light2) == [small] * 2 and all_packets(bulk2) == [large] * 2, server)
        assert {stream & 1 for stream in blocks_in_runs(light2)} == {framing.LIGHT}
        assert {stream & 1 for stream in blocks_in_runs(bulk2)} == {framing.BULK}


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_light_packet_is_sent_on_the_light_connection_whichever_worker_has_it(make: Make, fec: str) -> None:
    server = make("server", capacity=4, lanes=2, fec=fec)
    light1, bulk2, light2 = peers = (
        on_worker(server, "tcp-0", 1, traffic_class=framing.LIGHT),
        on_worker(server, "tcp-0", 2),
        on_worker(server, "tcp-1", 2, 1, traffic_class=framing.LIGHT),
    )
    try:
        light1.send(block_of(*between(1, 2, range(1))))
        server.write(*between(0, 2, range(1)))
        until(lambda: len(all_packets(light2)) == 2, server)
        assert all_packets(bulk2) == []
    finally:
        for peer in peers:
            peer.close()


def run_of(
    body: bytes, stream: int, number: int = 0, n: int = 1, m: int = 0, first: int = 0, count: int = 1, size: int = 0
) -> bytes:
    return frame(RUN, struct.pack(">IIBBBBII", stream, number, n, m, first, count, size or len(body), 0) + body)


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("whence", [0, 1], ids=["from-the-server", "from-a-client"])
@pytest.mark.parametrize("takes", [0, TUN_F_CSUM, TSO], ids=["nothing", "checksums", "all"])
def test_a_super_packet_is_finished_for_a_client_that_takes_none_and_passed_on_whole_to_one_that_does(
    hosts: Hosts, version: int, whence: int, takes: int
) -> None:
    server, first, second = hosts((TSO, takes), offloads=TSO, offloads_accepted=TSO)
    whole = super_packet(inside(whence, version), inside(2, version), 4, 1000)
    if whence:
        first.send(block_of(whole))
    else:
        server.write(whole)
    if takes == TSO:
        until(lambda: second.packets() == [whole], server)
        return
    until(lambda: len(second.packets()) == 4, server)
    head = len(whole) - 10 - 4 * 1000
    for each in second.packets():
        assert (each[:10], len(each)) == (bytes(10), 10 + head + 1000)
        assert ip.check(memoryview(each), 0, len(each)) is None
        if version == 4:  # a checksum over the whole header is zero
            assert sum(struct.unpack(">10H", each[10:30])) % 0xFFFF == 0
    assert not dropped(server)


@pytest.mark.parametrize("accepted", [TSO, 0], ids=["the-server-takes-them", "the-server-takes-none"])
def test_a_super_packet_is_finished_for_a_client_that_takes_none_although_the_servers_own_device_has_offloads_off(
    hosts: Hosts, accepted: int
) -> None:
    server, first, second = hosts((TSO, 0), offloads=0, offloads_accepted=accepted)
    first.send(block_of(super_packet(inside(1, 4), inside(2, 4), 4, 1000)))
    until(lambda: second.packets(), server)
    until(lambda: not server.step())
    assert [len(each) for each in second.packets()] == [10 + 40 + 1000] * 4


def test_a_super_packet_that_cannot_be_finished_is_dropped_and_counted(hosts: Hosts) -> None:
    server, first, second = hosts((TSO, 0), offloads=TSO, offloads_accepted=TSO)
    (good,) = between(1, 2, range(1))
    first.send(block_of(super_packet(inside(1, 4), inside(2, 4), 1000, 1), good))
    until(lambda: second.packets() == [good], server)
    assert dropped(server) == {"tun.dropped_header_malformed": 1}


@pytest.mark.parametrize("version", FAMILIES)
def test_with_client_isolation_clients_do_not_reach_each_other_but_the_server(hosts: Hosts, version: int) -> None:
    server, first, second = hosts(client_isolation=True)
    (across,), (up,) = between(1, 2, range(1), version), between(1, 0, range(1), version)
    first.send(block_of(across, up, across))
    until(lambda: server.packets() == [up], server)
    assert dropped(server) == {"tun.dropped_isolated": 2}
    server.write(*between(0, 2, range(1), version))
    until(lambda: second.packets() == between(0, 2, range(1), version), server)


@pytest.mark.parametrize(
    "destination", ["224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1"]
)
def test_multicast_and_broadcast_from_a_client_are_dropped(hosts: Hosts, destination: str) -> None:
    server, first, second = hosts()
    version = 6 if ":" in destination else 4
    (good,) = between(1, 0, range(1), version)
    first.send(block_of(packet(inside(1, version), destination), good))
    until(lambda: server.packets() == [good], server)
    assert dropped(server) == {"tun.dropped_multicast": 1}
    assert second.packets() == []


@pytest.mark.parametrize("version", FAMILIES)
def test_a_packet_from_a_client_to_itself_is_dropped(hosts: Hosts, version: int) -> None:
    server, first, _ = hosts()
    (good,), (loop,) = between(1, 0, range(1), version), between(1, 1, range(1), version)
    first.send(block_of(loop, good, loop))
    until(lambda: server.packets() == [good], server)
    assert dropped(server) == {"tun.dropped_own_destination": 2}
    assert first.packets() == []


@pytest.mark.parametrize("destination", ["10.0.0.99", "192.0.2.1", "fd00::99", "2001:db8::1"])
def test_a_packet_for_none_of_the_clients_is_for_the_kernel(hosts: Hosts, destination: str) -> None:
    server, first, _ = hosts()
    out = packet(inside(1, 6 if ":" in destination else 4), destination)
    first.send(block_of(out))
    until(lambda: server.packets() == [out], server)


@pytest.mark.parametrize("fec", ["off", "on"])
def test_clients_that_different_workers_have_reach_the_server_and_each_other_over_either_lane(
    make: Make, fec: str
) -> None:
    server = make("server", lanes=2, capacity=4, slots=8, fec=fec)
    peers = first, second = on_worker(server, "tcp-0", 1), on_worker(server, "tcp-1", 2)
    expected: dict[int, Counter] = {0: Counter(), 1: Counter(), 2: Counter()}
    try:
        for number in range(20):
            for sender, receiver in ((0, 1), (0, 2), (1, 2), (2, 1), (1, 0), (2, 0)):
                (each,) = between(sender, receiver, range(number, number + 1), FAMILIES[number % 2], 100 + number * 300)
                expected[receiver][each] += 1
                if sender:
                    peers[sender - 1].send(block_of(each))
                else:
                    server.write(each, number // 2 % 2)
            server.step()
        until(lambda: len(server.packets()) == len(all_packets(first)) == len(all_packets(second)) == 40, server)
        assert Counter(server.packets()) == expected[0]
        assert Counter(all_packets(first)) == expected[1]
        assert Counter(all_packets(second)) == expected[2]
        assert not dropped(server)
    finally:
        for peer in peers:
            peer.close()


def test_a_full_transit_ring_drops_packets_counted_and_holds_no_other_packet_up(hosts: Hosts) -> None:
    server, first, second = hosts(slots=4)
    packets, (up,) = between(1, 2, range(10), size=BLOCK_PACKET), between(1, 0, range(1))
    waiting = b"".join(map(block_of, [*packets, up]))
    sent = 0

    def only_the_kernel_gets_packets() -> bool:  # the outbound duty of tcp-0 stands still
        nonlocal sent
        try:
            sent += first.socket.send(waiting[sent : sent + 100_000])
        except BlockingIOError:
            pass
        run_duty(server, "tcp-0", "inbound")
        server.step("tun-0")
        return server.packets() == [up]

    until(only_the_kernel_gets_packets)
    assert dropped(server) == {"tun.dropped_transit_full": 6}
    until(lambda: len(second.packets()) == 4, server)
    assert second.packets() == packets[:4]
    first.send(block_of(*between(1, 2, range(10, 12))))
    until(lambda: second.packets()[4:] == between(1, 2, range(10, 12)), server)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize(("lanes", "connections"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_packets_of_one_flow_keep_their_order_on_the_way_to_another_client(
    make: Make, lanes: int, connections: int, fec: str
) -> None:
    server, first, second = connected_hub(
        make, lanes=lanes, slots=8, fec=fec, connections=connections, light_connections=1
    )
    light, bulk = between(1, 2, range(150), 4, 300), between(1, 2, range(150), 6, 5000)
    waiting = [each for pair in zip(light, bulk, strict=True) for each in pair]
    until(
        lambda: push(first, waiting) and len(second.packets()) + server.count("tun.dropped_transit_full") == 300,
        server,
        first,
        second,
    )
    for version in FAMILIES:
        numbers = [number_of(each) for each in second.packets() if each[10] >> 4 == version]
        assert numbers == sorted(numbers)
        assert len(numbers) > 50


# -- with forward error correction


def expect_no_gaps(peer: Peer) -> list[bytes]:
    """The packets that came in runs. Checks that the numbers of each stream have no gap."""
    streams = blocks_in_runs(peer)
    for numbers in map(list, streams.values()):
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return [each for stream in streams.values() for packets in stream.values() for each in packets]


def test_blocks_for_several_clients_are_numbered_for_each_although_they_share_a_ring(hosts: Hosts) -> None:
    server, first, second = hosts(features=ACCEPTS_SHARDS, fec="on", slots=8)
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    for number in range(40):
        client = 1 + (number % 3 == 0)
        sent[client] += between(0, client, range(number, number + 1), size=BULK_BYTES)
        server.write(sent[client][-1])
        if number == 3:
            server.step("tun-0")
            slots = server.memory.rings["coded-0"].slots
            there = {read_header(slot)[3] & PEER_INDEX_MASK for slot in slots[:2]}
            assert there == {index_of(server, 1), index_of(server, 2)}
    until(lambda: sum(len(all_packets(peer)) for peer in (first, second)) == 40, server)
    assert expect_no_gaps(first) == sent[1]
    assert expect_no_gaps(second) == sent[2]


def test_blocks_between_clients_are_coded_and_numbered_for_each_of_them(hosts: Hosts, dial: Dial) -> None:
    server, first, second = hosts(features=ACCEPTS_SHARDS, fec="on", slots=8)
    third = dial(server, hello(client=3, features=ACCEPTS_SHARDS))
    sent: dict[int, list[bytes]] = {2: [], 3: []}
    for number in range(60):
        receiver = 2 + (number % 3 == 0)
        sent[receiver] += between(1, receiver, range(number, number + 1), size=5000)
        first.send(block_of(sent[receiver][-1]))
        if number % 4 == 3:
            until(lambda: not server.step())
    until(lambda: len(all_packets(second)) == 40 and len(all_packets(third)) == 20, server)
    assert expect_no_gaps(second) == sent[2]
    assert expect_no_gaps(third) == sent[3]
    assert set(second.kinds()) <= {WELCOME, KEEPALIVE, RUN}


def test_with_auto_blocks_that_were_not_coded_leave_no_gap_in_the_numbers(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, fec="auto", slots=8)
    first = dial(server, hello(client=1, features=ACCEPTS_SHARDS))
    kept, lost = (
        dial(server, hello(client=2, index=index, connections=2, features=ACCEPTS_SHARDS)) for index in (0, 1)
    )
    (links,), at = server.memory.peer_table.links, index_of(server, 2) * RECORD_WORDS + LINK_REQUESTS

    def has_arrived(number: int) -> bool:
        return packet_of(number) in all_packets(kept) + all_packets(lost)

    for number in range(15):
        links[at] = 0 if 5 <= number < 10 else 3  # before each block, as the link monitor writes it as well
        first.send(block_of(*between(1, 2, range(number, number + 1))))
        until(partial(has_arrived, number), server)
    assert len(kept.packets() + lost.packets()) >= 5
    numbers = sorted({*blocks_in_runs(kept).popitem()[1], *blocks_in_runs(lost).popitem()[1]})
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def packet_of(number: int) -> bytes:
    return between(1, 2, range(number, number + 1))[0]


def test_two_clients_that_use_the_same_stream_number_do_not_mix(hosts: Hosts) -> None:
    server, first, second = hosts(features=ACCEPTS_SHARDS, fec="on")
    (one,), (two,) = between(1, 0, range(7, 8), size=4000), between(2, 0, range(9, 10), size=4000)
    each = shard.shard_bytes(len(block_of(one)), 3, 1)

    def shards(packet_: bytes, first_: int, count: int) -> bytes:
        data = block_of(packet_)
        return run_of(
            data.ljust(3 * each, b"\0")[first_ * each : (first_ + count) * each], 2, 0, 3, 1, first_, count, len(data)
        )

    first.send(shards(one, 0, 2))
    until(lambda: server.count("fec.runs_received") == 1, server)
    second.send(shards(two, 2, 1))
    until(lambda: server.count("fec.runs_received") == 2, server)
    until(lambda: not server.step())
    assert server.packets() == []
    second.send(shards(two, 0, 2))
    until(lambda: server.packets() == [two], server)
    first.send(shards(one, 2, 1))
    until(lambda: server.packets() == [two, one], server)
    assert not dropped(server)


def test_runs_of_one_shard_with_the_same_numbers_from_two_clients_are_both_passed_on(hosts: Hosts) -> None:
    server, first, second = hosts(features=ACCEPTS_SHARDS, fec="on")
    sent = []
    for number in range(20):
        for client, peer in ((1, first), (2, second)):
            sent += between(client, 0, range(number, number + 1))
            peer.send(run_of(block_of(sent[-1]), 3, number))
    until(lambda: len(server.packets()) == 40, server)
    assert Counter(server.packets()) == Counter(sent)
    assert server.count("fec.shards_duplicate") == 0
