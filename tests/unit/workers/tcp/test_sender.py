"""The outbound duty of a tcp worker: slots to connections, connections that come and go, rates, keepalives."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.policy.loss_bursts import SPACING_MOST_NS
from pipeline.policy.shared_rate import QUANTUM
from pipeline.policy.token_bucket import BURST_LEAST
from pipeline.runtime.worker import DONE, MORE, NOTHING
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, HeaderSecret
from pipeline.sealing.padding import SIZES, PaddingSource
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.shm.layout import FIRST_PEER_HANDLE, LINK_REQUESTS, SENT_BYTES, SENT_DROPPED
from pipeline.shm.link_requests import LinkRequests
from pipeline.shm.slot import VOICE
from pipeline.transport.connection import Connection
from pipeline.transport.tls_channel import TlsChannel
from pipeline.wire import framing
from tests.harness.factory import factory
from tests.harness.send_queues import Channel, frame, numbers
from tests.harness.sender import SenderRun, wait_for
from workers.tcp import delayed_items
from workers.tcp.delayed_items import LIGHT_SPACING_NS
from workers.tcp.send_queue import BURST_BYTES
from workers.tcp.sender import EXCUSE_NS, STUCK_NS

HOLD_S = 0.05
RATE = 1_000_000
SECRET = HeaderSecret(bytes(range(32)))

Make = Callable[..., SenderRun]


@pytest.fixture
def make() -> Iterator[Make]:
    with factory(SenderRun) as make_run:
        yield make_run


def handle(peer: int) -> int:
    return FIRST_PEER_HANDLE | peer


def received(run: SenderRun, connection: Connection) -> list[tuple[bool, int]]:
    return numbers(run.received(connection))


def blocked(run: SenderRun, count: int = 1) -> Connection:
    """A connection with a full socket, after a burst in which so many slots came for it."""
    made = run.connect()
    run.block(made)
    for number in range(count):
        run.fill("plain", frame(number))
    run.burst()
    return made


# -- from slots to connections


@pytest.mark.parametrize("kind", ["plain", "light", "transit"])
def test_a_slot_goes_to_the_peer_that_its_header_names(make: Make, kind: str) -> None:
    run = make()
    first, second = run.connect(1), run.connect(2)
    run.fill(kind, frame(7), handle(2))
    assert run.burst() == MORE
    assert received(run, second) == [(False, 7)]
    assert run.received(first) == b""
    assert run.in_rings() == 0
    assert run.burst() == NOTHING


def test_a_slot_of_another_worker_goes_on_at_once(make: Make) -> None:
    run = make()
    connection = run.connect()
    run.fill("plain", frame(1), consumer=1)
    run.burst()
    assert run.in_rings() == 0
    assert run.received(connection) == b""


def test_the_runs_of_a_slot_go_to_the_connections_that_its_table_names(make: Make) -> None:
    run = make()
    connections = [run.connect() for _ in range(2)]
    run.fill_runs("transit", [(0, 0, frame(1)), (0, 1, frame(2)), (1, 0, frame(3)), (0, 2, frame(4))])
    run.burst()
    assert [received(run, each) for each in connections] == [[(False, 1), (False, 4)], [(False, 2)]]
    assert run.in_rings() == 0


def test_light_and_bulk_have_connections_of_their_own(make: Make) -> None:
    run = make()
    light, bulk = run.connect(traffic_class=framing.LIGHT), run.connect()
    run.fill("light", frame(1))
    run.fill("plain", frame(2))
    run.fill("transit", frame(3), traffic_class=framing.LIGHT)
    run.fill("transit", frame(4))
    run.burst()
    assert received(run, light) == [(False, 1), (False, 3)]
    assert received(run, bulk) == [(False, 2), (False, 4)]


def test_blocks_that_datagrams_did_not_bring_to_the_peer_go_ahead_of_plain_ones_by_their_traffic_class(
    make: Make,
) -> None:
    run = make(carrier="auto")
    light, bulk = run.connect(traffic_class=framing.LIGHT), run.connect()
    run.fill("plain", frame(1))
    run.fill("plain", frame(2), consumer=1)  # the dgram worker's
    run.fill("returned", frame(3), traffic_class=framing.LIGHT)
    run.fill("returned", frame(4))
    run.fill("returned", frame(5), consumer=3)
    run.burst()
    assert received(run, light) == [(False, 3)]
    assert received(run, bulk) == [(False, 4), (False, 1)]
    assert run.in_rings() == 0


def test_each_copy_of_a_light_packet_goes_out_a_spacing_later_and_its_slot_waits_for_none(make: Make) -> None:
    run = make()
    connections = [run.connect() for _ in range(3)]
    run.run.memory.peer_table.links[0][LINK_REQUESTS] = LinkRequests(3, 2, 50_000).pack()  # cut to SPACING_MOST_NS
    run.burst()
    began = time.monotonic_ns()
    run.fill_runs("light", [(0, 0, frame(1)), (0, 1, frame(1)), (0, 2, frame(1))])
    run.burst()
    assert run.in_rings() == 0
    assert [received(run, each) for each in connections[1:]] == [[], []]
    assert received(run, connections[0]) == [(False, 1)]
    for place in (1, 2):
        copy = connections[place]
        wait_for(lambda: received(run, copy) == [(False, 1)], run)
        assert time.monotonic_ns() - began >= place * SPACING_MOST_NS
    assert not run.sender._delayed.next_due


def test_the_first_copy_of_a_block_takes_the_connection_of_the_blocks_of_its_lane_that_have_none(make: Make) -> None:
    run = make()
    connections = [run.connect(traffic_class=framing.LIGHT) for _ in range(3)]
    for connection, lane in zip(connections, (1, 0, 2), strict=True):
        connection.receive.stamped_lane = lane
    run.burst()
    run.fill("light", frame(1))
    run.burst()
    run.fill_runs("light", [(0, 0, frame(2)), (0, 1, frame(2))])
    run.fill("light", frame(3))
    run.burst()
    assert received(run, connections[1]) == [(False, 1), (False, 2), (False, 3)]
    wait_for(lambda: received(run, connections[2]) == [(False, 2)], run)
    assert received(run, connections[0]) == []


def test_without_bursts_the_spacing_between_copies_is_short_and_there_is_none_between_runs(make: Make) -> None:
    run = make()
    connections = [run.connect() for _ in range(2)]
    run.fill_runs("transit", [(0, 0, frame(1)), (0, 1, frame(2))], skippable=1)
    run.burst()
    assert [received(run, each) for each in connections] == [[(False, 1)], [(False, 2)]]
    run.fill_runs("light", [(0, 0, frame(3)), (0, 1, frame(3))])
    began = time.monotonic_ns()
    wait_for(lambda: received(run, connections[1]), run)
    assert time.monotonic_ns() - began >= LIGHT_SPACING_NS


def test_after_bursts_the_last_run_of_a_block_that_can_do_without_it_goes_out_later(make: Make) -> None:
    run = make()
    connections = [run.connect() for _ in range(3)]
    run.run.memory.peer_table.links[0][LINK_REQUESTS] = LinkRequests(3, 2, 5_000).pack()
    run.burst()
    for skippable, later in ((1, True), (0, False)):
        runs = [(0, place, frame(place)) for place in range(3)]
        run.fill_runs("transit", runs, skippable=skippable)
        run.burst()
        assert [received(run, each) for each in connections[:2]] == [[(False, 0)], [(False, 1)]]
        assert received(run, connections[2]) == ([] if later else [(False, 2)])
        if later:
            wait_for(lambda: received(run, connections[2]) == [(False, 2)], run)


def test_copies_for_a_connection_that_takes_nothing_are_dropped_and_cost_no_more_than_their_limit(make: Make) -> None:
    run = make()
    first, second = run.connect(), run.connect()
    run.block(second)
    arrived = []
    for turn in range(300):
        run.fill_runs("light", [(0, 0, frame(turn)), (0, 1, frame(turn))], skippable=1)
        run.burst()
        arrived += received(run, first)
    wait_for(lambda: not run.sender._delayed.next_due, run)
    run.burst()
    assert run.in_rings() == 0
    assert len(arrived) == 300
    assert not run.queue(second).light
    assert run.counters[ID["tcp.runs_skipped"]] == 300
    assert run.sender._delayed._used == 0


def test_while_all_connections_take_nothing_each_keeps_every_copy_in_order(make: Make) -> None:
    run = make()
    connections = [run.connect(traffic_class=framing.LIGHT) for _ in range(3)]
    for each in connections:
        run.block(each)
    for number in range(12):
        run.fill_copies(frame(number), [(0, 0), (0, 1), (0, 2)])
        run.burst()
        wait_for(lambda: not run.sender._delayed.next_due, run)
        run.burst()
    for each in reversed(connections):
        data = [run.received(each)]

        def is_idle(each: Connection = each, data: list[bytes] = data) -> bool:
            data.append(run.received(each))
            return run.queue(each).idle

        wait_for(is_idle, run)
        came = numbers((b"".join(data) + run.received(each)).lstrip(b"\xff"))
        assert [number for _, number in came] == sorted({number for _, number in came})
        if each is connections[2]:
            assert len(came) == 12
    assert run.in_rings() == 0
    assert run.counters[ID["tcp.runs_moved"]] == 0


def test_a_packet_is_not_lost_where_its_copy_was_dropped_and_it_lags_behind_itself(make: Make) -> None:
    """Two of three connections take nothing: the third one carries all, or they do later."""
    run = make()
    lagging, full, free = (run.connect(traffic_class=framing.LIGHT) for _ in range(3))
    for each in (lagging, full):
        run.block(each)
    came = []
    for number in range(12):
        run.fill_runs("light", [(0, 0, frame(number)), (0, 1, frame(number))], skippable=1)
        run.burst()
        wait_for(lambda: not run.sender._delayed.next_due, run)
        run.burst()
        came += received(run, free)
    data = dict.fromkeys((lagging, full), b"")

    def is_idle() -> bool:
        for each in data:
            data[each] += run.received(each)
        return all(run.queue(each).idle for each in data)

    wait_for(is_idle, run)
    came += received(run, free)
    for each in data:
        came += numbers((data[each] + run.received(each)).lstrip(b"\xff"))
    assert {number for _, number in came} == set(range(12))
    assert run.in_rings() == 0


@pytest.mark.parametrize(
    ("kind", "traffic_class", "spacing_us", "expected"),
    [
        ("light", framing.LIGHT, 0, 0),
        ("transit", framing.LIGHT, 0, 2),
        ("transit", framing.LIGHT, 5000, 1),
        ("transit", framing.BULK, 5000, 2),  # a run that waits is moved to another connection, and not dropped
    ],
)
def test_no_run_is_left_unsent_because_of_one_that_may_be_dropped(
    make: Make, kind: str, traffic_class: int, spacing_us: int, expected: int
) -> None:
    run = make(2)
    run.block(run.connect())
    run.run.memory.peer_table.links[0][LINK_REQUESTS] = LinkRequests(0, 0, spacing_us).pack()
    run.burst()
    copies = [(0, 0, frame(1)), (0, 1, frame(1)), (1, 0, frame(1))]  # the last one is another worker's
    run.fill_runs(kind, copies, skippable=2, traffic_class=traffic_class)
    run.burst()
    (reader,) = (each for each in run.sender._scanner.readers if each.kind == kind and each.lane == 0)
    assert reader.skippable[0] == expected


def test_copies_that_find_no_room_to_wait_pass_no_other_on_their_connection(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed_items, "BYTES_MOST", 5 * len(frame(0)))
    run = make()
    connections = [run.connect() for _ in range(3)]
    run.burst()
    came: dict[Connection, list[tuple[bool, int]]] = {each: [] for each in connections}
    for begin in range(0, 40, 8):
        for number in range(begin, begin + 8):
            run.fill_copies(frame(number), [(0, 0), (0, 1), (0, 2)])
        run.burst()
        for each in connections:
            came[each] += received(run, each)
    wait_for(lambda: not (run.sender._delayed.next_due or run.sender._busy), run)
    for each in connections:
        assert came[each] + received(run, each) == [(False, number) for number in range(40)]


def test_a_copy_whose_connections_are_gone_is_forgotten(make: Make) -> None:
    run = make()
    connections = [run.connect() for _ in range(2)]
    run.fill_runs("light", [(0, 0, frame(1)), (0, 1, frame(1))])
    run.burst()
    for connection in connections:
        run.disconnect(connection, time.monotonic_ns())
    wait_for(lambda: not run.sender._delayed.next_due, run)
    assert run.sender._delayed._used == 0
    assert not run.sender._peers.by_handle[handle(0)].backlog.used


@pytest.mark.parametrize(("owner", "expected"), [(0, 3), (1, 0)])
def test_only_the_skip_owner_may_leave_shards_unsent(make: Make, owner: int, expected: int) -> None:
    run = make()
    run.block(run.connect())
    run.fill_runs("transit", [(0, 0, frame(1))], skippable=3, skip_owner=owner)
    run.burst()
    (reader,) = (each for each in run.sender._scanner.readers if each.kind == "transit")
    assert reader.skippable[0] == expected


def test_what_is_sent_is_counted_for_the_worker_and_for_the_peer(make: Make) -> None:
    run = make()
    connection = run.connect(2)
    for number in range(3):
        run.fill("plain", frame(number), handle(2))
    run.burst()
    assert (run.counters[ID["tcp.frames_sent"]], run.counters[ID["tcp.bytes_sent"]]) == (3, 300)
    assert run.sent_record(2, SENT_BYTES) == connection.send.byte_count == 300


# -- no connection


def test_with_one_peer_what_has_no_connection_waits_in_its_ring(make: Make) -> None:
    run = make(1, 1)
    run.connection_list.empty_since_ns = time.monotonic_ns()
    run.fill("plain", frame(1))
    run.fill("light", frame(2))
    run.burst(3)
    assert run.in_rings() == 2
    connection = run.connect()
    run.burst()
    assert received(run, connection) == [(False, 2), (False, 1)]
    assert run.in_rings() == 0


def test_with_several_peers_it_waits_in_the_backlog(make: Make) -> None:
    run = make()
    run.fill("plain", frame(1), handle(1))
    run.fill_runs("light", [(0, 0, frame(2)), (0, 1, frame(3))], handle(1))
    run.burst()
    assert run.in_rings() == 0
    connection = run.connect(1)
    run.burst()
    assert received(run, connection) == [(False, 2), (False, 3), (False, 1)]
    assert run.sender._peers.by_handle[handle(1)].backlog.used == 0


@pytest.mark.parametrize("capacity", [1, 4])
def test_what_has_no_connection_for_longer_than_hold_is_dropped_and_counted(make: Make, capacity: int) -> None:
    run = make(1, capacity, hold=HOLD_S)
    run.connection_list.empty_since_ns = time.monotonic_ns()
    run.fill("plain", frame(1))
    run.burst()
    wait_for(lambda: run.counters[ID["tcp.dropped_no_connection"]], run)
    assert run.in_rings() == 0


def test_hold_begins_when_the_last_connection_ends(make: Make) -> None:
    run = make(1, 4, hold=HOLD_S)
    lasting = run.connect(1)
    run.burst()
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2 * HOLD_S, run)
    ended_at = time.monotonic_ns()
    run.disconnect(lasting, ended_at)
    run.burst()
    assert run.sender._peers.by_handle[handle(1)].disconnected_since >= ended_at
    run.fill("plain", frame(1), handle(1))
    run.burst()
    wait_for(lambda: run.counters[ID["tcp.dropped_no_connection"]], run)
    assert time.monotonic_ns() - ended_at >= HOLD_S * 1e9


def test_what_another_worker_has_a_connection_for_is_dropped_at_once(make: Make) -> None:
    run = make(2)
    run.disconnect(run.connect(1), time.monotonic_ns())
    run.run.write_link(1, 1, 1)
    run.fill("plain", frame(1), handle(1))
    run.burst()
    assert run.counters[ID["tcp.dropped_no_connection"]] == 1
    assert run.in_rings() == 0


def test_beyond_its_limit_a_backlog_takes_nothing_and_the_peer_is_told_in_its_record(make: Make) -> None:
    run = make(1, 4, peer_queue_bytes=250)
    for number in range(4):
        run.fill("plain", frame(number), handle(1))
    run.burst()
    assert run.in_rings() == 0
    assert run.counters[ID["tcp.dropped_peer_full"]] == run.sent_record(1, SENT_DROPPED) == 2


def test_a_peer_with_another_session_gets_nothing_of_what_waited_for_the_last(make: Make) -> None:
    run = make()
    run.fill("plain", frame(1), handle(1))
    run.burst()
    run.run.memory.peer_table.write_record(2 * FIRST_PEER_HANDLE | 1, 0)
    wait_for(lambda: run.counters[ID["tcp.dropped_no_connection"]], run)
    assert handle(1) not in run.sender._peers.by_handle


def test_a_duty_whose_ring_waits_for_a_connection_sleeps_until_there_is_one(make: Make) -> None:
    run = make(1, 1)
    run.connection_list.empty_since_ns = time.monotonic_ns()
    run.fill("plain", frame(1))
    assert run.burst() == NOTHING
    since = time.monotonic()
    run.sender.wait(0.05)
    assert time.monotonic() - since >= 0.05
    run.connect()
    since = time.monotonic()
    run.sender.wait(5)
    assert time.monotonic() - since < 4


# -- connections that end


@pytest.mark.parametrize("capacity", [1, 4])
def test_the_items_of_a_connection_that_ended_go_to_another_one_the_partial_one_whole(
    make: Make, capacity: int
) -> None:
    run = make(1, capacity)
    ending, other = run.connect(), run.connect()
    run.block(ending)
    for number in range(3):
        run.fill("plain", frame(number))
    run.burst()
    assert run.in_rings() == 3
    queue = run.queue(ending)
    queue.partial, queue.partial_sent = queue.bulk.popleft(), 60  # as if its socket had taken so much
    run.disconnect(ending, time.monotonic_ns())
    run.burst()
    assert received(run, other) == [(False, 0), (False, 1), (False, 2)]
    assert run.in_rings() == 0
    assert run.counters[ID["tcp.blocks_resent"]] == 1
    assert not run.sender._peers.busy


@pytest.mark.parametrize("capacity", [1, 4])
def test_the_items_of_the_last_connection_wait_for_the_next_one(make: Make, capacity: int) -> None:
    run = make(1, capacity)
    ending = blocked(run, 3)
    run.disconnect(ending, time.monotonic_ns())
    run.burst(2)
    assert run.in_rings() == (3 if capacity == 1 else 0)
    connection = run.connect()
    run.burst()
    assert received(run, connection) == [(False, 0), (False, 1), (False, 2)]
    assert run.in_rings() == 0


def test_a_write_that_fails_ends_the_connection_and_loses_nothing(make: Make) -> None:
    run = make()
    broken = run.connect()
    run.burst()
    broken.socket.shutdown(socket.SHUT_WR)
    run.fill("plain", frame(1))
    run.burst(3)
    assert run.queue(broken).broken
    assert broken.send.error == "Broken pipe"
    assert run.in_rings() == 1
    other = run.connect()
    run.disconnect(broken, time.monotonic_ns())
    run.burst()
    assert received(run, other) == [(False, 1)]


def test_a_duty_has_drained_once_nothing_waits_for_a_socket_or_there_is_none(make: Make) -> None:
    run = make()
    connection = blocked(run)
    assert not run.sender.drained()
    run.received(connection)
    run.burst()
    assert run.sender.drained()
    run.block(connection)
    run.fill("plain", frame(2))
    run.burst()
    assert not run.sender.drained()
    run.disconnect(connection, time.monotonic_ns())
    run.burst()
    assert run.sender.drained()


@pytest.mark.parametrize("capacity", [1, 4])
def test_copies_that_were_due_when_the_last_connection_ended_take_up_no_room_for_ever(
    make: Make, capacity: int
) -> None:
    run = make(1, capacity, hold=0.0)
    first, second = run.connect(), run.connect()
    run.fill_runs("light", [(0, 0, frame(1)), (0, 1, frame(1))])
    run.burst()
    run.block(second)
    queue = run.queue(second)
    run.sender._peers.send_delayed(time.monotonic_ns() + SPACING_MOST_NS)
    assert len(queue.light) == 1
    for connection in (first, second):
        run.disconnect(connection, time.monotonic_ns())
    wait_for(lambda: not run.sender._peers.by_handle, run)
    assert run.sender._delayed._used == 0


# -- full connections


def test_a_full_socket_is_counted_and_its_slots_stay(make: Make) -> None:
    run = make(1, 1)
    connection = blocked(run)
    assert run.burst() == NOTHING
    assert run.counters[ID["tcp.socket_full_waits"]] >= 1
    assert run.in_rings() == 1
    run.received(connection)
    wait_for(lambda: run.in_rings() == 0, run)
    assert received(run, connection) == [(False, 0)]


def test_a_peer_that_takes_nothing_keeps_no_slots_from_another_once_the_ring_is_half_full(make: Make) -> None:
    run = make()
    slow, quick = run.connect(1), run.connect(2)
    run.block(slow)
    run.fill("plain", frame(1), handle(1))
    run.burst()
    assert run.in_rings() == 1
    run.fill("plain", frame(2), handle(1))
    run.burst()
    assert run.in_rings() == 0  # two of four slots
    run.fill("plain", frame(3), handle(2))
    run.burst()
    assert received(run, quick) == [(False, 3)]
    backlog = run.sender._peers.by_handle[handle(1)].backlog
    assert backlog.used == 200
    data = run.received(slow)
    wait_for(lambda: run.queue(slow).idle, run)
    assert numbers((data + run.received(slow)).lstrip(b"\xff")) == [(False, 1), (False, 2)]
    assert backlog.used == 0


def test_a_peer_alone_that_takes_nothing_keeps_its_slots(make: Make) -> None:
    run = make()
    run.block(run.connect(1))
    for number in range(4):
        run.fill("plain", frame(number), handle(1))
    run.burst(3)
    assert run.in_rings() == 4
    assert run.counters[ID["tcp.dropped_peer_full"]] == 0


def test_a_connection_that_is_stuck_is_tried_again_only_when_its_retry_is_due(make: Make) -> None:
    run = make(1, 1)
    connection = blocked(run)
    queue = run.queue(connection)
    queue.full_since -= 2 * STUCK_NS
    queue.retry_at = time.monotonic_ns() + 3_600_000_000_000
    run.received(connection)
    run.burst()
    assert run.received(connection) == b""
    assert not run.sender.drained()
    queue.retry_at = 0
    run.burst()
    assert received(run, connection) == [(False, 0)]


def test_a_stalled_connection_that_takes_something_gets_items_again(make: Make) -> None:
    run = make()
    stalled, _ = run.connect(), run.connect()
    run.burst()
    queue = run.queue(stalled)
    queue.stalled = True
    peer = run.sender._peers.by_handle[handle(0)]
    peer.set_queues(peer.queues)
    queue.put_control(frame(1))
    run.sender._peers.busy[queue] = None
    run.burst()
    assert queue in peer.bulk_queues
    assert not queue.stalled


# -- voice


@pytest.mark.parametrize("has_runs", [False, True])
def test_a_slot_with_the_mark_of_voice_passes_the_light_ones_that_wait(make: Make, has_runs: bool) -> None:
    run = make(always_voice="EF", slots=8)
    connection = run.connect()
    run.block(connection)
    for number in (1, 2):
        run.fill("light", frame(number, light=True))
    run.burst()
    if has_runs:
        run.fill_runs("light", [(0, 0, frame(3, light=True))], traffic_class=VOICE)
    else:
        run.fill("light", frame(3, light=True), traffic_class=VOICE)
    run.burst()
    assert [item.voice for item in run.queue(connection).light] == [True, False, False]


# -- rates


def test_a_peer_that_has_used_up_its_rate_waits_and_another_does_not(make: Make) -> None:
    run = make()
    limited, other = run.connect(1), run.connect(2)
    run.run.memory.peer_table.write_record(handle(1), 1000)
    run.burst()
    peers = run.sender._peers
    peers.update(time.monotonic_ns())
    bucket = peers.by_handle[handle(1)].bucket
    bucket.spend(1 << 30, time.monotonic_ns())
    run.fill("plain", frame(1), handle(1))
    run.fill("plain", frame(2), handle(2))
    run.burst()
    assert run.received(limited) == b""
    assert received(run, other) == [(False, 2)]
    bucket.update(0, 0, time.monotonic_ns())
    run.burst()
    assert received(run, limited) == [(False, 1)]


@pytest.mark.parametrize("connections", [1, 2])
def test_light_packets_of_a_peer_that_has_used_up_its_rate_pass_its_bulk_up_to_that_rate(
    make: Make, connections: int
) -> None:
    run = make()
    bulk = light = run.connect(1)
    if connections > 1:
        light = run.connect(1, traffic_class=framing.LIGHT)
    run.run.memory.peer_table.write_record(handle(1), RATE)
    run.burst()
    peer = run.sender._peers.by_handle[handle(1)]
    peer.bucket.spend(1 << 30, time.monotonic_ns())
    run.fill("plain", frame(1), handle(1))
    run.fill("light", frame(2, light=True), handle(1))
    run.burst()
    assert run.burst() == NOTHING  # else it would spin until there is credit
    assert received(run, light) == [(True, 2)]
    assert not run.sender._peers.queues[bulk].idle
    peer.light_bucket.spend(1 << 30, time.monotonic_ns())
    run.fill("light", frame(3, light=True), handle(1))
    run.burst()
    assert run.received(light) == b""
    peer.bucket.update(0, 0, time.monotonic_ns())
    run.burst()
    found = received(run, light)
    if light is not bulk:
        found += received(run, bulk)
    assert found == [(True, 3), (False, 1)]


@pytest.mark.parametrize(("own", "of_peer", "expected"), [(0, 0, 0), (500, 0, 500), (0, 700, 700), (500, 700, 500)])
def test_the_rate_of_this_end_limits_what_it_sends_to_each_peer_beside_the_one_of_the_peer(
    make: Make, own: int, of_peer: int, expected: int
) -> None:
    run = make(send_rate=own)
    run.run.memory.peer_table.write_record(handle(1), of_peer)
    run.connect(1)
    run.burst()
    assert run.sender._peers.by_handle[handle(1)].bucket.rate == expected


def test_light_packets_beyond_the_rate_count_for_it(make: Make) -> None:
    run = make()
    run.connect(1)
    run.run.memory.peer_table.write_record(handle(1), RATE)
    run.burst()
    peer = run.sender._peers.by_handle[handle(1)]
    peer.bucket.spend(BURST_LEAST + RATE, time.monotonic_ns())
    owed, free = peer.bucket.credit_at(), peer.light_bucket.credit_at()
    run.fill("light", frame(1, 1000, light=True), handle(1))
    run.burst()
    assert peer.bucket.credit_at() > owed and peer.light_bucket.credit_at() > free


def test_what_is_sent_uses_the_rate_up_and_waiting_ends_when_there_is_credit_again(make: Make) -> None:
    run = make()
    connection = run.connect(1)
    run.run.memory.peer_table.write_record(handle(1), RATE)
    run.burst()
    bucket = run.sender._peers.by_handle[handle(1)].bucket
    bucket.spend(BURST_LEAST, time.monotonic_ns())
    before = bucket.credit_at()
    run.fill("plain", frame(1), handle(1))
    wait_for(lambda: run.received(connection), run)
    assert bucket.credit_at() > before
    bucket.spend(RATE // 20, time.monotonic_ns())
    run.fill("plain", frame(2), handle(1))
    since = time.monotonic()
    run.burst()
    while not run.received(connection):
        run.sender.wait(5)
        run.burst()
    assert time.monotonic() - since < 4


def test_bytes_that_other_workers_send_to_a_peer_count_for_its_rate(make: Make) -> None:
    run = make(2)
    run.connect(1)
    run.run.memory.peer_table.write_record(handle(1), 1000)
    run.burst()
    peers = run.sender._peers
    bucket = peers.by_handle[handle(1)].bucket
    assert bucket.in_credit(time.monotonic_ns())
    run.run.memory.peer_table.sent[1][SENT_BYTES + run.sender._peers.by_handle[handle(1)].record_at] += 1 << 30
    peers.update(time.monotonic_ns())
    assert not bucket.in_credit(time.monotonic_ns())


def test_a_session_that_begins_anew_has_no_new_burst(make: Make) -> None:
    run = make()
    first = run.connect(1)
    run.run.memory.peer_table.write_record(handle(1), RATE)
    run.burst()
    run.sender._peers.by_handle[handle(1)].bucket.spend(BURST_LEAST + RATE, time.monotonic_ns())
    run.disconnect(first, time.monotonic_ns())
    again = 2 * FIRST_PEER_HANDLE | 1
    run.run.memory.peer_table.write_record(again, RATE)
    run.burst()
    peers = run.sender._peers
    peers.add(again)
    peers._follow_table(peers.by_handle[again], time.monotonic_ns())
    assert not peers.by_handle[again].bucket.in_credit(time.monotonic_ns())


@pytest.mark.parametrize(
    ("rate", "burst_bytes"), [(0, BURST_BYTES), (1000, 65536), (5_000_000, 100_000), (10**9, BURST_BYTES)]
)
@pytest.mark.parametrize("of_all", [False, True], ids=["own", "of all"])
def test_the_lower_a_rate_is_the_less_is_sent_in_one_call(
    make: Make, rate: int, burst_bytes: int, of_all: bool
) -> None:
    run = make()
    connection = run.connect(1)
    if of_all:
        run.run.memory.peer_table.write_total_rate(rate)
    else:
        run.run.memory.peer_table.write_record(handle(1), rate)
    run.burst()
    run.sender._peers.update(time.monotonic_ns())
    assert run.queue(connection).burst_bytes == burst_bytes
    run.run.memory.peer_table.write_record(handle(1), 0)
    run.run.memory.peer_table.write_total_rate(0)
    run.sender._peers.update(time.monotonic_ns())
    assert run.queue(connection).burst_bytes == BURST_BYTES


def test_beyond_the_rate_of_all_bulk_waits_but_not_light_packets_nor_a_peer_that_wants_less(make: Make) -> None:
    run = make()
    connections = [run.connect(1), run.connect(2)]
    run.run.memory.peer_table.write_total_rate(RATE)
    run.burst()
    shared = run.sender._peers.total.shared
    assert shared is not None
    shared.spend(1, BURST_LEAST + RATE // 5, time.monotonic_ns())
    run.fill("plain", frame(1), handle(1))
    run.fill("plain", frame(2), handle(2))
    run.fill("light", frame(3, light=True), handle(1))
    run.burst()
    assert run.burst() == NOTHING  # else it would spin until there is credit
    assert [received(run, each) for each in connections] == [[(True, 3)], [(False, 2)]]
    shared.spend(2, QUANTUM, time.monotonic_ns())
    run.fill("plain", frame(4), handle(2))
    run.burst()
    assert run.received(connections[1]) == b""
    run.run.memory.peer_table.write_total_rate(0)
    run.sender._peers.update(time.monotonic_ns())
    run.burst()
    assert [received(run, each) for each in connections] == [[(False, 1)], [(False, 4)]]


def test_the_rate_of_all_is_used_up_by_what_is_sent_and_waiting_ends_when_there_is_some_again(make: Make) -> None:
    run = make()
    connection = run.connect(1)
    run.run.memory.peer_table.write_total_rate(RATE)
    run.burst()
    shared = run.sender._peers.total.shared
    assert shared is not None
    shared.spend(1, QUANTUM - 1, time.monotonic_ns())
    run.fill("plain", frame(1), handle(1))
    run.burst()
    assert received(run, connection) == [(False, 1)]
    assert not shared.may_pass(1, time.monotonic_ns())
    shared.spend(1, BURST_LEAST + RATE // 20, time.monotonic_ns())
    run.fill("plain", frame(2), handle(1))
    since = time.monotonic()
    run.burst()
    assert run.received(connection) == b""
    while not run.received(connection):
        run.sender.wait(5)
        run.burst()
    assert time.monotonic() - since < 4


def test_workers_divide_the_rate_of_all_by_the_peers_that_wait_at_each(make: Make) -> None:
    run = make(2)
    run.connect(1)
    run.run.memory.peer_table.write_total_rate(RATE)
    run.burst()
    pages = {each.name: run.run.memory.scoreboard.pages[each.page] for each in run.run.plan.workers_of_kind("tcp")}
    own, other = pages.values()
    shared = run.sender._peers.total.shared
    assert shared is not None
    shared.spend(1, 2 * BURST_LEAST, time.monotonic_ns())
    run.fill("plain", frame(1), handle(1))
    run.burst()
    run.sender._peers.update(time.monotonic_ns())
    assert own.waiting("outbound")[0] == 1
    waits = shared.passes_at(1) - time.monotonic_ns()
    other.waiting("outbound")[0] = 3
    run.sender._peers.update(time.monotonic_ns())
    assert shared.passes_at(1) - time.monotonic_ns() > 3 * waits
    run.run.memory.peer_table.write_total_rate(0)
    run.sender._peers.update(time.monotonic_ns())
    assert own.waiting("outbound")[0] == 0


def test_padding_of_another_worker_uses_nothing_of_the_rate_of_all_up(make: Make) -> None:
    run = make(2)
    _, other = (run.run.memory.scoreboard.pages[each.page] for each in run.run.plan.workers_of_kind("tcp"))
    other.waiting("outbound")[0] = 3
    other.counters[ID["tcp.bytes_sent"]] = 1000
    other.counters[ID["tcp.bytes_padding_sent"]] = 400
    assert run.sender._peers.total._exchange(2) == [(3, 600)]


def test_padding_uses_nothing_of_a_rate_up(make: Make) -> None:
    run = make()
    padded, _ = sealed(run, padding=PaddingSource())
    run.burst()
    run.run.memory.peer_table.write_record(FIRST_PEER_HANDLE, 1)
    wait_for(lambda: run.sender._peers.by_handle[padded.peer_handle].bucket.rate, run)
    body = bytes(100)
    for _ in range(10):
        run.fill("plain", shard.SEALED_RUN.pack(21 + 100, framing.RUN, 1 << 8, 1, 1, 0, 0, 1, 100, 0, 1) + body)
        run.burst()
    assert padded.send.byte_count == 10 * SIZES[0]
    bucket = run.sender._peers.by_handle[padded.peer_handle].bucket
    assert (bucket._burst - bucket._level) // 10**9 in range(10 * 142 - 10, 10 * 142 + 1)


# -- the tick


def test_an_idle_connection_gets_a_keepalive_and_a_busy_one_none(make: Make) -> None:
    run = make(1, 4, keepalive=0.1)
    idle, busy = run.connect(1), run.connect(2)
    run.block(busy)
    run.fill("plain", frame(1), handle(2))
    wait_for(lambda: idle.send.keepalive_bytes, run)
    assert run.received(idle) == framing.KEEPALIVE_FRAME
    assert busy.send.keepalive_bytes == 0
    assert run.counters[ID["tcp.keepalives_sent"]] == 1
    assert run.queue(busy).bulk


def test_output_of_the_tls_channel_goes_out_although_nothing_else_does(make: Make) -> None:
    run = make()
    connection = run.connect()
    run.burst()
    channel = Channel()
    channel.output = [b"an answer"]
    connection.channel = cast("TlsChannel", channel)
    wait_for(lambda: not connection.has_tls_output, run)
    assert Channel.opened(run.received(connection)) == b"an answer"
    assert run.counters[ID["tcp.keepalives_sent"]] == 0


def test_once_there_is_a_connection_again_the_duty_looks_at_its_rings_before_it_sleeps(make: Make) -> None:
    """Its doorbell is a hint, and may be missed."""
    run = make(1, 1, hold=3600.0)
    run.connection_list.empty_since_ns = time.monotonic_ns()
    run.fill("plain", frame(1))
    run.burst()
    assert run.in_rings() == 1
    connection = run.connect()
    run.burst(2)
    assert received(run, connection) == [(False, 1)]
    run.fill("plain", frame(2))
    since = time.monotonic()
    run.sender.wait(5)
    run.burst()
    assert received(run, connection) == [(False, 2)]
    assert time.monotonic() - since < 4


def test_waiting_ends_as_soon_as_a_connection_comes_or_a_socket_has_room(make: Make) -> None:
    run = make()
    assert run.burst() == NOTHING
    connection = run.connect()
    since = time.monotonic()
    run.sender.wait(5)
    run.burst()
    run.block(connection)
    run.fill("plain", frame(1))
    assert run.burst() in (NOTHING, DONE)
    run.received(connection)
    run.sender.wait(5)
    assert time.monotonic() - since < 4


# -- questions


def sealed(
    run: SenderRun, answers: bool = True, padding: PaddingSource | None = None
) -> tuple[Connection, RecordScanner]:
    """A connection that is sealed both ways, and what its other end makes of the bytes."""
    made = run.connect()
    made.send.writer = RecordWriter(HeaderSealer(AES_256_GCM, SECRET), padding)
    made.receive.scanner = RecordScanner(HeaderOpener(AES_256_GCM, SECRET))
    made.answers = answers
    return made, RecordScanner(HeaderOpener(AES_256_GCM, SECRET))


def bare_frames(run: SenderRun, connection: Connection, scanner: RecordScanner) -> int:
    """The frames without a body that have come since."""
    data = memoryview(bytearray(run.received(connection)))
    return scanner.scan(data, 0, len(data), framing.LENGTH_LIMIT)[4]


def test_each_end_that_answers_is_asked_once_for_each_question(make: Make) -> None:
    run = make()
    asked, its = sealed(run)
    older, others = sealed(run, answers=False)
    run.connection_list.question_ns = time.monotonic_ns()
    wait_for(lambda: run.counters[ID["tcp.keepalives_sent"]], run)
    run.burst(3)
    assert bare_frames(run, asked, its) == 1 and its.asked
    assert not bare_frames(run, older, others)


def test_a_question_is_answered_once_whatever_the_rate_of_the_peer_is(make: Make) -> None:
    run = make()
    asking, its = sealed(run)
    run.burst()
    run.run.memory.peer_table.write_record(FIRST_PEER_HANDLE, RATE)
    run.sender._peers.by_handle[asking.peer_handle].bucket.spend(100 * RATE, time.monotonic_ns())
    assert asking.receive.scanner is not None
    asking.receive.scanner.asked = True
    wait_for(lambda: not asking.receive.scanner.asked, run)
    run.burst(3)
    assert bare_frames(run, asking, its) == 1 and not its.asked


@pytest.mark.parametrize("answers", [True, False])
def test_an_end_whose_question_may_wait_unread_hears_something_all_the_same(make: Make, answers: bool) -> None:
    run = make()
    held_up, its = sealed(run, answers)
    held_up.receive.is_held_up = True
    held_up.send.last_ns -= EXCUSE_NS
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        run.burst()
    assert bare_frames(run, held_up, its) == answers, "and no more than one in half a second"
