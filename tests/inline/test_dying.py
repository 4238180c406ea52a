"""Connections that die or stand still: they are noticed in time, and what they had begun to send is not lost.

The peer is written by hand here, on plain sockets.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.inline.harness.ends import (
    BLOCK,
    KEEPALIVE,
    WELCOME,
    Dial,
    End,
    HandmadeServer,
    block_of,
    ended,
    hello,
    ipv4,
    number_of,
    until,
)

# -- dead peers


def test_the_connection_of_a_silent_peer_is_closed_after_the_timeout_and_not_before(dial: Dial) -> None:
    server = End("server", timeout=0.4, keepalive=0.1)
    try:
        peer = dial(server, hello())
        since = time.monotonic()
        ended(peer, server)
        assert time.monotonic() - since >= 0.4
        assert server.count("tcp.connections_timed_out") == server.count("tcp.connections_lost") == 1
        assert KEEPALIVE in peer.kinds()
        dial(server, hello())
    finally:
        server.close()


@pytest.mark.alone
def test_any_byte_is_a_sign_of_life(dial: Dial) -> None:
    server = End("server", timeout=0.8)
    try:
        peer = dial(server, hello())
        slow = block_of(ipv4(1, 40))
        over = time.monotonic() + 0.1
        for value in slow[:-1]:
            peer.send(bytes([value]))
            until(lambda: time.monotonic() > over, server)
            over = time.monotonic() + 0.018
        assert server.established() == 1
        peer.send(slow[-1:])
        until(lambda: server.packets() == [ipv4(1, 40)], server)
    finally:
        server.close()


def test_a_client_whose_server_is_silent_closes_the_connection_and_dials_again(
    handmade_server: HandmadeServer, client_of: Callable[..., End]
) -> None:
    client = client_of(timeout=0.3, keepalive=0.1)
    peer = handmade_server.admit(client)
    ended(peer, client)
    assert client.count("tcp.connections_timed_out") == 1
    handmade_server.admit(client)
    assert client.established() == 1


def test_keepalives_are_the_frames_that_the_original_knows(
    handmade_server: HandmadeServer, client_of: Callable[..., End]
) -> None:
    client = client_of(keepalive=0.1)
    peer = handmade_server.admit(client)
    until(lambda: len(peer.read_frames().frames) >= 2, client)
    assert set(peer.frames) == {(KEEPALIVE, b"")}
    assert client.count("tcp.keepalives_sent") >= 2


# -- connections that die with a partial frame

BIG = 65_535  # a packet that fills a block, so that packets and blocks are the same here


def fill(end: End, first: int, lane: int = 0) -> int:
    """Write big packets until the socket is full in the middle of a frame, and the ring is full. The next number."""
    number = first

    def full() -> bool:
        nonlocal number
        if end.count("tun.packets_read") < number - first:
            return False
        if end.free_slots(lane):
            end.write(ipv4(number, BIG), lane)
            number += 1
            return False
        return end.count("tcp.socket_full_waits") > 2

    until(full, end)
    return number


def test_a_block_that_was_cut_by_the_end_of_its_connection_is_sent_again(dial: Dial) -> None:
    server = End("server", send_buffer_bytes=30_000)
    try:
        first = dial(server, hello(), receive_buffer=30_000)
        count = fill(server, 0)
        whole = server.count("tcp.frames_sent")
        assert whole < count
        first.reset()
        until(lambda: not server.established(), server)
        second = dial(server, hello())
        until(lambda: second.packets() and number_of(second.packets()[-1]) == count - 1, server)
        assert second.packets() == [ipv4(i, BIG) for i in range(whole, count)]
        assert server.count("tcp.blocks_resent") == 1
        assert server.count("tcp.dropped_no_connection") == 0
    finally:
        server.close()


def test_a_block_that_was_cut_goes_to_another_connection_of_the_session(dial: Dial) -> None:
    server = End("server", send_buffer_bytes=30_000)
    try:
        first = dial(server, hello(index=0), receive_buffer=30_000)
        second = dial(server, hello(index=1))
        count = fill(server, 0)
        whole = server.count("tcp.frames_sent")
        first.reset()
        until(lambda: second.packets() and number_of(second.packets()[-1]) == count - 1, server)
        assert second.packets() == [ipv4(i, BIG) for i in range(whole, count)]
        assert server.count("tcp.blocks_resent") == 1
    finally:
        server.close()


@pytest.fixture
def two_lanes() -> Iterator[End]:
    """A server whose second tcp worker accepts no connection: both lanes use those of the first one."""
    made = End("server", lanes=2, send_buffer_bytes=30_000)
    second = made.workers["tcp-1"]
    duties = second.duties
    second.duties = [second.duty("outbound")]
    yield made
    second.duties = duties
    made.close()


def test_a_lane_does_not_send_into_the_partial_frame_of_another_one(two_lanes: End, dial: Dial) -> None:
    peer = dial(two_lanes, hello(), receive_buffer=30_000)
    count = fill(two_lanes, 0, lane=1)
    for i in range(3):
        two_lanes.write(ipv4(1000 + i), lane=0)
    until(lambda: len(peer.packets()) == count + 3, two_lanes)
    numbers = [number_of(packet) for packet in peer.packets()]
    assert [number for number in numbers if number < 1000] == list(range(count))
    assert [number for number in numbers if number >= 1000] == [1000, 1001, 1002]


def test_a_connection_that_comes_while_a_frame_is_partly_sent_does_not_cut_that_frame(
    two_lanes: End, dial: Dial
) -> None:
    first = dial(two_lanes, hello(index=0), receive_buffer=30_000)
    count = fill(two_lanes, 0, lane=1)
    second = dial(two_lanes, hello(index=1))
    for i in range(3):
        two_lanes.write(ipv4(1000 + i), lane=0)

    def arrived() -> set[int]:
        return {number_of(packet) for peer in (first, second) for packet in peer.packets()}

    until(lambda: arrived() >= {*range(count), 1000, 1001, 1002}, two_lanes, seconds=3, what="packets of both lanes")
    assert {kind for peer in (first, second) for kind in peer.kinds()} <= {WELCOME, BLOCK, KEEPALIVE}


def test_a_descriptor_is_closed_once_both_duties_have_dropped_its_connection(server: End, dial: Dial) -> None:
    peer = dial(server, hello())
    outbound, inbound = (server.workers["tcp-0"].duty(name) for name in ("outbound", "inbound"))
    (connection,) = inbound.connections.established.values()
    peer.close()
    over = time.monotonic() + 0.4

    def inbound_alone() -> bool:
        inbound.wait(0)
        inbound.work()
        return time.monotonic() > over

    until(inbound_alone)
    assert server.count("tcp.connections_lost") == 1
    assert connection.socket.fileno() == connection.fd
    outbound.work()
    until(lambda: connection.socket.fileno() == -1, server)


def test_a_reset_in_the_middle_of_everything_leaves_the_tunnel_usable(dial: Dial) -> None:
    server = End("server", send_buffer_bytes=30_000)
    try:
        for round_ in range(5):
            peer = dial(server, hello(), receive_buffer=30_000)
            peer.send(block_of(ipv4(round_)) + block_of(ipv4(100, 3000))[:1000])
            server.write(ipv4(round_, BIG))
            until(lambda: len(server.packets()) == round_ + 1, server)
            peer.reset()
            until(lambda: not server.established(), server)
        last = dial(server, hello())
        until(lambda: last.packets() and number_of(last.packets()[-1]) == 4, server)
        assert [number_of(packet) for packet in server.packets()] == list(range(5))
    finally:
        server.close()


def test_a_peer_that_reads_nothing_and_says_that_it_is_done_is_closed_and_its_packets_wait(dial: Dial) -> None:
    """A FIN from an end whose window is 0: nobody waits until it reads."""
    server = End("server", send_buffer_bytes=30_000)
    try:
        first = dial(server, hello(), receive_buffer=30_000)
        count = fill(server, 0)
        whole = server.count("tcp.frames_sent")
        first.socket.shutdown(socket.SHUT_WR)
        until(lambda: not server.established(), server)
        assert server.count("tcp.connections_lost") == 1
        second = dial(server, hello())
        until(lambda: second.packets() and number_of(second.packets()[-1]) == count - 1, server)
        assert second.packets() == [ipv4(i, BIG) for i in range(whole, count)]
    finally:
        server.close()
