"""The bulk pacer: a bottleneck modelled update by update, and what its queue comes to."""

from __future__ import annotations

import random

import pytest

from pipeline.policy.pacing import FALLEN, FREE_NS, LONG, QUEUE_AIM_NS, BulkPacer, PathSample

UPDATE_NS = 100_000_000
MS = 1_000_000
CAPACITY = 6_250_000.0  # 50 Mbit/s


class Bottleneck:
    """Flows that always have something to send, at `greed` times the capacity when nothing limits them."""

    def __init__(
        self,
        flows: int = 5,
        greed: float = 1.3,
        capacity: float = CAPACITY,
        others: int = 0,
        queue_most: int = 100 * MS,
    ) -> None:
        self.pacer = BulkPacer()
        self.flows = flows
        self.greed = greed
        self.capacity = capacity
        self.others_ns = others  # delay that others cause whatever we do
        self.queue_most = queue_most
        self.queue_ns = self.limit = 0.0
        self.delivered = 0.0
        self.now = 1
        self.rtt = 40 * MS

    def run(self, updates: int) -> list[float]:
        """The queue in ns after each update."""
        queues = []
        for _ in range(updates):
            self.now += UPDATE_NS
            offered = min(self.greed * self.capacity, self.limit or self.greed * self.capacity)
            self.queue_ns += UPDATE_NS * (offered / self.capacity - 1)
            self.queue_ns = min(max(0.0, self.queue_ns), self.queue_most)
            self.delivered += min(offered, self.capacity) * UPDATE_NS / 1e9
            rtt = int(self.rtt + self.queue_ns + self.others_ns)
            self.limit = self.flows * self.pacer.update(
                [PathSample(serial, rtt, self.rtt, int(self.delivered / self.flows)) for serial in range(self.flows)],
                self.now,
            )
            queues.append(self.queue_ns)
        return queues

    def share(self, updates: int) -> float:
        """Of the capacity, what is used over so many updates."""
        before = self.delivered
        self.run(updates)
        return (self.delivered - before) / (self.capacity * updates * UPDATE_NS / 1e9)


@pytest.mark.parametrize("greed", [1.02, 1.3, 3.0])
def test_the_queue_becomes_short_and_the_path_stays_used(greed: float) -> None:
    path = Bottleneck(greed=greed)
    path.run(30)
    queues = sorted(path.run(300))
    assert queues[150] <= 2 * QUEUE_AIM_NS and queues[-3] <= 4 * QUEUE_AIM_NS
    assert path.share(300) > 0.97


def test_a_path_without_a_queue_is_never_limited() -> None:
    path = Bottleneck(greed=0.5)
    path.run(100)
    assert path.pacer.rate == 0


def test_microseconds_of_a_fast_path_are_no_queue() -> None:
    path = Bottleneck(capacity=1e9, queue_most=MS)
    path.run(100)
    assert path.pacer.rate == 0


def test_the_limit_goes_when_the_path_is_wider_again() -> None:
    path = Bottleneck()
    path.run(50)
    path.capacity, path.greed = 4 * CAPACITY, 0.9
    path.run(100)
    assert path.pacer.rate == 0


def test_where_others_fill_the_queue_there_is_no_limit_for_a_while() -> None:
    path = Bottleneck(others=50 * MS)
    path.run(LONG + 3)
    assert path.pacer.rate == 0
    path.run(FREE_NS // UPDATE_NS - 2 * LONG)
    assert path.pacer.rate == 0
    assert path.share(3 * FREE_NS // UPDATE_NS) > 0.9


def test_idle_connections_tell_nothing_about_the_queue_and_get_no_share() -> None:
    pacer = BulkPacer()
    delivered = 0
    for number in range(1, 50):
        delivered += 625_000
        idle = [PathSample(serial, 40 * MS, 40 * MS, 1000) for serial in range(1, 5)]
        limit = pacer.update(
            [PathSample(0, 90 * MS if number > 40 else 40 * MS, 40 * MS, delivered), *idle], number * UPDATE_NS
        )
        if number == 41:
            assert limit == pytest.approx(6_250_000 * (1 - 45 / 250), rel=0.01)


def test_connections_that_come_and_go_do_not_upset_it() -> None:
    path = Bottleneck()
    for flows in (5, 4, 0, 5, 1, 8):
        path.flows = max(1, flows)
        if not flows:
            path.now += UPDATE_NS
            path.pacer.update([], path.now)
            continue
        path.run(40)
        assert 0 <= path.pacer.rate < 2 * CAPACITY


@pytest.mark.parametrize("late_ms", [8, 10, 12])
def test_a_path_that_is_late_now_and_then_does_not_slow_bulk_down_for_ever(late_ms: int) -> None:
    """No queue: whatever we send, its round trips take sometimes less than QUEUE_AIM more, and mostly more."""
    path, chance = Bottleneck(greed=0.5), random.Random(1)
    for _ in range(3000):
        path.others_ns = int(late_ms * MS * chance.uniform(0.4, 1.6))
        path.run(1)
        assert not path.limit or path.limit > 0.5 * CAPACITY / FALLEN / 2
    assert path.share(300) > 0.25


def test_flows_that_send_next_to_nothing_do_not_fill_the_queue() -> None:
    path = Bottleneck(greed=0.01, others=15 * MS)
    path.run(LONG)
    assert path.pacer.rate == 0


def test_answers_that_are_late_because_nobody_reads_do_not_begin_a_limit_nor_do_they_afterwards() -> None:
    pacer = BulkPacer()
    late = 30 * MS
    delivered = 0
    for update in range(1, 60):
        unread = update < 20
        if not unread:
            late = late * 3 // 4  # the smoothed round trip time forgets
        delivered += 30_000
        assert pacer.update([PathSample(1, late, MS // 100, delivered, unread)], update * UPDATE_NS) == 0
