"""The epochs of a pair of ends, simulated: every block that arrives is opened, whatever is lost, late or slow.

Both ends are real but for time and the network: supervisors with their key tables, sealing and opening tun workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fec import shard
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.policy import epochs
from pipeline.sealing import kinds
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import NO_KEY, Offer, SealedSession, answer_key_share, answer_offer
from pipeline.shm.peer_table import PeerTable
from tests.harness.sealed_lane import Lane, handle, opened, sealed

SECOND = 1_000_000_000
STEP = SECOND // 4
PEER = handle(1)
LATE_STEPS = 24  # 6 s: less than an epoch lasts at least, with what a supervisor needs
IDLE_STEPS = 3 * 3600 * 4


def sessions() -> tuple[SealedSession, SealedSession]:
    offer = Offer(AES_256_GCM)
    server = answer_offer(offer.key_share, AES_256_GCM, b"k", 1, 1)
    return offer.take_answer(answer_key_share(server, b""), b"k", 1, 1), server


class End:
    """One end: a lane with its tun worker, and the supervisor's part."""

    def __init__(self, session: SealedSession, now: int) -> None:
        self.lane = Lane()
        self.session = session
        self.sent_bytes = 0
        peers = SimpleNamespace(transit_numbers=self.lane.transit, sent_bytes=lambda peer: self.sent_bytes)
        self.sessions = SealedSessions(self.lane.keys, cast("PeerTable", peers))
        self.sessions.begin(PEER, session, now)
        self._processes = 0
        self._opened_of: list[int] = []  # processes of the other end, of which a block was opened
        self.restart()

    def restart(self) -> None:
        """Another process of the tun worker."""
        self._processes += 1
        self.sealing, self.opening = self.lane.sealing(self._processes), self.lane.opening()

    def send(self) -> bytes:
        (run,) = sealed(self.sealing, PEER, kinds.PLAIN, self.sealing.acknowledged(PEER).to_bytes(2, "big"))
        self.sent_bytes += 100
        return run

    def receive(self, run: bytes) -> None:
        process = shard.SEALED_RUN.unpack_from(run)[2] >> 8
        known = self._opened_of[-2:]
        is_lost = known and process < known[-1] and process not in known  # only the last two processes have windows
        assert (opened(self.opening, run, PEER) is not None) != bool(is_lost), self.lane.counts()
        if not is_lost and process not in known:
            self._opened_of.append(process)


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are as short as they may be."""
    monkeypatch.setattr(epochs, "EPOCH_BYTES", 1)


class Pair:
    def __init__(self, stack: ExitStack) -> None:
        self.now = 100 * SECOND
        self.ends = [End(each, self.now) for each in sessions()]
        for end in self.ends:
            stack.enter_context(closing(end.lane))
        self._on_the_way: dict[int, list[tuple[int, bytes]]] = {}
        self._step = 0

    def send(self, end: int, late: int) -> None:
        self._on_the_way.setdefault(self._step + late, []).append((1 - end, self.ends[end].send()))

    def go_on(self, ticks: tuple[bool, bool] = (True, True), steps: int = 1) -> None:
        for _ in range(steps):
            for receiver, run in self._on_the_way.pop(self._step, []):
                self.ends[receiver].receive(run)
            self._step += 1
            self.now += STEP
            for end, is_awake in zip(self.ends, ticks, strict=True):
                if is_awake:
                    end.sessions.tick(self.now)

    def converse(self, seconds: int) -> None:
        for _ in range(4 * seconds):
            for end in (0, 1):
                self.send(end, 0)
            self.go_on()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


# a stretch of a second: blocks of each end, how late each is (None: lost), a supervisor that stands still
lateness = st.one_of(st.none(), st.integers(0, 2), st.integers(0, LATE_STEPS))
stretches = st.lists(
    st.tuples(
        st.lists(lateness, max_size=3),
        st.lists(lateness, max_size=3),
        st.sampled_from([(True, True), (True, True), (True, False), (False, True)]),
        st.sampled_from([None, None, None, None, None, 0, 1]),  # whose tun worker dies
        st.sampled_from([1, 4, 4, 4, 60]),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(stretches)
def test_every_block_that_arrives_is_opened_whatever_is_lost_or_late_or_dies(
    plan: list[tuple[list[int | None], list[int | None], tuple[bool, bool], int | None, int]],
) -> None:
    with ExitStack() as stack:
        pair = Pair(stack)
        asleep = [0, 0]
        for *blocks, ticks, dies, steps in plan:
            for end in (0, 1):
                for late in blocks[end]:
                    if late is not None:
                        pair.send(end, late)
                    else:
                        pair.ends[end].send()
            if dies is not None:
                pair.ends[dies].restart()
            awake = tuple(awake or slept >= 8 for awake, slept in zip(ticks, asleep, strict=True))  # 2 s at most
            asleep = [0 if is_awake else slept + 4 for is_awake, slept in zip(awake, asleep, strict=True)]
            pair.go_on(cast("tuple[bool, bool]", awake), steps if all(awake) else 4)
        pair.go_on(steps=LATE_STEPS + 1)


def test_epochs_go_on_while_both_ends_talk(pair: Pair) -> None:
    pair.converse(200)
    for end in pair.ends:
        assert 12 <= end.session.send_epoch <= 20
        assert end.lane.counts() == {}


def test_nothing_is_lost_when_traffic_begins_again_after_hours(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "EPOCH_BYTES", 1 << 36)
    pair.ends[0].session.send_next()
    pair.ends[0].sessions._write(PEER, pair.ends[0].session)
    for begin in range(16):  # the supervisors look at their clocks at other times
        pair.go_on((begin % 2 == 0, begin % 3 == 0), 1)
        pair.go_on(steps=IDLE_STEPS // 2 + begin % 4)
        pair.converse(30)
    assert pair.ends[0].session.send_epoch >= 3


def test_an_epoch_stays_while_the_other_end_has_opened_none_of_its_blocks(pair: Pair) -> None:
    for _ in range(400):
        pair.ends[0].send()  # lost
        pair.send(1, 0)
        pair.go_on()
    assert pair.ends[0].session.send_epoch == 1  # of which the other end has had the key from the beginning
    pair.converse(60)
    assert pair.ends[0].session.send_epoch > 3


def test_blocks_of_the_epoch_before_are_opened_for_a_minute(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.converse(3)
    before = [pair.ends[0].send() for _ in range(3)]
    pair.converse(9)  # the next epoch begins
    assert pair.ends[0].session.send_epoch == pair.ends[1].session.open_epoch == 1
    monkeypatch.setattr(epochs, "EPOCH_BYTES", 1 << 36)
    pair.ends[1].receive(before[0])
    pair.converse(50)
    pair.ends[1].receive(before[1])
    pair.converse(15)
    assert opened(pair.ends[1].opening, before[2], PEER) is None
    assert pair.ends[1].lane.counts() == {"tun.dropped_epoch_unknown": 1}
    assert pair.ends[1].session.keys().open_before == NO_KEY


def test_epochs_go_on_beyond_what_a_header_can_hold_and_for_a_worker_of_any_age(pair: Pair) -> None:
    for end in pair.ends:  # both are 2^16 - 2 epochs old
        for _ in range((1 << 16) - 2):
            end.session.send_next()
            end.session.open_next()
        end.sessions.begin(PEER, end.session, pair.now)
    for turn in range(6):
        pair.converse(20)
        pair.ends[turn % 2].restart()
    assert all(end.session.send_epoch > 1 << 16 for end in pair.ends)


def test_a_session_that_ends_has_no_keys_and_the_next_one_of_the_peer_is_not_touched_by_it(pair: Pair) -> None:
    end = pair.ends[0]
    other = sessions()[0]
    end.sessions.begin(handle(2), other, pair.now)
    end.sessions.end(PEER)
    assert end.lane.keys.read(PEER) is None
    assert end.lane.keys.read(handle(2)).send == other.keys().send
    end.sessions.end(handle(2))
    assert end.lane.keys.read(handle(2)) is None
    pair.go_on(steps=20)
    assert end.lane.keys.read(handle(2)) is None


def test_a_session_that_goes_on_in_other_memory_forgets_the_epoch_before_in_a_minute() -> None:
    client, _ = sessions()
    client.open_next()
    with closing(Lane()) as lane:
        peers = SimpleNamespace(transit_numbers=lane.transit, sent_bytes=lambda peer: 0)
        kept = SealedSessions(lane.keys, cast("PeerTable", peers))
        kept.begin(PEER, client, SECOND)
        assert not kept.tick(2 * SECOND) and client.has_before
        assert kept.tick(SECOND + epochs.KEEP_BEFORE_NS) and not client.has_before
        keys = lane.keys.read(PEER)
        assert keys is not None and keys.open_before == NO_KEY
        assert not kept.tick(3 * epochs.KEEP_BEFORE_NS)
