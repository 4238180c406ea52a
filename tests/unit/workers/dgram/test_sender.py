"""The outbound duty: blocks out of the rings, onto the paths of their peers, into queues, or back to TCP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.datagram.cut import PARTS_MAX
from pipeline.fec import shard
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX
from pipeline.policy.datagram_rate import CRUISE, STARTUP
from pipeline.runtime.worker import NOTHING
from pipeline.shm.layout import (
    DATAGRAM_CUT,
    DATAGRAM_DROPPED,
    DATAGRAM_RATE,
    DATAGRAM_ROUND_TRIP,
    DATAGRAM_SENT_BYTES,
    DATAGRAM_SENT_SEGMENTS,
    FIRST_PEER_HANDLE,
)
from pipeline.shm.slot import write_header, write_run_count
from tests.harness.datagram_sender import START, FarEnd, SenderRun
from workers.dgram.path import Path
from workers.dgram.sender import Sender

BULK, LIGHT = 0x700, 0x701
LANE_1 = 1 << 3

Make = Callable[..., SenderRun]


@pytest.mark.parametrize(("kind", "stream"), [("plain", BULK), ("light", LIGHT), ("transit", BULK), ("transit", LIGHT)])
def test_the_blocks_of_all_rings_arrive_in_order_and_slots_are_free_at_once(
    make_sender: Make, kind: str, stream: int
) -> None:
    run = make_sender()
    path = run.connect()
    sent = [run.fill(size, kind, stream=stream) for size in (90, 1400, 3000, 5000)]
    free = run.free(kind)
    run.burst()
    assert run.free(kind) == free + 4
    run.until(lambda: len(run.far[path].blocks) == 4)
    assert sorted(run.far[path].blocks) == sorted(sent)
    run.until(run.sender.drained)


def test_slots_for_others_are_passed_over(make_sender: Make) -> None:
    run = make_sender()
    path = run.connect()
    run.fill(3000, consumer=0)
    sent = run.fill(3000)
    run.fill(3000, consumer=0xFFFF)
    run.until(lambda: run.far[path].blocks)
    assert run.far[path].blocks == [sent] and run.sender.work() is NOTHING
    assert run.free() == run.fillers["plain"].ring.capacity


def test_bulk_of_the_only_peer_waits_in_its_ring_and_light_blocks_go_on(make_sender: Make) -> None:
    run = make_sender(capacity=1)
    path = run.connect(fate=lambda number: False)
    sent = [run.fill(60_000) for _ in range(16)]
    for _ in range(20):
        run.burst()
    assert 10 <= run.fillers["plain"].ring.capacity - run.free() < 16
    run.far[path].fate = lambda number: True
    light = run.fill(90, "light", stream=LIGHT)
    run.until(lambda: run.far[path].blocks)
    assert run.far[path].blocks == [light]
    run.until(lambda: len(run.far[path].blocks_once) == 17)
    assert run.far[path].blocks_once[1:] == sent and run.count("dropped_peer_full") == 0


def test_a_peer_that_takes_nothing_holds_up_no_other(make_sender: Make) -> None:
    run = make_sender(peer_queue_bytes=300_000)
    dead, path = run.connect(0, fate=lambda number: False), run.connect(1)
    run.burst()
    sent = []
    for _ in range(12):
        run.fill(60_000, peer=0, stream=BULK)
        sent.append(run.fill(60_000, peer=1, stream=BULK | 0x100))
        run.burst()
        assert run.free() == run.fillers["plain"].ring.capacity
    run.until(lambda: len(run.far[path].blocks) == 12)
    assert run.far[path].blocks == sent and not run.far[dead].blocks
    dropped = run.count("dropped_peer_full")
    assert 5 <= dropped < 12 and run.word(0, DATAGRAM_DROPPED) == dropped and run.word(1, DATAGRAM_DROPPED) == 0


def test_what_waits_for_a_peer_arrives_in_order_when_there_is_room(make_sender: Make) -> None:
    run = make_sender(peer_queue_bytes=2_000_000)
    path, _ = run.connect(0), run.connect(1)
    run.burst()
    sent = [run.fill(60_000) for _ in range(15)]
    run.burst()
    assert run.free() == run.fillers["plain"].ring.capacity
    sent += [run.fill(60_000) for _ in range(15)]
    run.until(lambda: len(run.far[path].blocks) == 30)
    assert run.far[path].blocks == sent


def test_what_a_dark_path_has_not_brought_goes_back_to_tcp(make_sender: Make) -> None:
    run = make_sender(capacity=1, slots=32)
    path = run.connect(fate=lambda number: False)
    sent = [run.fill(6000) for _ in range(12)]
    sent += [run.fill(90, "light", stream=LIGHT) for _ in range(3)]
    for _ in range(3):
        run.burst()
    run.paths.close(path)
    found = run.take_all_returned(len(sent))
    assert sorted(block for block, _ in found) == sorted(sent)
    assert [number for (stream, number, _), _ in found if stream == BULK] == list(range(12)), "bulk by number"
    assert all(mark == stream & 1 for (stream, _, _), mark in found)
    assert run.count("blocks_returned") == 15 and run.sender.drained()


def test_a_path_that_is_open_again_goes_on_with_its_sequence(make_sender: Make) -> None:
    run = make_sender(capacity=1)
    path = run.connect()
    far = run.far[path]
    for _ in range(5):
        run.fill(60_000)
    run.until(lambda: len(far.blocks) == 5 and run.sender.drained())
    last = far.fields[-1][0]
    for _ in range(2):
        run.paths.close(path)
        run.burst()
        (outbound,) = run.sender._peers.paths.values()
        assert outbound.feedback.smoothed == 0 and outbound.feedback.rate.phase == STARTUP
        run.paths.open(path)
        before = len(far.fields)
        blocks = len(far.blocks)
        run.fill(60_000)
        run.until(lambda blocks=blocks: len(far.blocks) > blocks and run.sender.drained())  # type: ignore[misc]
        assert far.fields[before][0] == last + 1
        last = far.fields[-1][0]
        assert path.outstanding_since is None and run.count("segments_repeated") == 0


def test_a_path_that_takes_the_place_of_another_one_goes_on_with_its_sequence(make_sender: Make) -> None:
    run = make_sender(capacity=1)
    path = run.connect()
    run.fill(60_000)
    run.until(lambda: len(run.far[path].blocks) == 1 and run.sender.drained())
    last = run.far[path].fields[-1][0]
    run.paths.close(path)
    other = Path(path.session, path.remote_lane, run.segments)
    far = run.far[other] = FarEnd(path.session)
    other.address, other.segment_most = far.address, path.segment_most
    run.paths.open(other)
    sent = run.fill(60_000)
    run.until(lambda: far.blocks == [sent] and run.sender.drained())
    assert far.fields[0][0] == last + 1 and other.outstanding_since is None


def test_what_a_path_was_to_bring_goes_on_by_the_one_that_takes_its_place(make_sender: Make) -> None:
    run = make_sender(capacity=1)
    path = run.connect(fate=lambda number: False)
    sent = [run.fill(60_000), run.fill(60_000)]
    run.until(lambda: run.count("segments_sent") > 40)
    other = Path(path.session, path.remote_lane, run.segments)
    far = run.far[other] = FarEnd(path.session)
    other.address, other.segment_most = far.address, 1400
    run.paths.open(other)
    run.until(lambda: len(far.blocks) == 2 and run.sender.drained())
    assert far.blocks == sent and max(far.sizes) <= 1400
    assert path.outstanding_since is None and run.count("blocks_returned") == 0


def test_a_slot_with_a_run_table_is_for_tcp_workers(make_sender: Make) -> None:
    run = make_sender()
    path = run.connect()
    slot = run.fillers["light"].slot()
    run.fill(90, "light", stream=LIGHT)
    write_run_count(slot, 1, 0, 1)
    sent = run.fill(90, "light", stream=LIGHT)
    run.until(lambda: run.far[path].blocks)
    assert run.far[path].blocks == [sent]


def test_what_was_reported_does_not_go_back(make_sender: Make) -> None:
    run = make_sender(capacity=1)
    path = run.connect()
    run.fill(6000)
    run.until(lambda: run.far[path].blocks and run.sender.drained())
    run.far[path].fate = lambda number: False
    later = run.fill(6000)
    run.burst()
    run.paths.close(path)
    run.burst()
    assert [block for block, _ in run.take_returned()] == [later]


def test_without_any_path_blocks_go_to_tcp_at_once_and_more_than_it_takes_wait(make_sender: Make) -> None:
    run = make_sender(capacity=1, peer_queue_bytes=1 << 20)
    sent = [run.fill(6000) for _ in range(16)]
    run.burst()
    run.burst()
    sent += [run.fill(6000) for _ in range(16)]
    run.burst()
    found = run.take_all_returned(32)
    assert [block for block, _ in found] == sent


def test_with_the_carrier_udp_blocks_wait_for_a_path_and_are_dropped_when_it_comes_too_late(make_sender: Make) -> None:
    run = make_sender(capacity=1, carrier="udp", hold=0.3)
    path = run.connect(fate=lambda number: False)
    first = [run.fill(6000) for _ in range(6)]
    run.burst()
    run.paths.close(path)
    run.burst()
    assert not run.take_returned() and not run.sender.drained()
    far = run.far[path]
    far.fate = lambda number: True
    run.paths.open(path)
    run.until(lambda: len(far.blocks) == 6)
    assert far.blocks == first
    run.until(run.sender.drained)
    run.paths.close(path)
    run.fill(6000)
    run.until(lambda: run.count("dropped_no_path") == 1)
    assert run.sender.drained() and run.word(0, DATAGRAM_DROPPED) == 1


def test_a_stream_has_one_path_and_the_lane_that_it_names_says_which(make_sender: Make) -> None:
    run = make_sender()
    paths = [run.connect(remote_lane=lane) for lane in range(2)]
    sent = [[run.fill(3000, stream=BULK | lane * LANE_1) for _ in range(4)] for lane in range(2)]
    run.until(lambda: all(len(run.far[path].blocks) == 4 for path in paths))
    assert [run.far[path].blocks for path in paths] == sent
    for path in paths:
        assert [fields[0] for fields in run.far[path].fields] == list(range(len(run.far[path].fields)))
    run.paths.close(paths[1])
    more = run.fill(3000, stream=BULK | LANE_1)
    run.until(lambda: more in run.far[paths[0]].blocks)


def test_each_peer_has_its_own_token_and_keys(make_sender: Make) -> None:
    run = make_sender()
    paths = [run.connect(peer) for peer in range(4)]
    sent = [run.fill(40_000, peer=peer, stream=BULK + 0x100 * peer) for peer in range(4)]
    run.until(lambda: all(run.far[path].blocks for path in paths))
    assert [run.far[path].blocks for path in paths] == [[each] for each in sent]


@pytest.mark.parametrize("wrong", ["length", "peer", "n", "size", "kind", "start"])
def test_a_slot_that_contradicts_itself_costs_itself(make_sender: Make, wrong: str) -> None:
    run = make_sender()
    path = run.connect()
    port = run.fillers["plain"]
    slot = port.slot()
    run_length = shard.RUN_BYTES + 3000
    start, length, handle = START, run_length, FIRST_PEER_HANDLE
    fields = {"length": run_length - 4, "kind": 5, "n": 1, "size": 3000}
    run.fill(3000)
    kind = slot[START + 4]
    fields["kind"] = kind
    match wrong:
        case "length":
            length += 10
        case "start":
            start = len(slot) - 10
        case "peer":
            handle |= 0xFFF
        case "kind":
            fields["kind"] = kind + 1
        case _:
            fields[wrong] += 1
    shard.SEALED_RUN.pack_into(
        slot, START, fields["length"], fields["kind"], BULK, 9, fields["n"], 0, 0, 1, fields["size"], 3, 1
    )
    write_header(slot, start, length, 1, handle, 0)
    sent = run.fill(3000)
    run.until(lambda: sent in run.far[path].blocks)
    assert run.count("dropped_slot_spoilt") == 1 and run.free() == port.ring.capacity


def test_a_peer_has_its_words_in_the_peer_table(make_sender: Make) -> None:
    run = make_sender()
    path = run.connect(2)
    for _ in range(10):
        run.fill(60_000, peer=2)
    run.until(lambda: len(run.far[path].blocks) == 10)
    run.until(lambda: run.word(2, DATAGRAM_SENT_BYTES) == run.count("bytes_sent"))
    assert run.word(2, DATAGRAM_SENT_SEGMENTS) == run.count("segments_sent")
    run.until(lambda: run.word(2, DATAGRAM_ROUND_TRIP) and run.word(2, DATAGRAM_RATE))
    n, m = divmod(run.word(2, DATAGRAM_CUT), 256)
    assert n * PARTS_MAX * path.segment_most > 60_000 and 1 < n <= DATA_SHARDS_MAX and m <= PARITY_SHARDS_MAX
    run.paths.close(path)
    run.until(lambda: run.word(2, DATAGRAM_RATE) == 0)
    assert run.word(2, DATAGRAM_SENT_BYTES) == run.count("bytes_sent") and run.word(0, DATAGRAM_SENT_BYTES) == 0


def test_a_session_that_has_ended_leaves_nothing(make_sender: Make) -> None:
    run = make_sender(carrier="udp")
    path = run.connect(fate=lambda number: False)
    run.fill(60_000)
    run.burst()
    run.paths.close(path)
    run.run.memory.peer_table.write_record(FIRST_PEER_HANDLE + (1 << 12), 0)
    run.until(lambda: not run.sender._peers._by_handle)
    assert run.sender.drained() and run.count("dropped_no_path") == 1
    assert not run.sender._peers.paths


def test_news_of_the_other_duty_end_a_wait(make_sender: Make) -> None:
    run = make_sender()
    run.burst()
    assert not run.sender._ready()
    run.connect()
    assert run.sender._ready()
    run.burst()
    assert not run.sender._ready()
    run.fill(3000)
    assert run.sender._ready()


PACE, ROUND_TRIP_US = 6_000_000, 40_000


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_successor_begins_with_the_pace_of_the_process_before_on_a_path_that_was_open(
    make_sender: Make, is_resumed: bool
) -> None:
    run = make_sender()
    words = run.run.memory.peer_table.datagrams_out[0]
    words[DATAGRAM_RATE], words[DATAGRAM_ROUND_TRIP] = PACE, ROUND_TRIP_US
    sender = Sender(run.run.attach("dgram-0"), run.paths)
    run.sender = sender
    path = run.connect()
    path.is_resumed = is_resumed
    run.fill(3000)
    run.burst()
    (outbound,) = sender._peers.paths.values()
    rate = outbound.feedback.rate
    assert (rate.phase == CRUISE) == is_resumed
    if is_resumed:
        assert rate.pacing_rate == pytest.approx(0.8 * PACE) and rate.round_trip == 1000 * ROUND_TRIP_US
        assert rate.window > 0.8 * PACE * ROUND_TRIP_US / 1e6
