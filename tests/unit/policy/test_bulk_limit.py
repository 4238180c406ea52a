"""The limit of the class bulk: a rate for each peer, packets that wait in order, and no more of them than a moment."""

from __future__ import annotations

import pytest

from pipeline.policy import bulk_limit
from pipeline.policy.bulk_limit import FOLLOW_NS, WAIT_BYTES_LEAST, BulkLimit
from pipeline.policy.token_bucket import BURST_LEAST

SECOND = 1_000_000_000
RATE = 1_000_000
SIZE = 10_000
STEP_NS = 1_000_000


class Source:
    """Peers that want to send more than the rate, and what becomes of each packet."""

    def __init__(self, rate: int = RATE) -> None:
        self.elsewhere: dict[int, int] = {}
        self.rates: dict[int, int] = {}
        self.limit = BulkLimit(
            lambda peer_handle: self.rates.get(peer_handle, rate),
            lambda peer_handle: self.elsewhere.get(peer_handle, 0),
        )
        self.now = SECOND
        self.sent: dict[int, list[int]] = {}
        self.dropped = 0
        self._numbers: dict[int, int] = {}

    def offer(self, peer: int) -> None:
        number = self._numbers[peer] = self._numbers.get(peer, 0) + 1
        if self.limit.may_pass(peer, self.now):
            self.limit.spend(peer, SIZE, self.now)
            self.sent.setdefault(peer, []).append(number)
        elif not self.limit.hold(peer, number.to_bytes(4, "big") + bytes(SIZE - 4)):
            self.dropped += 1

    def go_on(self, seconds: float, *peers: int, each: int = 1) -> None:
        for _ in range(int(seconds * SECOND / STEP_NS)):
            self.now += STEP_NS
            for peer in peers:
                for _ in range(each):
                    self.offer(peer)
            while found := self.limit.first(self.now):
                peer, packet = found
                self.sent.setdefault(peer, []).append(int.from_bytes(packet[:4], "big"))
                self.limit.take(self.now)


def test_each_peer_has_the_rate_and_its_packets_keep_their_order() -> None:
    source = Source()
    source.go_on(4, 1, 2)
    for peer in (1, 2):
        sent = source.sent[peer]
        assert sent == sorted(set(sent))
        assert 4 * RATE <= len(sent) * SIZE <= 4 * RATE + BURST_LEAST + SIZE
    assert source.dropped


def test_what_keeps_to_the_rate_neither_waits_nor_is_dropped() -> None:
    source = Source(int(1.2 * SIZE * SECOND / STEP_NS))
    source.go_on(1, 1)
    assert not source.dropped and not source.limit.due_ns and len(source.sent[1]) == SECOND // STEP_NS


def test_a_packet_does_not_pass_one_that_waits_though_there_is_credit() -> None:
    source = Source()
    source.go_on(1, 1)
    source.now += SECOND
    assert not source.limit.may_pass(1, source.now)
    assert source.limit.may_pass(2, source.now)


def test_no_more_waits_than_a_moment_takes_and_due_tells_when_it_goes() -> None:
    source = Source()
    source.go_on(1, 1)
    held = source.limit.due_ns
    assert source.now < held <= source.now + SIZE * SECOND // RATE
    before = len(source.sent[1])
    source.go_on(1)
    assert 0 < len(source.sent[1]) - before <= WAIT_BYTES_LEAST // SIZE + 1
    assert source.limit.due_ns == 0 and source.limit.first(source.now) is None


def test_each_peer_has_its_own_rate_and_with_none_there_is_no_limit() -> None:
    source = Source()
    source.rates = {2: 2 * RATE, 3: 0}
    source.go_on(4, 1, 2, 3)
    for peer, rate in ((1, RATE), (2, 2 * RATE)):
        assert 4 * rate <= len(source.sent[peer]) * SIZE <= 4 * rate + BURST_LEAST + SIZE
    assert len(source.sent[3]) == 4 * SECOND // STEP_NS


@pytest.mark.parametrize("rate", [0, 10 * RATE])
def test_packets_that_wait_go_on_by_a_new_rate(rate: int) -> None:
    source = Source()
    source.rates = {1: SIZE // 10}
    source.go_on(0.1, 1)
    assert source.limit.due_ns > source.now + 5 * SECOND
    source.rates = {1: rate}
    before = len(source.sent[1])
    source.go_on(0.1, 1)
    assert len(source.sent[1]) - before > WAIT_BYTES_LEAST // SIZE - 2
    assert source.sent[1] == sorted(source.sent[1])


def test_bytes_of_other_lanes_count() -> None:
    source = Source()
    source.go_on(1, 1)
    before = len(source.sent[1])
    for _ in range(100):
        source.elsewhere[1] = source.elsewhere.get(1, 0) + RATE * FOLLOW_NS // SECOND // 2
        source.go_on(FOLLOW_NS / SECOND, 1)
    assert (len(source.sent[1]) - before) * SIZE == pytest.approx(2.5 * RATE, rel=0.15)


def test_peers_are_forgotten_but_for_packets_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_limit, "PEERS_MOST", 3)
    source = Source()
    source.go_on(1, 1)
    waiting = len(source.sent[1])
    for peer in range(2, 20):
        source.offer(peer)
    source.go_on(1)
    assert len(source.sent[1]) > waiting
