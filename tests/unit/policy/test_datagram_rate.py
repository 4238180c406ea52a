"""The rate of datagrams on simulated links: full links, short queues, fair shares, and paths that change.

Rates are Mbit/s, times ms, queues multiples of rate times round trip. Each simulation is the same at every run.
"""

from __future__ import annotations

import random

import pytest

from pipeline.policy.datagram_rate import CRUISE, LEAST_WINDOW, STARTUP, RateControl
from tests.harness.simulated_flows import PACKET, Bbr, Cubic, Datagrams
from tests.harness.simulated_link import (
    MS,
    SECOND,
    Clock,
    Link,
    Losses,
    bursts_of_losses,
    no_losses,
    random_losses,
)

MBIT = 125_000


def link(rate: float = 50, round_trip: float = 40, queue: float = 4, losses: Losses = no_losses, **kind: float) -> Link:
    flight = rate * MBIT * round_trip / 1000
    return Link(Clock(), rate * MBIT, int(round_trip * MS), max(queue * flight, 20 * PACKET), losses, **kind)


def delivered(flow: Datagrams | Cubic | Bbr, seconds: float) -> float:
    """The share of the link that a flow gets from now on."""
    before = flow.delivered
    flow.clock.run_until(flow.clock.now + int(seconds * SECOND))
    return (flow.delivered - before) / seconds / flow.link.rate


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


