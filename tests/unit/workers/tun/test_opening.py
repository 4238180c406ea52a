"""Sealed blocks that are opened: each once, by the right key, at its place, and whole; all others are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.fec import shard
from pipeline.sealing import kinds
from pipeline.shm.layout import TRANSIT_EPOCH_ACKNOWLEDGED, TRANSIT_EPOCH_OPENED
from tests.harness.sealed_lane import Lane, block_keys, changed, handle, key, opened, sealed
from workers.tun.sealing import UNNEEDED, BlockOpening, BlockSealing

ME = handle(1)
BLOCK = b"\0\0" + bytes(range(100))
NOT_OPENED, EPOCH_UNKNOWN, REPLAYED = ({f"tun.dropped_{why}": 1} for why in ("not_opened", "epoch_unknown", "replayed"))


@pytest.fixture
def lane() -> Iterator[Lane]:
    """Of an end that opens what it seals."""
    with closing(Lane()) as made:
        made.keys.write(block_keys(ME, key(1)))
        yield made


@pytest.fixture
def ends(lane: Lane) -> tuple[BlockSealing, BlockOpening]:
    return lane.sealing(3), lane.opening()


def test_a_block_is_opened_once(lane: Lane, ends: tuple[BlockSealing, BlockOpening]) -> None:
    sealing, opening = ends
    (run,) = sealed(sealing, ME, kinds.PLAIN, BLOCK, packets=9)
    assert opened(opening, run, ME) == BLOCK and opening.packets == 9
    assert opened(opening, run, ME) is None
    assert lane.counts() == REPLAYED


def test_a_block_that_comes_in_datagrams_and_by_tcp_is_opened_once_and_no_fault_of_a_connection() -> None:
    with closing(Lane(datagrams=True)) as lane:
        lane.keys.write(block_keys(ME, key(1)))
        sealing, opening = lane.sealing(3), lane.opening()
        (run,) = sealed(sealing, ME, kinds.PLAIN, BLOCK)
        assert opened(opening, run, ME) == BLOCK
        assert opening.open(memoryview(run), 0, len(run), ME) == UNNEEDED
        assert lane.counts() == {"tun.blocks_unneeded": 1}


def test_a_block_is_opened_once_by_all_processes_of_a_lane(lane: Lane, ends: tuple[BlockSealing, BlockOpening]) -> None:
    (run,) = sealed(ends[0], ME, kinds.PLAIN, BLOCK)
    assert opened(ends[1], run, ME) == BLOCK
    assert opened(lane.opening(), run, ME) is None
    assert lane.counts() == REPLAYED


def test_one_of_the_copies_of_a_block_is_opened_whichever_comes(lane: Lane) -> None:
    for first in range(3):
        runs = sealed(lane.sealing(3 + first), ME, kinds.COPIED, BLOCK, copies=3)
        assert len({run[shard.RUN_BYTES :] for run in runs}) == 3  # nothing on the wire says that they are copies
        opening = lane.opening()
        before = lane.counts().get("tun.copies_unneeded", 0)
        assert opened(opening, runs[first], ME) == BLOCK
        for run in runs:
            assert opened(opening, run, ME) is None
        assert lane.counts() == {"tun.copies_unneeded": before + 3}


WRONG = {
    "another stream's": ({"stream": 3 << 8 | kinds.LIGHT}, NOT_OPENED),
    "another lane's": ({"stream": 3 << 8 | 1 << 3}, NOT_OPENED),
    "another process's": ({"stream": 4 << 8}, NOT_OPENED),
    "another number's": ({"number": 1}, NOT_OPENED),
    "another copy's": ({"first": 1}, NOT_OPENED),
    "of the next epoch": ({"epoch": 1}, EPOCH_UNKNOWN),
    "of the epoch before": ({"epoch": 0xFFFF}, EPOCH_UNKNOWN),
}


@pytest.mark.parametrize(("fields", "counted"), WRONG.values(), ids=WRONG.keys())
def test_a_block_under_a_false_header_is_not_opened_and_what_it_was_still_is(
    lane: Lane, ends: tuple[BlockSealing, BlockOpening], fields: dict[str, int], counted: dict[str, int]
) -> None:
    (run,) = sealed(ends[0], ME, kinds.PLAIN, BLOCK)
    assert opened(ends[1], changed(run, **fields), ME) is None
    assert lane.counts() == counted
    assert opened(ends[1], run, ME) == BLOCK


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(shard.RUN_BYTES, shard.RUN_BYTES + len(BLOCK) + 15), st.integers(1, 255))
def test_a_block_with_any_bit_changed_is_not_opened(lane: Lane, at: int, flip: int) -> None:
    (run,) = sealed(lane.sealing(3), ME, kinds.PLAIN, BLOCK)
    before = lane.counts().get("tun.dropped_not_opened", 0)
    spoilt = bytearray(run)
    spoilt[at] ^= flip
    assert opened(lane.opening(), bytes(spoilt), ME) is None
    assert lane.counts() == {"tun.dropped_not_opened": before + 1}


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 50, 117])
def test_a_block_that_was_cut_off_is_not_opened(lane: Lane, size: int) -> None:
    (run,) = sealed(lane.sealing(3), ME, kinds.PLAIN, BLOCK)
    assert len(run) == shard.RUN_BYTES + 118
    assert opened(lane.opening(), run[: shard.RUN_BYTES + size], ME) is None
    assert lane.counts() == NOT_OPENED


def test_a_block_that_would_not_fit_is_not_opened(lane: Lane) -> None:
    opening = lane.opening()
    (run,) = sealed(lane.sealing(3), ME, kinds.PLAIN, bytes(len(opening.plaintext) + 1))
    assert opened(opening, run, ME) is None
    assert lane.counts() == NOT_OPENED


def test_a_block_comes_back_to_nobody() -> None:
    with closing(Lane()) as near, closing(Lane()) as far:  # each direction has a key of its own
        near.keys.write(block_keys(ME, key(1), open_now=key(2)))
        far.keys.write(block_keys(ME, key(2), open_now=key(1)))
        (run,) = sealed(near.sealing(3), ME, kinds.PLAIN, BLOCK)
        assert opened(near.opening(), run, ME) is None
        assert near.counts() == NOT_OPENED
        assert opened(far.opening(), run, ME) == BLOCK


def test_a_block_of_another_session_is_not_opened(lane: Lane, ends: tuple[BlockSealing, BlockOpening]) -> None:
    sealing, opening = ends
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(3)]
    lane.keys.write(block_keys(handle(1, 1), key(9)))
    assert opened(opening, runs[0], handle(1, 1)) is None  # another peer
    assert opened(opening, runs[0], ME) == BLOCK
    lane.keys.write(block_keys(handle(2), key(2)))
    assert opened(opening, runs[1], ME) is None  # the session has ended
    assert opened(opening, runs[1], handle(2)) is None
    assert lane.counts() == {"tun.dropped_not_opened": 2, "tun.dropped_epoch_unknown": 1}


def test_the_blocks_of_three_epochs_are_opened(lane: Lane, ends: tuple[BlockSealing, BlockOpening]) -> None:
    sealing, opening = ends
    runs = []
    for epoch in range(5):
        lane.keys.write(block_keys(ME, key(epoch), epoch))
        runs += sealed(sealing, ME, kinds.PLAIN, BLOCK)
    lane.keys.write(block_keys(ME, key(2), 2, open_before=key(1), open_after=key(3)))
    assert [opened(opening, run, ME) is not None for run in runs] == [False, True, True, True, False]
    assert lane.counts() == {"tun.dropped_epoch_unknown": 2}


def test_a_block_that_is_not_opened_leaves_no_mark_and_tells_of_no_epoch(lane: Lane) -> None:
    lane.keys.write(block_keys(ME, key(1), 5, open_after=key(2)))
    (run,) = sealed(lane.sealing(3), ME, kinds.PLAIN, b"\0\5")
    opening = lane.opening()
    for number in range(1, 20):
        assert opened(opening, changed(run, number=number << 20, stream=9 << 8, epoch=6), ME) is None
    assert lane.word(0, TRANSIT_EPOCH_OPENED) == lane.word(0, TRANSIT_EPOCH_ACKNOWLEDGED) == 0
    assert opened(opening, run, ME) == b"\0\5"
    assert lane.word(0, TRANSIT_EPOCH_OPENED) == lane.word(0, TRANSIT_EPOCH_ACKNOWLEDGED) == ME << 16 | 5


def test_keys_that_are_just_written_cost_no_block(lane: Lane, ends: tuple[BlockSealing, BlockOpening]) -> None:
    sealing, opening = ends
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(3)]
    assert opened(opening, runs[0], ME) == BLOCK
    lane.keys.words[0] += 1
    assert opened(opening, runs[1], ME) == BLOCK
    lane.keys.words[0] += 1
    assert opened(opening, runs[2], ME) == BLOCK
    assert lane.counts() == {}


def test_the_peer_is_told_the_latest_epoch_that_this_lane_has_opened(lane: Lane) -> None:
    opening, sealing = lane.opening(), lane.sealing(3)
    lane.keys.write(block_keys(ME, key(7), 7, open_before=key(6), open_after=key(8)))
    assert sealing.acknowledged(ME) == 0
    (late,) = sealed(sealing, ME, kinds.LIGHT, BLOCK)
    lane.keys.write(block_keys(ME, key(8), 8, open_before=key(7)))
    (run,) = sealed(sealing, ME, kinds.PLAIN, BLOCK)
    assert opened(opening, run, ME) == opened(opening, late, ME) == BLOCK
    assert sealing.acknowledged(ME) == 8
    assert sealing.acknowledged(handle(2)) == 0


def test_a_peer_hears_of_its_new_epoch_and_once_more_when_keys_change_for_the_news_may_be_lost(lane: Lane) -> None:
    opening = lane.opening()

    def receive(epoch: int) -> list[int]:
        lane.keys.write(block_keys(ME, key(1), epoch=epoch))
        for _ in range(2):
            (run,) = sealed(sealing, ME, kinds.PLAIN, BLOCK)
            assert opened(opening, run, ME) == BLOCK
        heard = list(opening.owed)
        opening.owed.clear()
        return heard

    sealing = lane.sealing(3)
    assert receive(0) == receive(0) == []
    assert receive(1) == receive(1) == [ME]
    assert receive(2) == [ME]


# -- a client that goes to another server


@pytest.fixture
def moving() -> Iterator[Lane]:
    with closing(Lane(mode="client")) as made:
        made.keys.write(block_keys(ME, key(1)))
        yield made


def test_a_client_opens_what_still_comes_from_the_server_that_it_has_left_each_block_once(moving: Lane) -> None:
    sealing, opening = moving.sealing(3), moving.opening()
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(5)]
    assert opened(opening, runs[0], ME) == BLOCK
    moving.keys.write(block_keys(handle(2), key(2)))
    assert opened(opening, runs[1], ME) == BLOCK, "nothing of the new session has come yet"
    (new,) = sealed(sealing, handle(2), kinds.PLAIN, BLOCK)
    assert opened(opening, new, handle(2)) == BLOCK
    assert opened(opening, runs[2], ME) == BLOCK
    for run in runs[:3]:
        assert opened(opening, run, ME) is None
    assert opened(opening, new, handle(2)) is None
    assert moving.counts() == {"tun.dropped_replayed": 4}
    assert opened(opening, runs[3], ME) == BLOCK


def test_the_session_before_the_last_one_is_forgotten(moving: Lane) -> None:
    sealing, opening = moving.sealing(3), moving.opening()
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(3)]
    assert opened(opening, runs[0], ME) == BLOCK
    for number in (2, 3):
        moving.keys.write(block_keys(handle(number), key(number)))
        (run,) = sealed(sealing, handle(number), kinds.PLAIN, BLOCK)
        assert opened(opening, run, handle(number)) == BLOCK
    assert opened(opening, runs[1], ME) is None and moving.counts() == EPOCH_UNKNOWN


def test_a_session_in_reserve_has_no_keys_and_disturbs_nothing(moving: Lane) -> None:
    sealing, opening = moving.sealing(3), moving.opening()
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(4)]
    for run in runs:
        assert opened(opening, run, ME) == BLOCK
        assert opened(opening, run, handle(2)) is None
    assert moving.counts() == {"tun.dropped_epoch_unknown": 4}


def test_a_block_that_was_begun_for_the_session_before_is_sealed_with_its_key(moving: Lane) -> None:
    sealing, opening = moving.sealing(3), moving.opening()
    assert opened(opening, sealed(sealing, ME, kinds.PLAIN, BLOCK)[0], ME) == BLOCK
    moving.keys.write(block_keys(handle(2), key(2)))
    (late,) = sealed(sealing, ME, kinds.PLAIN, BLOCK)
    (new,) = sealed(sealing, handle(2), kinds.PLAIN, BLOCK)
    (last,) = sealed(sealing, ME, kinds.PLAIN, BLOCK)
    numbers = [shard.SEALED_RUN.unpack_from(run)[3] for run in (late, new, last)]
    assert numbers == sorted(set(numbers)), "no number is used twice, under whatever key"
    assert [opened(opening, run, to) for run, to in ((new, handle(2)), (late, ME), (last, ME))] == [BLOCK] * 3


def test_a_server_seals_and_opens_nothing_for_a_session_that_has_ended(lane: Lane) -> None:
    sealing, opening = lane.sealing(3), lane.opening()
    runs = [sealed(sealing, ME, kinds.PLAIN, BLOCK)[0] for _ in range(2)]
    assert opened(opening, runs[0], ME) == BLOCK
    lane.keys.write(block_keys(handle(2), key(2)))
    assert sealed(sealing, ME, kinds.PLAIN, BLOCK) == [] and opened(opening, runs[1], ME) is None
