"""No nonce repeats under a key: whatever dies, comes back, runs twice, or changes its session or its keys, and when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fec import shard
from pipeline.sealing import kinds
from pipeline.shm.key_table import BlockKeys, KeyTable
from pipeline.shm.layout import PEER_INDEX_MASK
from tests.harness.sealed_lane import CAPACITY, LANES, Lane, block_keys, handle, key, sealed
from workers.tun import sealing as module
from workers.tun.sealing import BlockSealing

DUTIES = (kinds.FROM_TUN, kinds.FROM_PEERS)
INSTANTS = ("before the count", "after the count", "in the middle of the seal", "after the seal")


class Killed(Exception):
    """The process has died at this instant."""


class Recorder:
    """An AEAD that seals nothing, and knows every pair of key and nonce that it was ever given."""

    def __init__(self) -> None:
        self.used: set[tuple[bytes, bytes]] = set()
        self.die_at = ""

    def aead(self, suite: int, secret: bytes) -> _Recording:
        return _Recording(self, secret)


class _Recording:
    def __init__(self, recorder: Recorder, secret: bytes) -> None:
        self._recorder = recorder
        self._secret = secret

    def encrypt_into(self, nonce: bytearray, data: memoryview, associated: None, into: memoryview) -> int:
        recorder = self._recorder
        if recorder.die_at == "after the count":
            raise Killed
        pair = self._secret, bytes(nonce)
        assert pair not in recorder.used, "this nonce was used before"
        recorder.used.add(pair)  # a taken-over worker may have read a part of it
        if recorder.die_at in ("in the middle of the seal", "after the seal"):
            raise Killed
        return len(into)

    def decrypt_into(self, *_: Any) -> int:
        raise AssertionError("nothing is opened here")


class Process:
    """A tun worker's process: a sealing of each duty."""

    def __init__(self, lane: Lane, number: int) -> None:
        self.duties: list[BlockSealing] = [lane.sealing(number, own) for own in DUTIES]


