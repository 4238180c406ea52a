"""The send queue: every byte once and in order, whatever the socket takes; what waits, what goes first, what moves."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.tls_context import client_context, server_context
from tests.harness.send_queues import FRAME, Ends, OutboundRing, frame, numbers
from tests.harness.tls_ends import NAME, connected, issue
from workers.tcp.backlog import Backlog
from workers.tcp.send_queue import BURST_VIEWS, SendQueue

HEAD = 31

SEALED = pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])


def append(queue: SendQueue, ring: OutboundRing, number: int, **fields: int) -> bytes:
    """A frame at the end of the queue. `fields`: size of it, light, head."""
    light = bool(fields.get("light", False))
    data = frame(number, fields.get("size", 100), light)
    queue.of_class(light).append(ring.item(data, fields.get("head", 0), light=light))
    return data


# -- every byte, once and in order


ITEMS = st.lists(
    st.tuples(st.booleans(), st.integers(FRAME.size, 400), st.integers(0, FRAME.size)), min_size=1, max_size=12
)
ALLOWANCES = st.lists(st.integers(0, 700), max_size=40)


@SEALED
@given(items=ITEMS, allowances=ALLOWANCES, behind=st.integers(0, 12))
def test_every_byte_goes_out_once_and_in_order_whatever_the_socket_takes(
    sealed: bool, items: list[tuple[bool, int, int]], allowances: list[int], behind: int
) -> None:
    ends, ring = Ends(), OutboundRing()
    queue = ends.queue(sealed=sealed)
    waiting = list(enumerate(items))
    try:
        while waiting or not queue.idle:
            while waiting and len(waiting) > behind:  # the others come while some of these are on their way
                number, (light, size, head) = waiting.pop(0)
                append(queue, ring, number, size=size, light=light, head=head)
            behind -= 1
            if not queue.idle:
                ends.send(queue, allowances.pop() if allowances else 1 << 40)
            ring.release()
        found = numbers(ends.wire(queue))
        for light in (False, True):
            assert [number for is_light, number in found if is_light == light] == [
                number for number, (is_light, _, _) in enumerate(items) if is_light == light
            ]
        assert ring.room() == ring.port.ring.capacity
    finally:
        ends.close()


@SEALED
def test_a_send_that_stops_at_any_byte_of_header_or_body_goes_on_with_the_next_one(sealed: bool) -> None:
    ends, ring = Ends(), OutboundRing(4)
    queue = ends.queue(sealed=sealed)
    expected = b""
    try:
        for cut in range(2 * (HEAD + 20) + 16):  # 16: what the records add
            for number in (0, 1):
                expected += append(queue, ring, number, size=HEAD + 20, head=HEAD)
            ends.send(queue, cut)
            ring.release()
            ends.send_all(queue)
            ring.release()
            assert ring.room() == 4
        assert ends.wire(queue) == expected
    finally:
        ends.close()


@SEALED
@pytest.mark.parametrize("each", [1, 2, 3, 7, 50])
def test_a_socket_that_takes_a_few_bytes_at_a_time_gets_them_all(
    ends: Ends, ring: OutboundRing, sealed: bool, each: int
) -> None:
    queue = ends.queue(sealed=sealed)
    expected = b"".join(append(queue, ring, number, size=60, head=HEAD) for number in range(5))
    while not queue.idle:
        ends.send(queue, each)
        ring.release()
    assert ends.wire(queue) == expected


def test_what_goes_through_a_real_tls_channel_is_what_was_queued(ends: Ends, ring: OutboundRing) -> None:
    own = issue(NAME)
    server = server_context(own.certificate, own.key)
    client = client_context(ca_pem=own.certificate, system_cas=False, verify=True)
    with connected(client, server) as (near, far):
        connection = Connection(near.socket, ("192.0.2.1", 9000), ESTABLISHED, 1, 0)
        connection.channel = near.channel
        queue = SendQueue(connection)
        expected = b"".join(append(queue, ring, number, size=4000, head=HEAD) for number in range(12))
        while not queue.idle:
            queue.send()
            ring.release()
        assert far.receive_all(len(expected)) == expected


# -- how much, and when it counts as sent


def test_one_call_takes_a_limited_number_of_pieces(ends: Ends) -> None:
    ring = OutboundRing(128)
    queue = ends.queue()
    for number in range(100):
        append(queue, ring, number, size=FRAME.size)
    assert queue.send() == (BURST_VIEWS * FRAME.size, BURST_VIEWS, True)
    assert not queue.idle
    assert queue.send() == ((100 - BURST_VIEWS) * FRAME.size, 100 - BURST_VIEWS, True)
    assert queue.idle


def test_one_call_takes_a_limited_number_of_bytes(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tcp.send_queue.BURST_BYTES", 250)
    ring = OutboundRing()
    queue = ends.queue()
    for number in range(5):
        append(queue, ring, number, size=100)
    assert queue.send() == (300, 3, True)


def test_a_full_socket_takes_nothing_and_nothing_is_lost(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    data = append(queue, ring, 1)
    ends.allow(queue, 0)
    with pytest.raises(BlockingIOError):
        queue.send()
    assert not ring.release()
    ends.send_all(queue)
    assert ring.release() == 1
    assert ends.wire(queue) == data


def test_a_slot_goes_on_once_its_last_byte_is_sent_and_not_before(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    append(queue, ring, 1, size=100)
    ends.send(queue, 99)
    assert not ring.release()
    ends.send(queue, 1)
    assert ring.release() == 1


def test_a_slot_of_several_items_goes_on_with_the_last_of_them(ends: Ends, ring: OutboundRing) -> None:
    first, second = ends.queue(), ends.queue()
    for queue, item in zip((first, second), ring.slot([(b"", frame(1), 1), (b"", frame(2), 1)]), strict=True):
        queue.bulk.append(item)
    ends.send_all(second)
    assert not ring.release()
    ends.send_all(first)
    assert ring.release() == 1


def test_a_sealed_item_counts_as_sent_although_the_socket_takes_nothing(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue(sealed=True)
    data = append(queue, ring, 1)
    ends.allow(queue, 0)
    assert queue.send() == (0, 1, False)
    assert ring.release() == 1
    with pytest.raises(BlockingIOError):
        queue.send()
    ends.send_all(queue)
    assert ends.wire(queue) == data


def test_a_connection_that_is_broken_says_so(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    append(queue, ring, 1)
    queue.connection.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(BrokenPipeError):
        queue.send()


# -- what goes first


@SEALED
def test_light_items_go_before_bulk_and_the_partial_one_before_both(
    ends: Ends, ring: OutboundRing, sealed: bool
) -> None:
    queue = ends.queue(sealed=sealed)
    append(queue, ring, 1)
    append(queue, ring, 2)
    ends.send(queue, 50)
    append(queue, ring, 3, light=True)
    append(queue, ring, 4, light=True)
    ends.send_all(queue)
    first_two = [(False, 1), (False, 2)] if sealed else [(False, 1)]  # both were sealed with the first call
    assert numbers(ends.wire(queue)) == [*first_two, (True, 3), (True, 4), *([] if sealed else [(False, 2)])]


@SEALED
def test_control_bytes_of_an_idle_connection_go_before_all_that_comes_later(
    ends: Ends, ring: OutboundRing, sealed: bool
) -> None:
    queue = ends.queue(sealed=sealed)
    control = queue.connection.seal(frame(0))
    queue.put_control(control)
    assert not queue.idle
    append(queue, ring, 1, light=True)
    ends.send(queue, 30)
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 0), (True, 1)]


# -- items that leave the queue


@pytest.mark.parametrize("sent", [1, HEAD - 1, HEAD, HEAD + 1, 99])
def test_a_partial_item_that_is_copied_out_frees_its_slot_and_is_finished_first(
    ends: Ends, ring: OutboundRing, sent: int
) -> None:
    queue = ends.queue()
    first = append(queue, ring, 1, size=100, head=HEAD)
    ends.send(queue, sent)
    queue.copy_out_partial()
    assert ring.release() == 1
    second = append(queue, ring, 2, light=True)
    ends.send(queue, 10)
    queue.copy_out_partial()  # the rest of the rest is no item
    ends.send_all(queue)
    assert ends.wire(queue) == first + second


def test_a_partial_item_behind_an_unsent_tail_is_copied_out_behind_it(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    queue.put_control(frame(0, 50))
    append(queue, ring, 1)
    ends.send(queue, 60)
    queue.copy_out_partial()
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 0), (False, 1)]


def test_a_drained_queue_gives_every_item_the_partial_one_first_and_whole(ends: Ends, ring: OutboundRing) -> None:
    queue, other = ends.queue(), ends.queue()
    for number, light in ((1, 0), (2, 0), (3, 1), (4, 1)):
        append(queue, ring, number, light=light)
        if number == 1:
            ends.send(queue, 30)
    for item in queue.drain():
        other.bulk.append(item)
    assert queue.idle
    ends.send_all(other)
    assert numbers(ends.wire(other)) == [(False, 1), (True, 3), (True, 4), (False, 2)]
    assert ring.release() == 4


def test_the_plain_blocks_of_a_queue_can_be_removed_and_its_runs_stay(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    for number, shards in ((1, 0), (2, 3), (3, 0)):
        queue.bulk.append(ring.item(frame(number), shards=shards))
    queue.light.append(ring.item(frame(4, light=True), light=True))
    removed = queue.remove_plain()
    assert [bytes(item.body) for item in removed] == [frame(4, light=True), frame(1), frame(3)]
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 2)]


def test_a_moved_item_goes_behind_those_of_its_class(ends: Ends, ring: OutboundRing) -> None:
    queue = ends.queue()
    append(queue, ring, 1)
    append(queue, ring, 2, light=True)
    for number, light in ((3, False), (4, True)):
        queue.append_moved(ring.item(frame(number, light=light), light=light))
    assert queue.mixed
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(True, 2), (True, 4), (False, 1), (False, 3)]


# -- voice


@SEALED
@given(items=st.lists(st.sampled_from(["voice", "light", "bulk"]), max_size=12), allowances=ALLOWANCES)
def test_voice_passes_what_waits_and_each_class_stays_in_order(
    sealed: bool, items: list[str], allowances: list[int]
) -> None:
    ends, ring = Ends(), OutboundRing()
    queue = ends.queue(sealed=sealed)
    try:
        for number, kind in enumerate(items):
            light = kind != "bulk"
            item = ring.item(frame(number, 100, light), light=light)._replace(voice=kind == "voice")
            if item.voice:
                queue.put_voice(item)
            else:
                queue.of_class(light).append(item)
            if number == len(items) // 2 and allowances:
                ends.send(queue, allowances[0])
        while not queue.idle:
            ends.send(queue, 1 << 40)
        ring.release()
        found = [number for _, number in numbers(ends.wire(queue))]
        for kind in ("voice", "light", "bulk"):
            own = [number for number, each in enumerate(items) if each == kind]
            assert [number for number in found if items[number] == kind] == own
        if not allowances:
            assert [items[number] for number in found] == sorted(items, key=["voice", "light", "bulk"].index)
        assert ring.room() == ring.port.ring.capacity
    finally:
        ends.close()


def test_voice_in_a_slot_ahead_of_copies_leaves_its_slot_when_the_queue_spills(ends: Ends, ring: OutboundRing) -> None:
    queue, backlog = ends.queue(), Backlog(1 << 20)
    append(queue, ring, 1, light=1)
    assert backlog.spill(queue) == 0
    queue.put_voice(ring.item(frame(2, 100, True), light=True)._replace(voice=True))
    assert backlog.spill(queue) == 0
    ring.release()
    assert ring.room() == ring.port.ring.capacity
    ends.send_all(queue)
    assert [number for _, number in numbers(ends.wire(queue))] == [2, 1]