LOSSES = {
    "none": (no_losses, 0.0),
    "2 % at random": (random_losses(0.02), 0.02),
    "10 % at random": (random_losses(0.10), 0.10),
    "2 % in bursts of four": (bursts_of_losses(0.02, 4), 0.02),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_link_is_full_whatever_it_loses_and_its_queue_is_short(case: str) -> None:
    losses, share = LOSSES[case]
    flow = Datagrams(link(queue=8, losses=losses))
    delivered(flow, 2)
    flow.queues.clear()
    assert delivered(flow, 10) > 0.9 * (1 - share)
    assert percentile(flow.queues, 0.95) < 10 * MS


@pytest.mark.parametrize(
    ("rate", "round_trip", "warm_up", "seconds"), [(1, 300, 3, 12), (1000, 10, 0.5, 0.5), (20, 20, 1, 5)]
)
def test_slow_and_fast_links_are_full(rate: float, round_trip: float, warm_up: float, seconds: float) -> None:
    flow = Datagrams(link(rate, round_trip))
    delivered(flow, warm_up)
    assert delivered(flow, seconds) > 0.9


def test_the_first_ten_ms_of_loopback_are_enough_for_5_gbit_a_second() -> None:
    flow = Datagrams(link(5000, 0.1, queue=100))
    delivered(flow, 0.011)
    assert flow.control.pacing_rate > 5000 * MBIT
    assert delivered(flow, 0.02) > 0.9


@pytest.mark.parametrize(("knows", "first", "then"), [(1.0, 0.8, 0.9), (0.5, 0.4, 0.9), (4.0, 0.8, 0.9)])
def test_a_successor_goes_on_at_the_rate_of_its_predecessor_and_finds_another_one(
    knows: float, first: float, then: float
) -> None:
    """`knows`: the share of the link that it takes for its rate. A beginner has a quarter of it in that time."""
    flow, beginner = Datagrams(link(queue=8)), Datagrams(link(queue=8))
    flow.control.resume(knows * flow.link.rate, flow.link.round_trip, flow.clock.now)
    assert delivered(flow, 0.2) > first * 0.75 > delivered(beginner, 0.2)
    delivered(flow, 3)
    flow.queues.clear()
    assert delivered(flow, 4) > then
    assert percentile(flow.queues, 0.9) < 20 * MS


@pytest.mark.parametrize("queue", [1, 4])
@pytest.mark.parametrize("first", ["ours", "the other", "both"])
@pytest.mark.parametrize("kind", [Cubic, Bbr])
def test_a_flow_of_another_kind_gets_its_share_and_leaves_ours(
    kind: type[Cubic] | type[Bbr], first: str, queue: float
) -> None:
    shared = link(queue=queue)
    starts = {"ours": (0, 5 * SECOND), "the other": (5 * SECOND, 0), "both": (0, 0)}[first]
    ours, other = Datagrams(shared, starts[0]), kind(shared, starts[1])
    ours.clock.run_until(max(starts))
    before = other.delivered
    assert 0.3 < delivered(ours, 30) < 0.7
    assert (other.delivered - before) / 30 / shared.rate > 0.25


@pytest.mark.parametrize("queue", [0.5, 1, 4])
def test_two_flows_have_equal_shares_though_one_is_older(queue: float) -> None:
    shared = link(queue=queue)
    older, younger = Datagrams(shared), Datagrams(shared, 5 * SECOND)
    delivered(older, 5)
    one = delivered(older, 20)
    other = younger.delivered / 20 / shared.rate
    assert (one + other) ** 2 / 2 / (one**2 + other**2) >= 0.9
    assert one + other > 0.9


def test_a_path_that_becomes_four_times_slower_has_a_short_queue_again_in_two_seconds() -> None:
    flow = Datagrams(link())
    delivered(flow, 5)
    flow.link.change_rate(flow.link.rate / 4)
    delivered(flow, 2)
    flow.queues.clear()
    assert delivered(flow, 4) > 0.9
    assert percentile(flow.queues, 0.9) < 40 * MS


def test_a_path_that_becomes_four_times_faster_is_full_in_a_second() -> None:
    flow = Datagrams(link(12.5))
    delivered(flow, 5)
    flow.link.change_rate(flow.link.rate * 4)
    delivered(flow, 1)
    assert delivered(flow, 0.5) > 0.95


@pytest.mark.parametrize("queue", [1, 40])
def test_a_pause_of_a_second_is_over_when_the_link_goes_on(queue: float) -> None:
    flow = Datagrams(link(queue=queue))
    delivered(flow, 5)
    flow.link.pause(SECOND)
    delivered(flow, 1.5)
    assert delivered(flow, 2) > 0.9


@pytest.mark.parametrize(("before", "after"), [(20, 80), (80, 20)])
def test_another_round_trip_is_known_within_two_seconds(before: int, after: int) -> None:
    flow = Datagrams(link(round_trip=before))
    delivered(flow, 5)
    flow.link.round_trip = after * MS
    delivered(flow, 2)
    assert delivered(flow, 2) > 0.9
    assert 0.9 * after * MS < flow.control.round_trip < after * MS + 12 * MS


def test_a_little_longer_round_trip_is_known_when_the_shorter_one_is_ten_seconds_old() -> None:
    flow = Datagrams(link())
    delivered(flow, 5)
    flow.link.round_trip = 55 * MS
    delivered(flow, 11)
    assert flow.control.round_trip >= 55 * MS
    assert delivered(flow, 2) > 0.9


def test_two_flows_in_a_queue_of_one_flight_lose_little() -> None:
    shared = link(queue=1)
    flows = [Datagrams(shared), Datagrams(shared, SECOND)]
    shared.clock.run_until(3 * SECOND)
    sent, lost = (sum(flow.sequence for flow in flows), sum(flow.lost for flow in flows))
    shared.clock.run_until(13 * SECOND)
    assert sum(flow.lost for flow in flows) - lost < 0.02 * (sum(flow.sequence for flow in flows) - sent)


def test_losses_of_the_startup_bound_nothing_afterwards() -> None:
    flow = Datagrams(link(queue=0.5))
    delivered(flow, 1)
    assert flow.lost > 100
    assert flow.control.window > 2 * 0.040 * flow.link.rate


@pytest.mark.parametrize("supply", [1, 0.05])
def test_a_flow_that_sends_little_for_long_keeps_its_rate(supply: float) -> None:
    flow = Datagrams(link())
    delivered(flow, 5)
    flow.supply, flow.supplied_at = supply * MBIT, flow.clock.now
    delivered(flow, 20)
    flow.supply = 0
    assert delivered(flow, 0.5) > 0.85


def test_a_flow_that_has_always_sent_little_is_still_starting() -> None:
    flow = Datagrams(link(), supply=MBIT)
    delivered(flow, 10)
    assert flow.control.phase == STARTUP
    flow.supply = 0
    delivered(flow, 0.5)
    assert delivered(flow, 1) > 0.9


def test_a_flow_inside_that_fills_the_path_does_not_fill_its_queue() -> None:
    path = link(queue=8)
    flow = Datagrams(path, inside=2 * path.rate * path.round_trip / SECOND)
    delivered(flow, 3)
    flow.queues.clear()
    assert delivered(flow, 10) > 0.9
    assert percentile(flow.queues, 0.9) < 20 * MS, "the flow inside alone would make 40 ms"


@pytest.mark.parametrize("late", [20, 40])
def test_ends_that_get_the_processor_late_have_a_rate_nevertheless(late: int) -> None:
    flow = Datagrams(link(rate=500, round_trip=1.4))
    delivered(flow, 1)
    flow.report_every = late * MS
    delivered(flow, 3)
    assert delivered(flow, 5) > 0.8


@pytest.mark.parametrize(("lost", "late"), [(0.3, 0), (0.7, 0), (0, 100)])
def test_lost_and_late_reports_cost_no_rate(lost: float, late: int) -> None:
    flow = Datagrams(link())
    flow.report_losses, flow.report_delay = lost, late * MS
    delivered(flow, 3)
    assert delivered(flow, 5) > 0.9


@pytest.mark.parametrize("bucket", [0.01, 0.04, 0.25])
def test_a_policer_takes_less_than_a_fifth(bucket: float) -> None:
    flow = Datagrams(link(20, policed=20 * MBIT * bucket))
    delivered(flow, 5)
    sent = flow.sequence
    got = delivered(flow, 10)
    assert got > 0.9
    assert 1 - got * 10 * flow.link.rate / PACKET / (flow.sequence - sent) < 0.2


def test_marks_of_ecn_shorten_the_queue() -> None:
    flow = Datagrams(link(marked_above=50 * MBIT * 0.005))
    delivered(flow, 2)
    flow.queues.clear()
    assert delivered(flow, 10) > 0.9
    assert percentile(flow.queues, 0.95) < 5 * MS


def test_a_short_queue_loses_little() -> None:
    flow = Datagrams(link(queue=0.25))
    delivered(flow, 3)
    sent, lost = flow.sequence, flow.lost
    assert delivered(flow, 10) > 0.9
    assert (flow.lost - lost) / (flow.sequence - sent) < 0.02


def test_silence_gives_up_what_is_under_way_and_tries_with_a_few_segments() -> None:
    control = RateControl(0)
    control.on_sent(0, control.window, 9, False)
    control.on_tick(50 * MS)
    assert control.under_way == control.window
    control.on_tick(101 * MS)
    assert (control.under_way, control.window) == (0, LEAST_WINDOW)
    control.on_report(150 * MS, 14_600, 9, 0, 0, 0)
    assert control.window > LEAST_WINDOW


def test_a_pause_of_this_end_is_no_silence() -> None:
    control = RateControl(MS)
    control.on_tick(MS)
    control.on_sent(2 * MS, control.window, 9, False)
    control.on_tick(500 * MS)
    assert control.under_way == control.window
    for now in range(510, 710, 10):
        control.on_tick(now * MS)
    assert control.under_way == 0


def test_reports_of_nonsense_leave_a_rate_and_a_window() -> None:
    draw = random.Random(1)
    control = RateControl(0)
    now = sent = sequence = 0
    for _ in range(20_000):
        now += draw.randrange(2 * MS)
        if draw.random() < 0.5:
            count = draw.randrange(1, 48)
            sent, sequence = sent + count * 1400, sequence + count
            control.on_sent(now, sent, sequence, draw.random() < 0.1)
        else:
            highest = draw.randrange(sequence + 100)
            control.on_report(
                now,
                draw.randrange(1 << 40),
                highest,
                draw.randrange(1 << 40),
                draw.randrange(9),
                draw.randrange(1 << 32),
            )
        control.on_tick(now)
        assert control.pacing_rate >= LEAST_WINDOW
        assert control.window >= LEAST_WINDOW
        assert 0 <= control.under_way <= sent


def test_a_flow_alone_cruises_most_of_the_time() -> None:
    flow = Datagrams(link())
    delivered(flow, 2)
    cruising = 0
    for _ in range(200):
        delivered(flow, 0.02)
        cruising += flow.control.phase == CRUISE
    assert 100 < cruising < 180
