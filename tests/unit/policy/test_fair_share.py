"""A rate that clients share: equal parts for those that want more, and no more than the rate for all together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.fair_share import LOOK_NS, SECOND, Counts, FairShare, fair_level
from pipeline.policy.token_bucket import BURST_LEAST

TOTAL = 10_000_000
LOOKS = 12


@given(
    total=st.floats(1, 1e9),
    wants=st.lists(st.one_of(st.floats(0, 1e9), st.just(math.inf)), min_size=1, max_size=20),
)
def test_all_is_given_away_and_nobody_gets_more_than_somebody_who_wants_more(total: float, wants: list[float]) -> None:
    level = fair_level(total, wants)
    got = [min(want, level) for want in wants]
    if level == math.inf:
        assert sum(wants) <= total * (1 + 1e-9)
    else:
        assert sum(got) == pytest.approx(total)


class Clients:
    """Clients that send what they want, as far as their parts let them."""

    def __init__(self, *wants: float, way: int = 1) -> None:
        self.share = FairShare(TOTAL)
        self.wants = dict(enumerate(wants))
        self.ways = dict.fromkeys(self.wants, way)
        self.counts = dict.fromkeys(self.wants, Counts(0, 0))
        self.now = 1_000 * LOOK_NS
        self.share.look(self.counts, self.now)
        self.rates: dict[int, float] = {}

    def go_on(self, looks: int = LOOKS) -> dict[int, float]:
        for _ in range(looks):
            for peer, want in self.wants.items():
                self.rates[peer] = min(want, self.share.part(peer))
                add = int(self.rates[peer] * LOOK_NS / 1e9)
                before = self.counts[peer]
                self.counts[peer] = before._replace(**{Counts._fields[self.ways[peer]]: before[self.ways[peer]] + add})
            self.now += LOOK_NS
            self.share.look(self.counts, self.now)
        return self.rates


@pytest.mark.parametrize("way", [0, 1], ids=["received", "sent"])
def test_those_who_want_all_get_equal_parts(way: int) -> None:
    rates = Clients(math.inf, math.inf, math.inf, math.inf, way=way).go_on()
    assert list(rates.values()) == pytest.approx([TOTAL / 4] * 4, rel=0.06)


def test_who_wants_little_has_it_and_the_others_share_the_rest() -> None:
    rates = Clients(1_000_000, math.inf, math.inf).go_on()
    assert rates[0] == 1_000_000
    assert rates[1] == pytest.approx(rates[2], rel=0.06)
    assert 0.9 * TOTAL <= sum(rates.values()) <= 1.05 * TOTAL


def test_one_alone_has_everything_and_gives_half_of_it_to_a_second_one() -> None:
    clients = Clients(math.inf, 0)
    assert clients.go_on()[0] >= 0.95 * TOTAL
    clients.wants[1] = math.inf
    rates = clients.go_on(3)
    assert list(rates.values()) == pytest.approx([TOTAL / 2] * 2, rel=0.06)
    clients.wants[0] = 0
    assert clients.go_on()[1] >= 0.95 * TOTAL


def test_each_way_is_shared_by_itself() -> None:
    clients = Clients(math.inf, math.inf)
    clients.ways[1] = 0
    assert all(rate >= 0.95 * TOTAL for rate in clients.go_on().values())


def test_a_newcomer_begins_with_an_equal_part_and_one_that_has_gone_leaves_its_part_to_the_others() -> None:
    clients = Clients(math.inf)
    clients.go_on()
    assert clients.share.part(7) == TOTAL // 2
    clients.wants[7], clients.ways[7], clients.counts[7] = math.inf, 1, Counts(0, 0)
    assert list(clients.go_on().values()) == pytest.approx([TOTAL / 2] * 2, rel=0.06)
    for each in (clients.wants, clients.counts, clients.rates):
        del each[0]
    assert clients.go_on()[7] >= 0.95 * TOTAL


def test_a_part_that_hardly_changes_is_not_told_again() -> None:
    clients = Clients(math.inf, math.inf)
    clients.go_on()
    before = clients.counts
    clients.now += LOOK_NS
    add = int(TOTAL / 2 * LOOK_NS / 1e9)
    counts = {peer: Counts(count.received, count.sent + add) for peer, count in before.items()}
    assert clients.share.look(counts, clients.now) == {}


def test_many_idle_clients_take_nothing_from_one_that_works() -> None:
    assert Clients(math.inf, *[0.0] * 200).go_on()[0] >= 0.95 * TOTAL


def test_clients_that_begin_at_once_pass_the_rate_and_not_each_all_of_it() -> None:
    clients = Clients(0.0, 0.0, 0.0, 0.0)
    clients.go_on(3)
    clients.wants = dict.fromkeys(clients.wants, math.inf)
    for _ in range(LOOKS):
        assert sum(clients.go_on(1).values()) <= 1.05 * TOTAL


def test_clients_that_pass_bursts_with_pauses_between_keep_equal_parts() -> None:
    share, now = FairShare(8 * BURST_LEAST), 1_000 * LOOK_NS
    counts = dict.fromkeys(range(8), Counts(0, 0))
    share.look(counts, now)
    every = SECOND // LOOK_NS  # a burst a second: what eight equal parts of the rate are
    for number in range(6 * every):
        now += LOOK_NS
        turn = [peer for peer in counts if (number + peer) % every == 0]
        counts |= {peer: Counts(0, counts[peer].sent + BURST_LEAST) for peer in turn}
        share.look(counts, now)
        if number > 2 * every:
            assert sum(share.part(peer) for peer in counts) <= 1.06 * 8 * BURST_LEAST
