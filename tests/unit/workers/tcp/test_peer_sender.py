"""Sending to one peer: which queue gets which item, and which items full connections lose to others."""

from __future__ import annotations

import pytest

from pipeline.counters import ID
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.transport.connection import Connection
from pipeline.transport.tcp_info import TcpInfo
from pipeline.wire import framing
from tests.harness.send_queues import Ends, OutboundRing, Stuck, frame, numbers
from workers.tcp import delayed_items
from workers.tcp.delayed_items import DelayedItems
from workers.tcp.peer_sender import LAG_SLOTS, STALL_NS, PeerSender
from workers.tcp.send_item import CopiedBlock
from workers.tcp.send_queue import SendQueue

NOW = 3_600_000_000_000


class Bench:
    """A peer with some connections."""

    def __init__(self, ends: Ends, connections: int = 2, kind: type = Stuck) -> None:
        self.counters = memoryview(bytearray(8 * 256)).cast("Q")
        self.peer = PeerSender(FIRST_PEER_HANDLE | 5, 1 << 20, 0, self.counters)
        self.queues = [ends.queue(kind=kind) for _ in range(connections)]
        self.peer.set_queues(self.queues)

    def count(self, name: str) -> int:
        return self.counters[ID[name]]

    def relieve(self, full: SendQueue, since: int = 1) -> list[SendQueue]:
        """A queue has been full for so long."""
        full.full_since = NOW - since
        return self.peer.relieve(full, NOW)


def bodies(queue: SendQueue) -> list[tuple[bool, int]]:
    """(light, number) of what waits, light first."""
    return [each for item in (*queue.light, *queue.bulk) for each in numbers(bytes(item.head or b"") + item.body)]


# -- which queue


@pytest.mark.parametrize("light", [False, True])
def test_plain_blocks_of_one_lane_stay_on_one_connection_and_lanes_have_different_ones(ends: Ends, light: bool) -> None:
    bench = Bench(ends, 3)
    rings = [OutboundRing(lane=lane) for lane in range(4)]
    chosen = [{bench.peer.queue_for(ring.item(frame(number), light=light)) for number in range(5)} for ring in rings]
    assert chosen == [{bench.queues[lane % 3]} for lane in range(4)]


def test_plain_blocks_of_a_lane_go_on_a_connection_of_that_lane(ends: Ends) -> None:
    bench = Bench(ends, 4)
    for queue, lane in zip(bench.queues, (1, 0, 1, 0), strict=True):
        queue.connection.receive.stamped_lane = lane
    bench.peer.set_queues(bench.queues)
    rings = [OutboundRing(lane=lane) for lane in range(3)]
    chosen = [{bench.peer.queue_for(ring.item(frame(number))) for number in range(5)} for ring in rings]
    assert chosen == [{bench.queues[1]}, {bench.queues[2]}, {bench.queues[2]}]


def test_the_first_lanes_of_two_clients_need_not_send_on_their_first_connections(ends: Ends) -> None:
    bench = Bench(ends, 3)
    other = PeerSender(bench.peer.peer, 1 << 20, NOW, bench.counters, turn=2)
    other.set_queues(bench.queues)
    item = OutboundRing(lane=0).item(frame(0))
    assert (bench.peer.queue_for(item), other.queue_for(item)) == (bench.queues[0], bench.queues[2])


def test_runs_without_a_connection_of_their_own_go_to_one_in_turn(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 3)
    chosen = [bench.peer.queue_for(ring.item(frame(number), shards=1)) for number in range(6)]
    assert chosen == 2 * bench.queues


def test_each_traffic_class_has_its_connections(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 0)
    bulk, light = ends.queue(), ends.queue(traffic_class=framing.LIGHT)
    bench.peer.set_queues([light, bulk])
    assert bench.peer.queue_for(ring.item(frame(1), light=True)) is light
    assert bench.peer.queue_for(ring.item(frame(2))) is bulk


@pytest.mark.parametrize("only", [framing.BULK, framing.LIGHT])
def test_the_connections_of_one_class_carry_all_if_there_are_no_others(ends: Ends, only: int) -> None:
    bench = Bench(ends, 0)
    queue = ends.queue(traffic_class=only)
    bench.peer.set_queues([queue])
    assert bench.peer.queues_for(True) == bench.peer.queues_for(False) == [queue]


