"""A whole tunnel in one process: packets of one end come out at the other, in order, byte for byte."""

from __future__ import annotations

import time

import pytest

from pipeline.shm.layout import LINK_ESTABLISHED
from pipeline.wire import framing
from tests.inline.harness.ends import (
    BLOCK,
    KEEPALIVE,
    Make,
    Peer,
    block_of,
    carry,
    hello,
    ipv4,
    ipv6,
    number_of,
    pair,
    push,
    step_for,
    until,
)

# -- packets


def test_a_lone_packet_arrives_in_each_direction(make: Make) -> None:
    server, client = pair(make)
    carry(client, server, [ipv4(1)])
    carry(server, client, [ipv6(2)])
    assert server.packets() == [ipv4(1)]
    assert client.packets() == [ipv6(2)]


SIZES = (20, 21, 64, 576, 1400, 1500, 9000, 40_000, 65_535)


def test_packets_of_every_size_arrive_in_order_byte_for_byte(make: Make) -> None:
    server, client = pair(make)
    up = [ipv4(i, SIZES[i % len(SIZES)]) for i in range(60)]
    down = [ipv6(i, max(60, SIZES[-1 - i % len(SIZES)])) for i in range(60)]
    carry(client, server, up)
    carry(server, client, down)
    assert server.packets() == up
    assert client.packets() == down


def test_super_packets_arrive_with_the_headers_that_the_kernel_gave_them(make: Make) -> None:
    server, client = pair(make)
    vnet = b"\x01\x01\x28\x00\x50\x05\x14\x00\x10\x00"  # checksum wanted, TSO4, 40 header bytes, 1360 a segment
    packets = [ipv4(i, 65_535, vnet) for i in range(20)]
    carry(client, server, packets)
    assert server.packets() == packets


def test_a_burst_of_one_packet_takes_the_short_way_and_any_other_the_long_way(make: Make) -> None:
    server, client = pair(make)
    carry(client, server, [ipv4(0)])  # behind it the routes are known
    packer = client.workers["tun-0"].duty("outbound")._packer
    long_ways: list[int] = []
    begin_burst = packer.begin_burst

    def begin_long_way() -> int:
        long_ways.append(1)
        return begin_burst()

    packer.begin_burst = begin_long_way
    packets = [ipv4(number, size) for number, size in enumerate((60, 65_535, 1400, 20_000), 1)]
    for packet in packets:
        carry(client, server, [packet])
    assert not long_ways
    assert client.count("tun.packets_read") == 1 + len(packets)
    assert client.count("tun.blocks_filled") + client.count("tun.blocks_light_filled") == 1 + len(packets)
    together = [ipv4(number, 1400) for number in range(10, 13)]
    for packet in together:
        client.write(packet)
    until(lambda: len(server.packets()) == 1 + len(packets) + len(together), server, client)
    assert len(long_ways) == 1
    assert server.packets()[1:] == packets + together


