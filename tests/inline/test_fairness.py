"""Clients of a hub that read slowly, or not at all, or are away for a while: that costs them, and no other client.

The effects of a rate are in test_rates.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from pipeline.fec.shard import shard_bytes
from tests.harness import run_header
from tests.inline.harness.ends import (
    BLOCK,
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
    step_for,
    until,
)
from tests.inline.harness.hub_ends import (
    ACCEPTS_SHARDS,
    BULK_BYTES,
    RUN,
    addresses_of,
    all_packets,
    between,
    destinations,
    dropped_for,
    index_of,
    on_worker,
)

SMALL_SOCKET = 30_000
SEND_BYTES = 200_000  # for all; with less, a reader waits for delayed acknowledgements
QUEUE_BYTES = 1 << 18

SlowAndQuick = Callable[..., tuple[End, Peer, End]]


@pytest.fixture
def slow_and_quick(make: Make, dial: Dial) -> SlowAndQuick:
    """A server, client 1 in the test's hand, which reads when the test does, and client 2, which reads at once."""

    def made(fec: str = "off", lanes: int = 1, **settings: object) -> tuple[End, Peer, End]:
        server = make(
            "server",
            capacity=4,
            slots=8,
            lanes=lanes,
            fec=fec,
            send_buffer_bytes=SEND_BYTES,
            **{"peer_queue_bytes": QUEUE_BYTES} | settings,
        )
        slow = dial(server, hello(client=1, features=ACCEPTS_SHARDS), receive_buffer=SMALL_SOCKET)
        quick = make("client", port=server.port, client_id=2, session=1, fec=fec, slots=8)
        until(lambda: quick.established(), server, quick)
        return server, slow, quick

    return made


def backlog_bytes(server: End, client: int) -> int:
    """Bytes that the backlogs of the tcp workers hold for a client."""
    index = index_of(server, client)
    return sum(
        peer.backlog.used
        for name, worker in server.workers.items()
        if name.startswith("tcp")
        for peer in worker.duty("outbound")._peers.by_handle.values()
        if peer.peer == index
    )


# -- clients that do not read


@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize("whence", [0, 3], ids=["from-the-server", "from-a-client"])
@pytest.mark.parametrize("size", [BULK_BYTES, 1000], ids=["bulk", "small"])
def test_a_client_that_reads_nothing_costs_another_nothing(
    slow_and_quick: SlowAndQuick, dial: Dial, fec: str, whence: int, size: int
) -> None:
    server, slow, quick = slow_and_quick(fec)
    sender = dial(server, hello(client=3)) if whence else None
    count = 200 if size == BULK_BYTES else 1500
    for number in range(0, count, 2):
        for_both = [
            each
            for turn in (number, number + 1)
            for client in (1, 2)
            for each in between(whence, client, range(turn, turn + 1), size=size)
        ]
        if sender:
            sender.send(block_of(*for_both[:2]) + block_of(*for_both[2:]))
        else:
            for each in for_both:
                server.write(each)
        until(lambda: len(quick.packets()) >= number + 2, server, quick)
        assert backlog_bytes(server, 1) <= QUEUE_BYTES
    assert sorted(number_of(each) for each in quick.packets()) == list(range(count))  # light may have become bulk
    assert dropped_for(server, 1) == server.count("tcp.dropped_peer_full") > 0
    assert server.count("tun.dropped_ring_full") == server.count("tun.dropped_transit_full") == 0
    assert dropped_for(server, 2) == 0
    expect_whole_frames(server, slow)


def expect_whole_frames(server: End, slow: Peer) -> None:
    """The client reads again: its frames are whole, in order, and its own; and a new packet comes through."""
    last = between(0, 1, range(5000, 5001))[0]
    until(lambda: slow.read_frames() and not server.step())
    server.write(last)
    until(lambda: last in all_packets(slow), server)
    assert set(slow.kinds()) <= {WELCOME, BLOCK, RUN, KEEPALIVE}
    assert destinations(all_packets(slow)) <= addresses_of(1)
    assert not slow.ended
    plain = [number_of(each) for each in slow.packets() if each != last]
    assert plain == sorted(plain)


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_client_that_reads_nothing_on_one_tcp_worker_costs_one_on_another_nothing(
    make: Make, dial: Dial, fec: str
) -> None:
    server = make(
        "server", capacity=4, slots=8, lanes=2, fec=fec, send_buffer_bytes=SEND_BYTES, peer_queue_bytes=QUEUE_BYTES
    )
    slow = on_worker(server, "tcp-0", 1, receive_buffer=SMALL_SOCKET)
    quick = on_worker(server, "tcp-1", 2, receive_buffer=SMALL_SOCKET)
    try:
        for number in range(50):
            for lane in (0, 1):
                for client in (1, 2):
                    server.write(between(0, client, range(number, number + 1), size=BULK_BYTES)[0], lane)
            until(lambda: len(all_packets(quick)) >= 2 * number + 2, server)
        assert server.count("tun.dropped_ring_full") == 0
        assert dropped_for(server, 1) > 0
        assert dropped_for(server, 2) == 0
    finally:
        slow.close()
        quick.close()