def test_a_stalled_connection_gets_nothing_unless_all_are_stalled(ends: Ends) -> None:
    bench = Bench(ends, 2)
    bench.queues[0].stalled = True
    bench.peer.set_queues(bench.queues)
    assert bench.peer.queues_for(False) == bench.queues[1:]
    bench.queues[1].stalled = True
    bench.peer.set_queues(bench.queues)
    assert bench.peer.queues_for(False) == bench.queues


def test_what_waited_for_a_connection_goes_to_the_new_ones_in_order(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 0)
    for number, light in ((1, False), (2, True), (3, False)):
        bench.peer.backlog.add_unassigned(ring.item(frame(number, light=light), light=light))
    queue = ends.queue()
    bench.peer.set_queues([queue])
    bench.peer.assign_backlog()
    assert bodies(queue) == [(True, 2), (False, 1), (False, 3)]
    ends.send_all(queue)
    assert bench.peer.backlog.used == 0


# -- a connection that lags


def lagging(ring: OutboundRing, queue: SendQueue, runs: int, shards: int = 1, skippable: int = 0) -> None:
    """So many slots, each with one run for this queue; all others have sent theirs."""
    for number in range(runs):
        queue.bulk.extend(ring.slot([(b"", frame(number), shards)], skippable=skippable))


def test_runs_that_lag_are_skipped_as_long_as_their_blocks_can_do_without_them(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 3)
    slow, *others = bench.queues
    lagging(ring, slow, LAG_SLOTS + 3, shards=2, skippable=2)
    assert bench.relieve(slow) == []
    assert [number for _, number in bodies(slow)] == list(range(4, LAG_SLOTS + 3))
    assert bench.count("tcp.runs_skipped") == 4
    assert ring.release() == 4
    assert all(queue.idle for queue in others)


def test_runs_that_cannot_be_skipped_move_to_the_connection_with_the_fewest_items(
    ends: Ends, ring: OutboundRing
) -> None:
    bench = Bench(ends, 3)
    slow, busy, free = bench.queues
    for number in range(3):
        busy.light.append(OutboundRing().item(frame(100 + number), light=True))
    lagging(ring, slow, LAG_SLOTS + 1, shards=2, skippable=1)
    assert bench.relieve(slow) == [free] * 2
    assert bodies(free) == [(False, 0), (False, 1)]
    assert bench.count("tcp.runs_moved") == 2
    assert bench.count("tcp.runs_skipped") == 0
    assert not ring.release()


def test_runs_move_to_no_connection_on_a_far_uplink(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 3)
    slow, far, near = bench.queues
    far.connection.receive.far = True
    near.light.append(OutboundRing().item(frame(100), light=True))
    lagging(ring, slow, LAG_SLOTS + 1)
    assert bench.relieve(slow) == [near] * 2
    assert far.idle