def test_packets_that_are_ready_together_travel_together(make: Make) -> None:
    server, client = pair(make)
    packets = [ipv4(0, 5000)] + [ipv4(i, 100) for i in range(1000)]  # the first one makes them all bulk
    for packet in packets:
        client.write(packet)
    until(lambda: len(server.packets()) == 1001, server, client)
    assert server.packets() == packets
    assert client.count("tun.packets_read") == server.count("tun.packets_written") == 1001
    assert client.count("tun.bytes_read") == server.count("tun.bytes_written") == 105_000
    assert client.count("tun.blocks_filled") <= 1 + -(-1000 // 100)
    assert client.count("tcp.frames_sent") == client.count("tun.blocks_filled") == server.count("tcp.frames_received")
    assert client.count("tcp.bytes_sent") == server.count("tcp.bytes_received")


def test_a_block_takes_at_most_its_number_of_packets(make: Make) -> None:
    server, client = pair(make)
    carry(client, server, [ipv4(9999, 5000)])  # bulk from here on
    server.received[0].clear()
    packets = [ipv4(i, 20) for i in range(2 * framing.BLOCK_PACKETS_MAX + 1)]
    for packet in packets:
        client.write(packet)
    until(lambda: len(server.packets()) == len(packets), server, client)
    assert server.packets() == packets
    assert client.count("tun.blocks_filled") >= 1 + 3


@pytest.mark.parametrize("connections", [1, 2, 5])
@pytest.mark.parametrize(
    "lanes", [(1, 1), (2, 2), (3, 3), (1, 3), (3, 1), (2, 3)], ids=["1-1", "2-2", "3-3", "1-3", "3-1", "2-3"]
)
def test_every_lane_keeps_its_order_whatever_lanes_and_connections_there_are(
    make: Make, lanes: tuple[int, int], connections: int
) -> None:
    server, client = pair(make, lanes, connections)
    for sender, receiver, count in ((client, server, lanes[1]), (server, client, lanes[0])):
        sent = [[ipv4(1000 * lane + i, 60 + 37 * i % 3000) for i in range(60)] for lane in range(count)]
        for lane, packets in enumerate(sent):
            for packet in packets:
                sender.write(packet, lane)
        until(lambda: len(receiver.packets()) >= 60 * count, server, client)
        for packets in sent:
            wanted = set(packets)
            where = [queue for queue in receiver.received if wanted & set(queue)]
            assert len(where) == 1  # one queue of TUN, so that the kernel keeps the order too
            assert [packet for packet in where[0] if packet in wanted] == packets
        assert len(receiver.packets()) == 60 * count


def test_a_connection_stays_with_the_worker_that_has_accepted_it(make: Make) -> None:
    server = make("server", lanes=2)
    client = make("client", lanes=2, port=server.port, connections=2, client_id=1, session=1)
    tcp = server.memory.peer_table.links

    def step_one_acceptor() -> bool:
        server.step("tcp-1", "tun-0", "tun-1")
        return tcp[1][LINK_ESTABLISHED] == 2

    until(step_one_acceptor, client)
    until(lambda: client.established() == 2, client)
    assert tcp[0][LINK_ESTABLISHED] == 0
    for lane in (0, 1):
        server.write(ipv4(lane), lane)
        client.write(ipv4(lane), lane)
    until(lambda: len(client.packets()) == len(server.packets()) == 2, server, client)
    assert sorted(client.packets()) == sorted(server.packets()) == sorted([ipv4(0), ipv4(1)])
    assert [len(queue) for queue in server.received] == [1, 1]  # both queues of TUN are used all the same


@pytest.mark.parametrize("strategy", ["block", "spin-then-block", "spin"])
def test_packets_pass_with_every_idle_strategy(make: Make, strategy: str) -> None:
    server, client = pair(make, idle=strategy)
    carry(client, server, [ipv4(i) for i in range(20)])
    assert server.packets() == [ipv4(i) for i in range(20)]


# -- compat


def test_with_compat_at_both_ends_bare_packets_pass(make: Make) -> None:
    server, client = pair(make, compat=True)
    up = [ipv4(i, 20 + i * 7) for i in range(200)]
    down = [ipv6(i, 40 + i * 7) for i in range(200)]
    carry(client, server, up)
    carry(server, client, down)
    assert server.packets() == up
    assert client.packets() == down


def test_with_compat_a_packet_too_long_for_the_original_is_dropped_counted_and_costs_no_other(make: Make) -> None:
    server, client = pair(make, compat=True)
    longest = framing.COMPAT_LENGTH_LIMIT - 1
    carry(client, server, [ipv4(0, longest)])
    for packet in (ipv4(1, longest + 1), ipv4(2, 65_535), ipv4(3, longest)):
        client.write(packet)
    until(lambda: len(server.packets()) == 2, server, client)
    assert server.packets() == [ipv4(0, longest), ipv4(3, longest)]
    assert client.count("tun.dropped_packet_too_long") == 2
    assert client.count("tun.packets_read") == 4


# -- backpressure


def test_a_reader_that_stands_still_costs_time_and_no_packet_that_found_room(make: Make) -> None:
    server, client = pair(make, send_buffer_bytes=65_536, receive_buffer_bytes=65_536)
    packets = [ipv4(i, 60_000) for i in range(200)]
    waiting = list(packets)
    ring = client.workers["tun-0"].duty("outbound")._packer._next_ring.port

    def everything_is_full() -> bool:
        if ring.ready() and client.count("tun.packets_read") == len(packets) - len(waiting):
            client.write(waiting.pop(0))
        server.step("tcp-0")
        return not ring.ready() and all(
            count > 3 for count in (server.count("tcp.ring_full_waits"), client.count("tcp.socket_full_waits"))
        )

    until(everything_is_full, client)
    assert waiting
    assert server.packets() == []
    until(lambda: push(client, waiting) and len(server.packets()) == len(packets), server, client)
    assert server.packets() == packets
    assert not [name for name in server.counts() | client.counts() if ".dropped_" in name]


@pytest.mark.alone
def test_a_full_ring_is_our_own_silence_and_ends_no_connection(make: Make) -> None:
    server = make("server", timeout=0.4, keepalive=0.1)
    client = make("client", port=server.port, client_id=1, session=1)  # has patience with a window that stays closed
    until(lambda: client.established(), server, client)
    packets = [ipv4(i, 60_000) for i in range(60)]
    waiting = list(packets)
    over = time.monotonic() + 1.2

    def long_enough() -> bool:
        push(client, waiting)
        server.step("tcp-0")
        return time.monotonic() > over

    until(long_enough, client)
    assert server.count("tcp.ring_full_waits") > 3
    until(lambda: push(client, waiting) and len(server.packets()) == len(packets), server, client)
    assert server.packets() == packets
    assert server.count("tcp.connections_lost") == client.count("tcp.connections_lost") == 0


# -- silence


@pytest.mark.alone
def test_an_idle_connection_is_kept_alive_beyond_the_timeout(make: Make) -> None:
    server, client = pair(make, timeout=1.0, keepalive=0.2)
    step_for(1.5, server, client)
    for end in (server, client):
        assert end.established() == 1
        assert end.count("tcp.connections_lost") == 0
        assert end.count("tcp.keepalives_sent") >= 3
    until(lambda: server.count("tcp.frames_received") == client.count("tcp.keepalives_sent"), server, client)


@pytest.mark.alone
def test_a_connection_that_carries_packets_sends_no_keepalives(make: Make) -> None:
    server, client = pair(make, keepalive=0.4)
    sent = [0]

    def busy() -> bool:
        client.write(ipv4(sent[0]))
        sent[0] += 1
        return server.count("tcp.keepalives_sent") >= 2

    until(busy, server, client)
    assert client.count("tcp.keepalives_sent") == 0


# -- no connection


def test_packets_wait_for_a_connection_as_long_as_they_may(make: Make) -> None:
    server = make("server")
    port = server.port
    client = make("client", port=port, client_id=1, session=1, hold=10.0)
    for i in range(3):
        client.write(ipv4(i))
    until(lambda: client.count("tun.packets_read") == 3, client)
    step_for(0.2, client)  # the server does not answer yet
    until(lambda: len(server.packets()) == 3, server, client)
    assert server.packets() == [ipv4(0), ipv4(1), ipv4(2)]
    assert client.count("tcp.dropped_no_connection") == 0


def test_packets_too_old_for_a_connection_are_dropped_counted_and_the_next_ones_pass(make: Make) -> None:
    server = make("server")
    client = make("client", port=server.port, client_id=1, session=1, hold=0.1)
    for i in range(3):
        client.write(ipv4(i))
        until(lambda: client.count("tun.packets_read") == i + 1, client)
    until(lambda: client.count("tcp.dropped_no_connection") == 3, client)
    until(lambda: client.established(), server, client)
    carry(client, server, [ipv4(7)])
    assert server.packets() == [ipv4(7)]


def test_a_client_without_a_server_counts_its_attempts_and_finds_the_server_when_it_starts(make: Make) -> None:
    gone = make("server")
    port = gone.port
    gone.close()
    client = make("client", port=port, client_id=1, session=1)
    until(lambda: client.count("tcp.dials_failed") >= 3, client)
    server = make("server", port=port)
    until(lambda: client.established() and server.established(), server, client)
    carry(client, server, [ipv4(1)])
    assert server.packets() == [ipv4(1)]


# -- both formats against a peer written by hand


def test_a_block_on_the_wire_is_as_the_document_says(make: Make) -> None:
    server = make("server")
    peer = Peer.dial(server.port)
    try:
        peer.send(hello() + block_of(ipv4(1), ipv6(2, 1000)) + block_of())
        until(lambda: len(server.packets()) == 2, server)
        assert server.packets() == [ipv4(1), ipv6(2, 1000)]
        server.write(ipv4(3))
        until(lambda: peer.packets(), server)
        assert peer.packets() == [ipv4(3)]
        assert [kind for kind in peer.kinds() if kind != KEEPALIVE] == [0x11, BLOCK]
        assert number_of(peer.packets()[0]) == 3
    finally:
        peer.close()