class Ends:
    """The lanes of an end with their supervisor: it numbers processes, and writes keys and sessions."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.table, self._fd = KeyTable.create(CAPACITY)
        self.lanes = [Lane(lane, self.table) for lane in range(LANES)]
        self._numbers = count(1)
        self._handles, self._secrets = count(1), count(1)
        self.processes: list[list[Process]] = [[] for _ in range(LANES)]
        self.now: list[BlockKeys] = [self._begun(peer) for peer in range(CAPACITY)]
        self.before: list[BlockKeys] = list(self.now)
        for lane in range(LANES):
            self.start(lane)

    def _begun(self, peer: int, old: BlockKeys | None = None) -> BlockKeys:
        found = block_keys(handle(next(self._handles), peer), key(next(self._secrets)) if old is None else old.send)
        self.table.write(found)
        return found

    def start(self, lane: int) -> None:
        """A process more: a successor, or one beside another by whatever mistake."""
        self.processes[lane].append(Process(self.lanes[lane], next(self._numbers)))

    def begin(self, peer: int, with_old_keys: bool) -> None:
        self.before[peer] = self.now[peer]
        self.now[peer] = self._begun(peer, self.now[peer] if with_old_keys else None)

    def next_epoch(self, peer: int) -> None:
        now = self.now[peer]
        self.now[peer] = now._replace(send=key(next(self._secrets)), send_epoch=now.send_epoch + 1)
        self.table.write(self.now[peer])

    def seal(self, lane: int, which: int, peer_handle: int, duty: int, kind: int, copies: int, die_at: str) -> None:
        if not self.processes[lane]:
            self.start(lane)
        process = self.processes[lane][which % len(self.processes[lane])]
        own = DUTIES[duty]
        if die_at == "before the count":
            self.processes[lane].remove(process)
            return
        self.recorder.die_at = die_at
        try:
            sealed(process.duties[duty], peer_handle, own[kind % len(own)], b"x", copies=copies)
        except Killed:
            self.processes[lane].remove(process)
        finally:
            self.recorder.die_at = ""

    def close(self) -> None:
        self.table.close()
        os.close(self._fd)


@contextmanager
def recording() -> Iterator[Recorder]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setattr(module.aead, "aead", recorder.aead)
        yield recorder


peers = st.integers(0, CAPACITY - 1)
SEALS = st.tuples(
    st.just("seal"),
    st.integers(0, LANES - 1),
    st.integers(0, 3),  # which process of the lane
    peers,
    st.booleans(),  # with the handle of the session before
    st.integers(0, 1),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["", "", "", "", *INSTANTS]),
)
STEPS = st.one_of(
    SEALS,
    SEALS,
    SEALS,
    st.tuples(st.just("start"), st.integers(0, LANES - 1)),
    st.tuples(st.just("begin"), peers, st.booleans()),
    st.tuples(st.just("epoch"), peers),
    st.tuples(st.just("erase"), peers),
)


def carry_out(ends: Ends, steps: list[tuple[Any, ...]]) -> None:
    for step, *given_ in steps:
        match step:
            case "seal":
                lane, which, peer, stale, duty, kind, copies, die_at = given_
                peer_handle = (ends.before if stale else ends.now)[peer].peer_handle
                ends.seal(lane, which, peer_handle, duty, kind, copies, die_at)
            case "start":
                ends.start(*given_)
            case "begin":
                ends.begin(*given_)
            case "epoch":
                ends.next_epoch(*given_)
            case "erase":
                ends.table.erase(ends.now[given_[0]].peer_handle)
                ends.begin(given_[0], False)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_no_nonce_repeats_under_a_key_whatever_dies_or_changes(steps: list[tuple[Any, ...]]) -> None:
    with recording() as recorder, closing(Ends(recorder)) as ends:
        carry_out(ends, steps)


@settings(max_examples=150)
@given(st.lists(st.one_of(SEALS, st.tuples(st.just("epoch"), peers)), max_size=80))
def test_where_numbers_begin_anew_a_sender_without_another_key_seals_no_more(steps: list[tuple[Any, ...]]) -> None:
    with recording() as recorder, pytest.MonkeyPatch.context() as small, closing(Ends(recorder)) as ends:
        small.setattr(module, "_NUMBERS", 8)
        small.setattr(module, "BLOCKS_MOST", 4)
        carry_out(ends, [(step[0], step[1], 0, *step[3:]) if step[0] == "seal" else step for step in steps])


def test_a_key_is_used_for_as_many_blocks_of_a_kind_as_it_may_be_and_the_next_key_for_as_many_again(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCKS_MOST", 4)
    sealing = lane.sealing(1)
    lane.keys.write(block_keys(handle(1), key(1)))
    runs = [sealed(sealing, handle(1), kinds.PLAIN, b"x") for _ in range(6)]
    assert [bool(each) for each in runs] == [True] * 4 + [False] * 2
    assert sealed(sealing, handle(1), kinds.LIGHT, b"x")
    assert lane.counts() == {"tun.dropped_no_key": 2}
    lane.keys.write(block_keys(handle(1), key(2), epoch=1))
    assert sum(bool(sealed(sealing, handle(1), kinds.PLAIN, b"x")) for _ in range(6)) == 4


class _Watched:
    """The words of a table whose supervisor acts whenever a worker looks at them."""

    def __init__(self, words: memoryview, look: Callable[[], None]) -> None:
        self._words, self._look = words, look

    def __getitem__(self, at: int) -> int:
        self._look()
        return int(self._words[at])

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at] = value

    def release(self) -> None:
        self._words.release()


class _SlowSupervisor:
    """It begins to write the keys of an epoch, or ends that, at some of the looks of the worker."""

    def __init__(self, table: KeyTable, at: set[int]) -> None:
        self._words, self._view, self._at = table.words, table._view, at
        self._looks = count()
        self._epoch = 0

    def look(self) -> None:
        if next(self._looks) in self._at:
            if not self._words[0] & 1:
                self._epoch += 1
                data = KeyTable.LAYOUT.pack(*block_keys(handle(1), key(1 + self._epoch), self._epoch))
                self._view[8 : 8 + len(data)] = data
            self._words[0] += 1


@settings(max_examples=200)
@given(st.sets(st.integers(0, 60), max_size=20))
def test_keys_that_are_written_while_they_are_read_make_no_nonce_repeat_and_cost_no_block(at: set[int]) -> None:
    with recording() as recorder, closing(Lane()) as lane:
        lane.keys.write(block_keys(handle(1), key(1)))
        sealing = lane.sealing(1)
        assert sealed(sealing, handle(1), kinds.PLAIN, b"x")
        lane.keys.words = cast("memoryview", _Watched(lane.keys.words, _SlowSupervisor(lane.keys, at).look))
        runs = [sealed(sealing, handle(1), kinds.PLAIN, b"x") for _ in range(15)]
        assert all(runs) and not lane.counts()
        epochs = [shard.SEALED_RUN.unpack_from(run)[9] for (run,) in runs]
        assert epochs == sorted(epochs)
        assert len(recorder.used) == 16
        for secret, nonce in recorder.used:  # the epoch in a header is that of its key
            number = int.from_bytes(nonce[4:8], "big")
            assert number == 0 or secret == key(1 + epochs[number - 1])


@pytest.fixture
def lane() -> Iterator[Lane]:
    with closing(Lane()) as made:
        yield made


def test_a_table_that_its_supervisor_never_finishes_to_write_leaves_the_keys_of_before(lane: Lane) -> None:
    lane.keys.write(block_keys(handle(1), key(1)))
    sealing = lane.sealing(1)
    assert sealed(sealing, handle(1), kinds.PLAIN, b"x")
    lane.keys.words[0] += 1
    assert sealed(sealing, handle(1), kinds.PLAIN, b"x")
    fresh = lane.sealing(2)
    assert not sealed(fresh, handle(1), kinds.PLAIN, b"x")
    assert lane.counts() == {"tun.dropped_no_key": 1}


def test_nothing_is_sealed_for_a_session_that_has_ended(lane: Lane) -> None:
    lane.keys.write(block_keys(handle(1), key(1)))
    sealing = lane.sealing(1)
    lane.keys.erase(handle(1))
    assert not sealed(sealing, handle(1), kinds.PLAIN, b"x")
    lane.keys.write(block_keys(handle(2), key(2)))
    assert not sealed(sealing, handle(1), kinds.PLAIN, b"x")
    assert sealed(sealing, handle(2), kinds.PLAIN, b"x")
    assert handle(2) & PEER_INDEX_MASK == handle(1) & PEER_INDEX_MASK


def test_a_duty_has_no_stream_of_the_other_duty(lane: Lane) -> None:
    lane.keys.write(block_keys(handle(1), key(1)))
    for own, others in (DUTIES, DUTIES[::-1]):
        for kind in others:
            with pytest.raises(KeyError):
                sealed(lane.sealing(1, own), handle(1), kind, b"x")
    assert not {*DUTIES[0]} & {*DUTIES[1]}
