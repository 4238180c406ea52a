"""A rate that peers share: no more than it for all together, equal parts for those that want more, nothing lost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.shared_rate import FOLLOW_NS, LIGHT_DEBT, QUANTUM, OtherLane, SharedRate
from pipeline.policy.token_bucket import BURST_LEAST, BURST_NS, SECOND

RATE = 5_000_000
STEP_NS = 1_000_000
AMOUNT = 131_072
BEGIN_NS = 1_000 * SECOND


def burst(rate: int) -> int:
    return max(BURST_LEAST, rate * BURST_NS // SECOND)


class Peer:
    """`want`: bytes a second, or infinite. It passes at most `amount` at once, and all that it has if that is less."""

    def __init__(self, want: float = math.inf, amount: int = AMOUNT) -> None:
        self.want = want
        self.amount = amount
        self.passed = 0
        self.held_ns = 0  # the longest time that something has waited
        self._due = 0.0
        self._since = 0

    def come(self, now: int) -> None:
        self._due += self.want * STEP_NS / SECOND if self.want < math.inf else 0
        self._since = self._since or now

    def size(self) -> int:
        return self.amount if self.want == math.inf else min(self.amount, int(self._due))

    def passes(self, size: int, now: int) -> None:
        self.passed += size
        self._due -= size
        self.held_ns = max(self.held_ns, now - self._since)
        self._since = 0


class Lane:
    """One worker, as the duties of the tcp worker use the rate: passes over its peers, again and again."""

    def __init__(self, peers: dict[int, Peer], rate: int = RATE) -> None:
        self.peers = peers
        self.others: list[Lane] = []
        self.waiting = 0
        self.shared = SharedRate()
        self.rate = rate
        self._next_tick = 0

    @property
    def passed(self) -> int:
        return sum(peer.passed for peer in self.peers.values())

    def exchange(self, waiting: int) -> list[OtherLane]:
        self.waiting = waiting
        return [OtherLane(other.waiting, other.passed) for other in self.others]

    def go_on(self, now: int) -> None:
        if now >= self._next_tick:
            self._next_tick = now + 100 * STEP_NS
            self.shared.update(self.rate, now)
        for peer in self.peers.values():
            peer.come(now)
        while self._pass(now):
            pass

    def _pass(self, now: int) -> bool:
        """One look at each peer: whether there is more to do now."""
        waiting, has_passed = [], False
        for number, peer in self.peers.items():
            size = peer.size()
            if not size:
                continue
            if self.shared.may_pass(number, now):
                self.shared.spend(number, size, now)
                peer.passes(size, now)
                has_passed = True
            else:
                waiting.append(number)
        if waiting:
            self.shared.note_waiting(waiting, now)
            if not has_passed:
                self.shared.begin_round(waiting, now)
                return any(self.shared.may_pass(number, now) for number in waiting)
        return has_passed


class Hub:
    """Lanes with peers, stepped by the millisecond."""

    def __init__(self, *lanes: list[Peer], rate: int = RATE) -> None:
        self.lanes = [
            Lane({100 * lane + place: peer for place, peer in enumerate(peers)}, rate)
            for lane, peers in enumerate(lanes)
        ]
        for lane in self.lanes if len(lanes) > 1 else ():
            lane.others = [other for other in self.lanes if other is not lane]
            lane.shared = SharedRate(lane.exchange)
        self.now = BEGIN_NS

    @property
    def passed(self) -> int:
        return sum(lane.passed for lane in self.lanes)

    def go_on(self, seconds: float) -> list[float]:
        """The rate of each peer in the meantime."""
        peers = [peer for lane in self.lanes for peer in lane.peers.values()]
        before = [peer.passed for peer in peers]
        for _ in range(round(seconds * SECOND / STEP_NS)):
            for lane in self.lanes:
                lane.go_on(self.now)
            self.now += STEP_NS
        return [(peer.passed - old) / seconds for peer, old in zip(peers, before, strict=True)]


LANES = pytest.mark.parametrize("lanes", [1, 2], ids=["one lane", "two lanes"])


def spread(peers: list[Peer], lanes: int) -> Hub:
    return Hub(*(peers[lane::lanes] for lane in range(lanes)))


@LANES
@pytest.mark.parametrize("count", [1, 2, 8, 50])
def test_peers_that_begin_at_once_pass_the_rate_together_and_two_bursts_for_each_lane(count: int, lanes: int) -> None:
    hub = spread([Peer() for _ in range(count)], lanes)
    for tenth in range(1, 11):
        hub.go_on(0.1)
        assert hub.passed <= RATE * tenth / 10 + lanes * (2 * burst(RATE) + AMOUNT)
    assert hub.passed >= 0.98 * RATE


@LANES
@pytest.mark.parametrize("count", [2, 7, 50])
def test_those_that_want_all_get_equal_parts(count: int, lanes: int) -> None:
    hub = spread([Peer() for _ in range(count)], lanes)
    hub.go_on(1)
    assert hub.go_on(10) == pytest.approx([RATE / count] * count, rel=0.1 * lanes)


@LANES
def test_the_size_of_what_a_peer_passes_at_once_wins_it_nothing(lanes: int) -> None:
    hub = spread([Peer(amount=size) for size in (1400, 1400, 60_000, 60_000, 390_000, 390_000)], lanes)
    hub.go_on(1)
    assert hub.go_on(20) == pytest.approx([RATE / 6] * 6, rel=0.12)


@LANES
def test_a_peer_that_wants_less_has_it_at_once_and_the_others_share_the_rest(lanes: int) -> None:
    call = Peer(12_500, amount=200)
    hub = spread([call, Peer(RATE / 10), Peer(), Peer(), Peer(), Peer()], lanes)
    hub.go_on(1)
    call.held_ns = 0
    rates = hub.go_on(10)
    assert rates[: 2 if lanes == 1 else 1] == pytest.approx([12_500, RATE / 10][: 2 if lanes == 1 else 1], rel=0.02)
    assert call.held_ns <= 20_000_000 * lanes
    assert sum(rates) == pytest.approx(RATE, rel=0.05)
    assert max(rates) < 1.2 * RATE * 0.89 / 4


@LANES
def test_one_alone_has_everything_and_gives_half_of_it_to_a_second_one_within_a_fifth_of_a_second(lanes: int) -> None:
    first, second = Peer(), Peer(0)
    hub = spread([first, second], lanes)
    assert hub.go_on(2)[0] >= 0.98 * RATE
    second.want = math.inf
    hub.go_on(0.2)
    assert hub.go_on(2) == pytest.approx([RATE / 2] * 2, rel=0.15)
    second.want = 0
    second._due = 0
    hub.go_on(0.2)
    rates = hub.go_on(2)
    assert rates[0] >= 0.95 * RATE and not rates[1]


def test_many_idle_peers_take_nothing_from_one_that_works() -> None:
    hub = Hub([Peer(), *(Peer(0) for _ in range(200))])
    assert hub.go_on(2)[0] >= 0.98 * RATE


def test_peers_that_pass_bursts_with_pauses_between_keep_equal_parts() -> None:
    """At so low a rate each passes a burst now and then."""
    hub = Hub([Peer(amount=BURST_LEAST) for _ in range(8)], rate=8 * BURST_LEAST)
    hub.go_on(2)
    before = hub.passed
    rates = hub.go_on(20)
    assert rates == pytest.approx([BURST_LEAST] * 8, rel=0.2)
    assert hub.passed - before <= 20 * 8 * BURST_LEAST + 2 * BURST_LEAST


def test_light_items_pass_ahead_and_a_flood_of_them_ends_with_the_part_of_its_peer() -> None:
    shared = SharedRate()
    shared.update(RATE, BEGIN_NS)
    shared.spend(0, BURST_LEAST + AMOUNT, BEGIN_NS)
    assert not shared.may_pass(0, BEGIN_NS) and shared.may_pass(0, BEGIN_NS, light=True)
    passed, now = 0, BEGIN_NS
    for now in range(BEGIN_NS, BEGIN_NS + SECOND, STEP_NS):
        if shared.may_pass(0, now, light=True):
            shared.spend(0, 20_000, now)
            passed += 20_000
        if shared.may_pass(1, now):
            shared.spend(1, 20_000, now)
        else:
            shared.begin_round([1], now)
    assert 0 < passed <= LIGHT_DEBT + RATE


def test_a_peer_is_asked_again_no_later_than_it_may_pass() -> None:
    shared = SharedRate()
    shared.update(RATE, BEGIN_NS)
    shared.spend(0, 3 * BURST_LEAST, BEGIN_NS)
    shared.spend(1, QUANTUM // 2, BEGIN_NS)
    lent, paid = shared.passes_at(1), shared.passes_at(0)
    assert BEGIN_NS < lent < paid
    assert not shared.may_pass(1, lent - STEP_NS) and shared.may_pass(1, lent)
    assert not shared.may_pass(0, paid)
    shared.begin_round([0], paid - STEP_NS)
    assert not shared.may_pass(0, paid)
    shared.begin_round([0], paid)
    assert shared.may_pass(0, paid)


def test_no_round_begins_while_the_bucket_is_in_debt_or_somebody_has_credit() -> None:
    shared = SharedRate()
    shared.update(RATE, BEGIN_NS)
    shared.spend(0, QUANTUM, BEGIN_NS)
    shared.begin_round([0, 1], BEGIN_NS)
    assert not shared.may_pass(0, BEGIN_NS) and shared.may_pass(1, BEGIN_NS)
    shared.spend(1, 2 * BURST_LEAST, BEGIN_NS)
    shared.begin_round([0, 1], BEGIN_NS)
    assert not shared.may_pass(0, BEGIN_NS)
    later = shared.passes_at(0)
    shared.begin_round([0, 1], later)
    assert shared.may_pass(0, later) and not shared.may_pass(1, later)


def test_a_change_of_the_rate_brings_no_new_burst() -> None:
    hub = Hub([Peer(), Peer()])
    hub.go_on(1)
    lane, before = hub.lanes[0], hub.passed
    for turn in range(20):
        lane.shared.update(RATE + turn % 2 * RATE // 10, hub.now)
        hub.go_on(0.05)
    assert hub.passed - before <= 1.12 * RATE + 2 * AMOUNT


def test_a_lane_where_nobody_waits_pays_for_the_others_until_nothing_is_left() -> None:
    hub = Hub([Peer()], [Peer(0)])
    hub.go_on(1)
    late, now = hub.lanes[1].shared, hub.now + FOLLOW_NS
    assert late.may_pass(100, now)  # it wants less than its part, so it borrows
    late.spend(100, AMOUNT, now)
    assert not late.may_pass(100, now) and late.may_pass(101, now)
    late.spend(101, BURST_LEAST, now)
    assert not late.may_pass(102, now)


def test_a_lane_where_peers_wait_pays_for_what_passes_in_another_where_nobody_does() -> None:
    hub = Hub([Peer(), Peer()], [Peer(RATE / 5, amount=2000)])
    hub.go_on(1)
    *waiting, other = hub.go_on(5)
    assert other == pytest.approx(RATE / 5, rel=0.05)
    assert sum(waiting) + other == pytest.approx(RATE, rel=0.05)


@settings(max_examples=50, deadline=None)
@given(
    peers=st.lists(
        st.tuples(st.one_of(st.just(math.inf), st.floats(0, 2 * RATE)), st.integers(500, 300_000)),
        min_size=1,
        max_size=8,
    ),
    lanes=st.integers(1, 2),
)
def test_whatever_peers_want_they_pass_no_more_than_the_rate_and_nothing_of_it_is_lost(
    peers: list[tuple[float, int]], lanes: int
) -> None:
    hub = spread([Peer(want, amount) for want, amount in peers], lanes)
    hub.go_on(1)
    total = sum(hub.go_on(2))
    wanted = sum(want for want, _ in peers)
    assert total <= RATE + lanes * (2 * burst(RATE) + 300_000) / 2
    assert total >= min(0.95 * RATE, 0.95 * wanted) - lanes * 300_000 / 2
