"""A client goes on with a partner while the path is open, used, and not worse than the hub."""

from __future__ import annotations

import pytest

from pipeline.policy import partner_verdict as policy
from pipeline.policy.partner_verdict import (
    GIVE_UP_NS,
    HUB_GONE_NS,
    IDLE_NS,
    SECOND,
    TRIP_NS,
    LowestTrip,
    PartnerFacts,
    why_end,
)

NOW = 1000 * SECOND
GOOD = PartnerFacts(True, True, NOW, NOW, NOW, 20_000, 50_000, 10_000, 100)


def test_an_open_path_that_is_used_goes_on() -> None:
    assert why_end(GOOD, NOW) == ""
    assert why_end(GOOD._replace(state_since=0), NOW) == ""
    assert why_end(GOOD._replace(round_trip_us=0), NOW) == why_end(GOOD._replace(relayed_us=0), NOW) == ""


@pytest.mark.parametrize(("was_open", "why"), [(False, policy.NOT_THROUGH), (True, policy.NOT_AGAIN)])
def test_a_path_that_is_not_open_has_its_time(was_open: bool, why: str) -> None:
    shut = GOOD._replace(is_open=False, was_open=was_open, state_since=NOW - GIVE_UP_NS)
    assert why_end(shut, NOW) == "" and why_end(shut, NOW + 1) == why


def test_without_a_packet_or_without_the_hub_it_ends() -> None:
    assert why_end(GOOD._replace(used_since=NOW - IDLE_NS), NOW) == ""
    assert why_end(GOOD._replace(used_since=NOW - IDLE_NS - 1), NOW) == policy.IDLE
    assert why_end(GOOD._replace(hub_seen=NOW - HUB_GONE_NS), NOW) == ""
    assert why_end(GOOD._replace(hub_seen=NOW - HUB_GONE_NS - 1), NOW) == policy.HUB_GONE


def test_a_path_that_is_worse_than_the_hub_ends() -> None:
    assert why_end(GOOD._replace(round_trip_us=60_000), NOW) == ""
    assert "90 ms, that by the hub 50 ms" in why_end(GOOD._replace(round_trip_us=90_000), NOW)
    assert why_end(GOOD._replace(round_trip_us=3000, relayed_us=500), NOW) == ""
    assert why_end(GOOD._replace(lost_segments=2000), NOW) == ""
    assert "30 %" in why_end(GOOD._replace(lost_segments=3000), NOW)
    assert why_end(GOOD._replace(sent_segments=100, lost_segments=90), NOW) == ""


def test_the_lowest_round_trip_of_a_time_counts_and_each_time_begins_anew() -> None:
    trip = LowestTrip(0)
    assert [trip.seen(each, SECOND) for each in (90, 0, 40, 70)] == [0, 0, 0, 0]
    assert trip.seen(80, TRIP_NS) == 40
    assert trip.seen(80, TRIP_NS + 1) == 0
    assert trip.seen(0, 2 * TRIP_NS) == 80
    assert trip.seen(0, 3 * TRIP_NS) == 0