def test_a_client_that_reads_nothing_and_loses_one_of_its_connections_costs_another_nothing(make: Make) -> None:
    server = make("server", capacity=4, slots=8, lanes=2, send_buffer_bytes=SEND_BYTES)
    peers = first, _second, quick = [
        on_worker(server, "tcp-0", *who, receive_buffer=SMALL_SOCKET) for who in ((1, 0), (1, 1), (2, 0))
    ]
    of_second = next(
        queue
        for queue in server.workers["tcp-0"].duty("outbound")._peers.queues.values()
        if (queue.connection.peer, queue.connection.dial_index) == (index_of(server, 1), 1)
    )

    def one_more(client: int, lane: int) -> None:
        server.write(between(0, client, range(1), size=BULK_BYTES)[0], lane)
        until(lambda: server.count("tun.packets_read") == server.written, server, seconds=3)
        for _ in range(5):
            server.step()
            quick.read_frames()

    try:
        while not backlog_bytes(server, 1):  # lane 0 goes to the first connection
            one_more(1, 0)
        while not of_second.bulk:  # and lane 1 to the second
            one_more(1, 1)
        first.reset()
        until(lambda: server.established() == 2, server)
        before = len(quick.packets())
        for number in range(1, 20):
            one_more(2, 1)
            until(lambda: len(quick.packets()) == before + number, server, seconds=3)
    finally:
        for peer in peers:
            peer.close()


def test_a_client_of_which_one_connection_stands_still_gets_all_of_its_packets_and_so_does_another(
    make: Make, dial: Dial
) -> None:
    server = make("server", capacity=4, slots=16, fec="on", send_buffer_bytes=SEND_BYTES, peer_queue_bytes=QUEUE_BYTES)
    still = dial(server, hello(client=1, connections=5, features=ACCEPTS_SHARDS), receive_buffer=SMALL_SOCKET)
    others = [
        dial(server, hello(client=1, index=index, connections=5, features=ACCEPTS_SHARDS)) for index in range(1, 5)
    ]
    quick = dial(server, hello(client=2, features=ACCEPTS_SHARDS))
    waiting = [
        each
        for number in range(150)
        for client in (1, 2)
        for each in between(0, client, range(number, number + 1), size=BULK_BYTES)
    ]
    shards: dict[int, set[int]] = {}  # of the first client's blocks, by number

    def all_have_come() -> bool:
        push(server, waiting)
        for peer in others:
            for kind, body in peer.read_frames().frames:
                if kind == RUN:
                    run = run_header.decode(memoryview(frame(kind, body)), 0, 1 + len(body))
                    shards.setdefault(run.block, set()).update(range(run.first, run.first + run.shards))
            peer.frames.clear()
        return len(all_packets(quick)) == 150 and sum(len(there) >= 10 for there in shards.values()) == 150

    until(all_have_come, server, seconds=30)
    assert not still.ended
    assert server.count("tun.dropped_ring_full") == dropped_for(server, 2) == 0


def test_a_client_alone_that_reads_nothing_stalls_the_kernel_instead_of_losing_its_packets(
    make: Make, dial: Dial
) -> None:
    server = make("server", capacity=4, slots=8, send_buffer_bytes=SEND_BYTES, peer_queue_bytes=QUEUE_BYTES)
    alone = dial(server, hello(client=1), receive_buffer=SMALL_SOCKET)
    packets = between(0, 1, range(60), size=BULK_BYTES)
    for each in packets:
        server.write(each)
    until(lambda: server.count("tun.ring_full_waits"), server)
    until(lambda: len(alone.packets()) == 60, server)
    assert alone.packets() == packets
    assert dropped_for(server, 1) == 0


# -- clients that come again and again


def test_sessions_that_replace_each_other_do_not_have_memory_for_shards_each(make: Make) -> None:
    server = make("server", capacity=4, fec="on")
    peers = []
    data = block_of(*between(1, 0, range(1), size=4000))
    half = data[: shard_bytes(len(data), 3, 1)]
    try:
        for session in range(1, 6):
            peers.append(Peer.dial(server.port))
            peers[-1].send(hello(client=1, session=session, features=ACCEPTS_SHARDS))
            until(lambda: WELCOME in peers[-1].kinds(), server)
            peers[-1].send(frame(RUN, struct.pack(">IIBBBBII", 2, 0, 3, 1, 0, 1, len(data), 0) + half))
            until(lambda: server.count("fec.runs_received") == session, server)
        assert len(server.workers["fec-0"].duty("inbound")._peers) == 1
    finally:
        for peer in peers:
            peer.close()