def test_the_shards_of_one_block_are_skipped_up_to_their_number(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    slow, other = bench.queues
    slow.bulk.extend(ring.slot([(b"", frame(1), 1), (b"", frame(2), 1), (b"", frame(3), 1)], skippable=2))
    lagging(ring, slow, LAG_SLOTS)
    assert bench.relieve(slow) == [other, other]
    assert bench.count("tcp.runs_skipped") == 2
    assert bodies(other) == [(False, 3), (False, 0)]


def test_a_connection_that_keeps_up_loses_nothing(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 3)
    first, *others = bench.queues
    for number in range(10):
        for queue, item in zip(
            bench.queues, ring.slot([(b"", frame(3 * number + at), 1) for at in range(3)], skippable=3), strict=True
        ):
            queue.bulk.append(item)
    assert bench.relieve(first) == []
    assert [len(queue.bulk) for queue in bench.queues] == [10, 10, 10]
    for queue in others:
        ends.send_all(queue)
    bench.relieve(first)
    assert len(first.bulk) == LAG_SLOTS - 1
    assert bench.count("tcp.runs_skipped") == 11 - LAG_SLOTS


def test_only_runs_in_front_lag(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    slow, other = bench.queues
    slow.bulk.append(ring.item(frame(50)))
    lagging(ring, slow, LAG_SLOTS + 3, skippable=1)
    assert bench.relieve(slow) == []
    assert len(slow.bulk) == LAG_SLOTS + 4
    assert other.idle


def test_copies_in_the_backlog_hold_no_slot_up_and_stay(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    slow = bench.queues[0]
    lagging(ring, slow, LAG_SLOTS + 3, skippable=1)
    bench.peer.backlog.spill(slow)
    assert bench.relieve(slow) == []
    assert len(slow.bulk) == LAG_SLOTS + 3


def test_slots_in_front_of_a_run_that_was_delayed_and_moved_spill_as_well(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    full, other = bench.queues
    (late,) = ring.slot([(b"", frame(1), 1)])
    delayed = DelayedItems()
    assert delayed.add(late, NOW, bench.peer.peer_handle, 0)
    late.source.finish(late)
    found = delayed.pop(NOW)
    assert found is not None
    full.append_moved(found[-1])
    lagging(ring, other, 2)
    assert bench.relieve(full) == [other]
    assert bench.peer.backlog.spill(other) == 0
    assert ring.release() == 3
    assert bodies(other) == [(False, 0), (False, 1), (False, 1)]


def test_an_only_connection_loses_nothing(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 1)
    (slow,) = bench.queues
    lagging(ring, slow, LAG_SLOTS + 3, skippable=1)
    slow.bulk.append(ring.item(frame(50)))
    assert bench.relieve(slow, since=2 * STALL_NS) == []
    assert not slow.stalled
    assert len(slow.bulk) == LAG_SLOTS + 4


# -- copies of light blocks


class Backed(Connection):
    """Its kernel has not sent all that it was given."""

    def tcp_info(self) -> TcpInfo:
        return TcpInfo(0, 0, 0, 0, 0, 0, 0, 1, 0, 0)


def copied(ring: OutboundRing, delayed: DelayedItems, queues: list[SendQueue], blocks: int) -> None:
    """So many blocks, of which each queue has a copy: the first one in its slot, the others copied out."""
    for number in range(blocks):
        block = CopiedBlock()
        (first,) = ring.slot([(b"", frame(number, light=True), 1)], light=True)
        queues[0].light.append(first._replace(copied=block))
        for queue in queues[1:]:
            delayed.add(first._replace(copied=block), NOW, queue.connection.peer_handle, 0)
            found = delayed.pop(NOW)
            assert found is not None
            queue.append_moved(found[-1])


@pytest.mark.parametrize("place", [0, 1], ids=["the-first", "a-further-one"])
def test_a_copy_waits_until_another_one_has_gone_out(ends: Ends, ring: OutboundRing, place: int) -> None:
    bench = Bench(ends, 0)
    bench.peer.set_queues([ends.queue() for _ in range(3)])
    full, other, _ = bench.peer.queues[place:] + bench.peer.queues[:place]
    delayed = DelayedItems()
    copied(ring, delayed, bench.peer.queues, 2 * LAG_SLOTS)
    assert bench.relieve(full) == []
    assert [number for _, number in bodies(full)] == list(range(2 * LAG_SLOTS))
    ends.send_all(other)
    assert bench.relieve(full) == []
    assert bench.count("tcp.runs_skipped") == (LAG_SLOTS + 1 if place == 0 else 2 * LAG_SLOTS)
    assert bench.count("tcp.runs_moved") == 0


@pytest.mark.parametrize("place", [0, 1], ids=["the-first", "a-further-one"])
def test_one_that_waits_in_a_kernel_has_not_gone_out(ends: Ends, ring: OutboundRing, place: int) -> None:
    bench = Bench(ends, 2, kind=Backed)
    full, other = bench.queues[place:] + bench.queues[:place]
    copied(ring, DelayedItems(), bench.queues, 2 * LAG_SLOTS)
    ends.send_all(other)
    assert bench.relieve(full) == []
    assert len(bodies(full)) == 2 * LAG_SLOTS


@pytest.mark.parametrize("place", [0, 1], ids=["the-first", "a-further-one"])
def test_one_that_went_out_on_a_connection_that_has_ended_does_not_count(
    ends: Ends, ring: OutboundRing, place: int
) -> None:
    bench = Bench(ends, 3)
    full, other = bench.queues[place], bench.queues[1 - place]
    copied(ring, DelayedItems(), bench.queues[:2], 2 * LAG_SLOTS)
    ends.send_all(other)
    bench.peer.set_queues([full, bench.queues[2]])
    assert bench.relieve(full) == []
    assert len(bodies(full)) == 2 * LAG_SLOTS


def test_first_copies_leave_a_stalled_connection_for_another(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 3)
    still, _, free = bench.queues
    copied(ring, DelayedItems(), bench.queues[:2], 2 * LAG_SLOTS)
    assert bench.relieve(still, since=STALL_NS + 1) == [free] * (LAG_SLOTS + 1)
    assert [number for _, number in bodies(free)] == list(range(LAG_SLOTS + 1))


def test_copies_that_wait_in_queues_are_dropped_beyond_a_limit(
    ends: Ends, ring: OutboundRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed_items, "BYTES_MOST", 5 * len(frame(0)))
    bench = Bench(ends, 2)
    full = bench.queues[1]
    copied(ring, DelayedItems(), bench.queues, 8)
    assert bench.relieve(full) == []
    assert [number for _, number in bodies(full)] == list(range(3, 8))
    assert bench.count("tcp.runs_skipped") == 3


# -- a connection that stands still


def test_a_stalled_connection_hands_its_plain_blocks_to_another(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    still, other = bench.queues
    still.bulk.append(ring.item(frame(1)))
    still.light.append(ring.item(frame(2, light=True), light=True))
    other.bulk.append(ring.item(frame(3)))
    assert bench.relieve(still, since=STALL_NS + 1) == [other, other]
    assert still.stalled
    assert bodies(other) == [(True, 2), (False, 3), (False, 1)]
    assert bench.count("tcp.runs_moved") == 2
    assert bench.peer.queues_for(False) == [other]


def test_the_rest_of_its_partial_block_stays_with_it_and_holds_no_slot(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    still, other = bench.queues
    for number in (1, 2):
        still.bulk.append(ring.item(frame(number)))
    ends.send(still, 30)
    bench.relieve(still, since=STALL_NS + 1)
    ends.send_all(other)
    assert ring.release() == 2
    ends.send_all(still)
    assert (numbers(ends.wire(still)), numbers(ends.wire(other))) == ([(False, 1)], [(False, 2)])


@pytest.mark.parametrize("since", [1, STALL_NS])
def test_a_connection_that_was_full_for_a_moment_keeps_its_blocks(ends: Ends, ring: OutboundRing, since: int) -> None:
    bench = Bench(ends, 2)
    full = bench.queues[0]
    full.bulk.append(ring.item(frame(1)))
    assert bench.relieve(full, since) == []
    assert not full.stalled


def test_a_connection_whose_peer_answers_keeps_its_blocks_however_long_it_is_full(
    ends: Ends, ring: OutboundRing
) -> None:
    bench = Bench(ends, 0)
    full, other = ends.queue(), ends.queue()  # the kernel of a socket pair knows of no timeout
    bench.peer.set_queues([full, other])
    full.bulk.append(ring.item(frame(1)))
    assert bench.relieve(full, since=100 * STALL_NS) == []
    assert not full.stalled


def test_where_every_connection_stands_still_each_keeps_what_nobody_else_takes(ends: Ends, ring: OutboundRing) -> None:
    bench = Bench(ends, 2)
    first, second = bench.queues
    first.bulk.append(ring.item(frame(1)))
    bench.relieve(first, since=STALL_NS + 1)
    assert bodies(second) == [(False, 1)]
    moved = bench.count("tcp.runs_moved")
    bench.relieve(second, since=STALL_NS + 1)  # both again: those of lane 0 are the first one's
    assert bodies(first) == [(False, 1)]
    assert bench.count("tcp.runs_moved") == moved + 1


# -- rates


def test_a_peer_without_a_rate_is_always_in_credit_and_one_with_a_rate_until_it_is_used_up(ends: Ends) -> None:
    peer = Bench(ends, 1).peer
    peer.bucket.spend(1 << 40, NOW)
    assert peer.bucket.in_credit(NOW)
    peer.bucket.update(1_000_000, 0, NOW)
    assert peer.bucket.in_credit(NOW)
    peer.bucket.spend(1 << 30, NOW)
    assert not peer.bucket.in_credit(NOW)
