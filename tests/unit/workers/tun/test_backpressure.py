"""While rings are full: the reader waits on a fast path, reads on on a slow one, and queues so many bytes at most."""

from __future__ import annotations

import pytest

from pipeline.counters import ID
from pipeline.shm import layout
from workers.tun.backpressure import (
    OVERFLOW_BYTES,
    PATIENCE_NS,
    SLOW_NS,
    SPILL_NS,
    BackpressureState,
    OverflowQueue,
)
from workers.tun.packer import BULK_FULL, LIGHT_FULL

START = 1_000_000_000


@pytest.fixture
def counters() -> memoryview:
    return memoryview(bytearray(8 * layout.COUNTERS_MAX)).cast("Q")


@pytest.fixture
def state(counters: memoryview) -> BackpressureState:
    return BackpressureState(counters)


def test_with_room_in_all_rings_the_reader_does_not_wait(state: BackpressureState) -> None:
    assert not state.must_wait(START, 0, False)
    assert not state.waits


def test_a_full_ring_is_waited_for_until_patience_ends_and_then_read_past(state: BackpressureState) -> None:
    assert state.must_wait(START, BULK_FULL, False)
    assert state.must_wait(START + PATIENCE_NS - 1, BULK_FULL, False)
    assert state.waits
    assert not state.must_wait(START + PATIENCE_NS, BULK_FULL, False)
    assert not state.waits


def test_a_slow_path_is_not_waited_for_again_for_some_time(state: BackpressureState) -> None:
    state.must_wait(START, BULK_FULL, False)
    slow = START + PATIENCE_NS
    state.must_wait(slow, BULK_FULL, False)
    state.must_wait(slow + 1, 0, False)
    assert not state.must_wait(slow + SLOW_NS - 1, BULK_FULL, False)
    state.must_wait(slow + SLOW_NS, 0, False)
    assert state.must_wait(slow + 3 * SLOW_NS, BULK_FULL, False)


def test_a_reader_that_stops_waits_for_a_slot_however_long_the_ring_is_full(state: BackpressureState) -> None:
    state.must_wait(START, BULK_FULL, True)
    assert state.must_wait(START + 10 * PATIENCE_NS, BULK_FULL, True)


def test_a_full_light_ring_blocks_until_its_flows_become_bulk(state: BackpressureState) -> None:
    assert state.must_wait(START, LIGHT_FULL, False)
    assert state.must_wait(START + SPILL_NS - 1, LIGHT_FULL, False)
    assert not state.must_wait(START + SPILL_NS, LIGHT_FULL, False)


def test_each_wait_for_a_ring_is_counted_once(state: BackpressureState, counters: memoryview) -> None:
    for full in (BULK_FULL, BULK_FULL, 0, BULK_FULL, 0, LIGHT_FULL, LIGHT_FULL):
        state.must_wait(START, full, False)
    assert counters[ID["tun.ring_full_waits"]] == 3


def test_queued_packets_leave_in_their_order_until_one_is_not_accepted(counters: memoryview) -> None:
    queue = OverflowQueue(counters)
    for packet in (b"a", b"b", b"c"):
        queue.append(packet)
    accepted: list[bytes] = []

    def retry(packet: bytes) -> bool:
        if packet == b"c":
            return False
        accepted.append(packet)
        return True

    queue.drain(retry)
    assert accepted == [b"a", b"b"]
    assert list(queue.packets) == [b"c"]


def test_a_full_queue_drops_packets_counted_and_has_room_again_when_it_is_drained(counters: memoryview) -> None:
    queue = OverflowQueue(counters)
    half = bytes(OVERFLOW_BYTES // 2)
    for _ in range(3):
        queue.append(half)
    assert len(queue.packets) == 2
    assert counters[ID["tun.dropped_ring_full"]] == 1
    queue.drain(lambda packet: True)
    queue.append(half)
    assert len(queue.packets) == 1