def test_sessions_that_replace_each_other_do_not_leave_a_queue_each(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=8, peer_queue_bytes=QUEUE_BYTES)
    leaving = dial(server, hello(client=1, session=1))
    dial(server, hello(client=2))
    for session in range(2, 6):
        leaving.close()
        until(lambda: server.established() == 1, server)
        leaving = dial(server, hello(client=1, session=session))
        leaving.close()
        until(lambda: server.established() == 1, server)
        for each in between(0, 1, range(5), size=BULK_BYTES):
            server.write(each)
        until(lambda: server.count("tun.packets_read") % 5 == 0 and not server.step(), server)
    dial(server, hello(client=1, session=9))
    until(lambda: backlog_bytes(server, 1) <= QUEUE_BYTES, server, seconds=3)


# -- clients that are away for a while


@pytest.mark.parametrize("fec", ["off", "on"])
def test_a_client_that_comes_back_in_time_gets_what_waited_for_it(
    slow_and_quick: SlowAndQuick, dial: Dial, fec: str
) -> None:
    server, slow, quick = slow_and_quick(fec, peer_queue_bytes=1 << 20)
    slow.close()
    until(lambda: server.established() == 1, server, quick)
    waiting = between(0, 1, range(6), size=1000) + between(0, 1, range(6, 12), 6, BULK_BYTES)
    for each in waiting + between(0, 2, range(3)):
        server.write(each)
    until(lambda: len(quick.packets()) == 3, server, quick)
    step_for(0.2, server, quick)
    back = dial(server, hello(client=1, features=ACCEPTS_SHARDS))
    until(lambda: len(all_packets(back)) == 12, server, quick)
    for version in (4, 6):
        expected = [each for each in waiting if each[10] >> 4 == version]
        assert [each for each in all_packets(back) if each[10] >> 4 == version] == expected
    assert server.count("tcp.dropped_no_connection") == 0
    assert backlog_bytes(server, 1) == 0


def test_what_waits_longer_than_hold_for_a_client_is_dropped_and_counted(
    slow_and_quick: SlowAndQuick, dial: Dial
) -> None:
    server, slow, quick = slow_and_quick(hold=0.3)
    slow.close()
    until(lambda: server.established() == 1, server, quick)
    since = time.monotonic()
    for each in between(0, 1, range(5), size=BULK_BYTES):
        server.write(each)
    until(lambda: server.count("tcp.dropped_no_connection") == 5, server, quick)
    assert time.monotonic() - since > 0.2
    assert backlog_bytes(server, 1) == 0
    server.write(*between(0, 1, range(5, 6)))  # and at once what comes later
    until(lambda: server.count("tcp.dropped_no_connection") == 6, server, quick)
    back = dial(server, hello(client=1))
    server.write(*between(0, 1, range(6, 7)))
    until(lambda: back.packets() == between(0, 1, range(6, 7)), server, quick)


def test_no_more_waits_for_a_client_that_is_away_than_its_queue_may_hold(slow_and_quick: SlowAndQuick) -> None:
    server, slow, quick = slow_and_quick()
    slow.close()
    until(lambda: server.established() == 1, server, quick)
    for number in range(30):
        server.write(*between(0, 1, range(number, number + 1), size=BULK_BYTES))
        server.write(*between(0, 2, range(number, number + 1), size=BULK_BYTES))
        until(lambda: len(quick.packets()) == number + 1, server, quick)
        assert backlog_bytes(server, 1) <= QUEUE_BYTES
    assert dropped_for(server, 1) == 30 - QUEUE_BYTES // BULK_BYTES


def test_the_rest_of_a_block_that_was_copied_out_and_dies_with_its_connection_is_counted(
    slow_and_quick: SlowAndQuick,
) -> None:
    server, slow, quick = slow_and_quick()
    (queue,) = [
        queue
        for queue in server.workers["tcp-0"].duty("outbound")._peers.queues.values()
        if queue.connection.peer == index_of(server, 1)
    ]
    for number in range(60):
        server.write(*between(0, 1, range(number, number + 1), size=BULK_BYTES))
        server.write(*between(0, 2, range(number, number + 1), size=BULK_BYTES))
        until(lambda: len(quick.packets()) == number + 1, server, quick)
    assert queue.tail_is_block
    slow.reset()
    until(lambda: server.established() == 1, server, quick)
    until(lambda: server.count("tcp.dropped_partial") == 1, server, quick)
