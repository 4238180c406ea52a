"""Whole blocks get into slots: several small ones together, those of each lane and traffic class apart."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from pipeline.counters import ID
from pipeline.datagram.segment import HEADER_BYTES
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.runtime.plan import StagePosition
from pipeline.runtime.port import Port
from pipeline.sealing import kinds
from pipeline.shm import layout, ring, segment
from pipeline.shm.datagram_secrets import DatagramSecrets
from pipeline.shm.ring import StageView
from pipeline.shm.slot import SLOT_BYTES_MIN, read_header, read_marks
from tests.harness.sealed_lane import handle, words
from workers.dgram.arrived_ring import RUNS_MOST, ArrivedRing
from workers.dgram.reception import Reception
from workers.dgram.sessions import Session

SLOTS = 8
LANES = 2
CODEC = Codec()
Found = list[tuple[int, int, list[tuple[int, int, bytes]]]]  # lane, class, and of each run stream, number and block


class Filled:
    """An arrived ring, and receptions of peers whose blocks come."""

    def __init__(self, is_shared: bool = False) -> None:
        self._ring = ring.create(f"/tunnel@arrivedringtest@{secrets.token_hex(4)}@ring", 2, SLOTS, SLOT_BYTES_MIN)
        port = Port(self._ring, StagePosition(0, 0, [1], True, [], []), 0, [], [])
        self.arrived = ArrivedRing(port, LANES, is_shared)
        self.consumer = StageView(self._ring, 1, [0])
        self.counters = words(320)
        self._segmenter = Segmenter(CODEC, 1, 512)

    def reception(self, peer: int = 0) -> Reception:
        session = Session(DatagramSecrets(handle(1, peer), 1, bytes(16), 0, bytes(32), os.urandom(32)))
        return Reception(session, {}, CODEC, self.counters, words(layout.RECORD_WORDS * 4), False)

    def come(self, reception: Reception, stream: int, number: int, size: int = 100) -> bytes:
        """A block that is one row comes."""
        block = memoryview(os.urandom(size))
        session = reception.session
        mask = session.receive_mask(1)
        head = self._segmenter.head_of_row(block, session.receive_token, mask, number, stream, number, 3)
        assert len(head) == HEADER_BYTES
        reception.add_one(memoryview(head + bytes(block)), False, 1)
        return bytes(block)

    def consume(self) -> Found:
        found: Found = []
        for _ in range(self.consumer.ready()):
            slot = self.consumer.slot()
            start, length, lane, peer_handle = read_header(slot)
            assert peer_handle >> layout.PEER_INDEX_BITS == 1
            runs, at = [], start
            while at < start + length:
                _, _, stream, number, n, m, _, count, size, epoch, _ = shard.SEALED_RUN.unpack_from(slot, at)
                assert (n, m, count, epoch) == (1, 0, 1, 3)
                at += shard.RUN_BYTES
                runs.append((stream, number, bytes(slot[at : at + size])))
                at += size
            found.append((lane, read_marks(slot)[0], runs))
            self.consumer.advance(1)
        return found

    def close(self) -> None:
        segment.unlink(self._ring.memory.name)
        self._ring.close()


@pytest.fixture
def filled() -> Iterator[Filled]:
    made = Filled()
    yield made
    made.close()


@pytest.fixture
def shared() -> Iterator[Filled]:
    made = Filled(is_shared=True)
    yield made
    made.close()


def test_small_blocks_of_a_stream_share_a_slot(filled: Filled) -> None:
    reception = filled.reception()
    stream = kinds.stream(9, 0, kinds.PLAIN)
    blocks = [filled.come(reception, stream, number) for number in range(10)]
    assert filled.arrived.take_blocks(reception, 1) == 1
    assert filled.consume() == [(0, 0, [(stream, number, block) for number, block in enumerate(blocks)])]


def test_lanes_and_traffic_classes_have_slots_of_their_own(filled: Filled) -> None:
    reception = filled.reception(peer=1)
    streams = [kinds.stream(9, lane, kind) for lane in (0, 1) for kind in (kinds.PLAIN, kinds.LIGHT)]
    for number in range(3):
        for stream in streams:
            filled.come(reception, stream, number)
    filled.arrived.take_blocks(reception, 1)
    found = {(lane, light, stream) for lane, light, runs in filled.consume() for stream, _, _ in runs}
    assert found == {(1, 0, streams[0]), (1, 1, streams[1]), (0, 0, streams[2]), (0, 1, streams[3])}


def test_a_slot_has_no_more_runs_than_the_next_duty_takes_in_a_moment(filled: Filled) -> None:
    reception = filled.reception()
    for number in range(2 * RUNS_MOST + 1):
        filled.come(reception, kinds.stream(9, 0, kinds.PLAIN), number, size=20)
    filled.arrived.take_blocks(reception, 1)
    assert [len(runs) for _, _, runs in filled.consume()] == [RUNS_MOST, RUNS_MOST, 1]


def test_a_block_that_has_no_room_is_held_and_comes_first_once_there_is_room(filled: Filled) -> None:
    reception = filled.reception()
    stream = kinds.stream(9, 0, kinds.PLAIN)
    blocks = [filled.come(reception, stream, number, size=60_000) for number in range(20)]
    assert filled.arrived.take_blocks(reception, 1) == SLOTS
    assert reception.held is not None
    assert filled.arrived.take_blocks(reception, 1) == 0
    found = filled.consume()
    while filled.arrived.take_blocks(reception, 1):
        found += filled.consume()
    assert reception.held is None
    assert [block for _, _, runs in found for _, _, block in runs] == blocks
    assert filled.counters[ID["dgram.blocks_whole"]] == 20


def test_where_peers_share_the_ring_one_leaves_room_for_another(shared: Filled) -> None:
    one, other = shared.reception(0), shared.reception(1)
    for number in range(20):
        shared.come(one, kinds.stream(9, 0, kinds.PLAIN), number, size=60_000)
    assert shared.arrived.take_blocks(one, 1) == SLOTS // 2
    shared.come(other, kinds.stream(9, 0, kinds.PLAIN), 0)
    assert shared.arrived.take_blocks(other, 1) == 1
