"""The backlog of a peer: copies that free their slots, within a limit; and items that wait for a connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.harness.send_queues import FRAME, Ends, OutboundRing, frame, numbers
from workers.tcp.backlog import Backlog

HEAD = 31
PLENTY = 1 << 20


def test_what_spills_frees_its_slots_and_goes_out_as_it_was(ends: Ends, ring: OutboundRing) -> None:
    queue, backlog = ends.queue(), Backlog(PLENTY)
    for number, light in ((1, False), (2, False), (3, True)):
        queue.of_class(light).append(ring.item(frame(number, light=light), head=HEAD, light=light))
    ends.send(queue, 50)  # of number 3
    assert backlog.spill(queue) == 0
    assert ring.release() == 3
    assert backlog.used == 200
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(True, 3), (False, 1), (False, 2)]
    assert backlog.used == 0


def test_beyond_the_limit_the_youngest_items_are_dropped_and_their_slots_are_free(
    ends: Ends, ring: OutboundRing
) -> None:
    queue, backlog = ends.queue(), Backlog(250)
    for number in range(4):
        queue.bulk.append(ring.item(frame(number)))
    assert backlog.spill(queue) == 2
    assert ring.release() == 4
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 0), (False, 1)]


def test_the_limit_is_for_all_queues_of_the_peer_together(ends: Ends, ring: OutboundRing) -> None:
    backlog = Backlog(250)
    queues = [ends.queue(), ends.queue()]
    for queue in queues:
        for number in range(2):
            queue.bulk.append(ring.item(frame(number)))
    assert [backlog.spill(queue) for queue in queues] == [0, 2]


def test_copies_that_are_sent_make_room_for_others(ends: Ends, ring: OutboundRing) -> None:
    queue, backlog = ends.queue(), Backlog(100)
    for number in range(3):
        queue.bulk.append(ring.item(frame(number)))
        assert backlog.spill(queue) == 0
        ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 0), (False, 1), (False, 2)]


def test_what_has_spilled_before_is_not_copied_again(ends: Ends, ring: OutboundRing) -> None:
    queue, backlog = ends.queue(), Backlog(PLENTY)
    queue.bulk.append(ring.item(frame(1)))
    backlog.spill(queue)
    (first,) = queue.bulk
    queue.bulk.append(ring.item(frame(2)))
    backlog.spill(queue)
    assert queue.bulk[0] is first
    assert backlog.used == 200
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 1), (False, 2)]


def test_items_in_slots_are_found_in_front_of_copies_that_were_moved(ends: Ends, ring: OutboundRing) -> None:
    queue, other, backlog = ends.queue(), ends.queue(), Backlog(PLENTY)
    other.bulk.append(ring.item(frame(2)))
    backlog.spill(other)
    queue.bulk.append(ring.item(frame(1)))
    for item in other.drain():
        queue.append_moved(item)
    assert backlog.spill(queue) == 0
    assert ring.release() == 2
    assert not queue.mixed
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 1), (False, 2)]
    assert backlog.used == 0


def test_the_rest_of_a_partial_item_needs_no_room(ends: Ends, ring: OutboundRing) -> None:
    queue, backlog = ends.queue(), Backlog(0)
    queue.bulk.append(ring.item(frame(1)))
    ends.send(queue, 1)
    assert backlog.spill(queue) == 0
    assert ring.release() == 1
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 1)]


# -- items without a connection


def test_unassigned_items_keep_their_order_and_free_their_slots(ends: Ends, ring: OutboundRing) -> None:
    backlog, queue = Backlog(PLENTY), ends.queue()
    assert all(backlog.add_unassigned(ring.item(frame(number))) for number in range(3))
    assert ring.release() == 3
    queue.bulk.extend(backlog.unassigned)
    ends.send_all(queue)
    assert numbers(ends.wire(queue)) == [(False, 0), (False, 1), (False, 2)]
    assert backlog.used == 0


def test_an_unassigned_item_beyond_the_limit_is_dropped_and_its_slot_is_free(ring: OutboundRing) -> None:
    backlog = Backlog(150)
    assert [backlog.add_unassigned(ring.item(frame(number))) for number in range(2)] == [True, False]
    assert ring.release() == 2
    assert backlog.used == 100


def test_a_copy_of_a_connection_that_ended_becomes_unassigned_without_another_copy(
    ends: Ends, ring: OutboundRing
) -> None:
    queue, backlog = ends.queue(), Backlog(100)
    queue.bulk.append(ring.item(frame(1)))
    backlog.spill(queue)
    (item,) = queue.drain()
    assert backlog.add_unassigned(item)
    assert (backlog.unassigned[0], backlog.used) == (item, 100)


def test_unassigned_items_that_are_dropped_make_room(ring: OutboundRing) -> None:
    backlog = Backlog(PLENTY)
    for number in range(3):
        backlog.add_unassigned(ring.item(frame(number)))
    assert backlog.drop_unassigned() == 3
    assert (backlog.used, len(backlog.unassigned)) == (0, 0)
    assert backlog.drop_unassigned() == 0


# -- whatever happens in whichever order

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(FRAME.size, 300)),
        st.tuples(st.just("send"), st.integers(0, 500)),
        st.tuples(st.just("spill"), st.just(0)),
        st.tuples(st.just("move"), st.just(0)),
    ),
    max_size=40,
)


@given(steps=STEPS, limit=st.integers(0, 900))
def test_what_is_not_dropped_goes_out_once_and_the_backlog_never_holds_more_than_its_limit(
    steps: list[tuple[str, int]], limit: int
) -> None:
    ends, ring = Ends(), OutboundRing()
    backlog, queue, other = Backlog(limit), ends.queue(), ends.queue()
    added = dropped = 0
    try:
        for step, size in steps:
            if step == "add" and ring.room():
                queue.bulk.append(ring.item(frame(added, size), head=size % FRAME.size))
                added += 1
            elif step == "send" and not queue.idle:
                ends.send(queue, size)
            elif step == "spill":
                dropped += backlog.spill(queue)
            elif step == "move" and not queue.partial and not queue.unsent_tail:
                for item in other.drain():
                    queue.append_moved(item)
                queue, other = other, queue
            ring.release()
            assert 0 <= backlog.used <= limit
        for each in (queue, other):
            ends.send_all(each)
        sent = [number for each in (queue, other) for _, number in numbers(ends.wire(each))]
        assert len(sent) == len(set(sent)) == added - dropped
        assert backlog.used == 0
        ring.release()
        assert ring.room() == ring.port.ring.capacity
    finally:
        ends.close()
