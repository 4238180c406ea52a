"""Which kind of datagrams a client tries, and when."""

from __future__ import annotations

import pytest

from pipeline.policy.carrier import MISSED, NOT_YET, OFF_BY_PEER, PASSES, CarrierStatus, State
from pipeline.policy.carrier_order import HEAD_START_NS, KEEP_NS, KINDS, Kind, Turn

PROBING = CarrierStatus(State.PROBING, 0, NOT_YET)


def opened(at: int) -> CarrierStatus:
    return CarrierStatus(State.OPEN, at, PASSES)


def dark(at: int) -> CarrierStatus:
    return CarrierStatus(State.DARK, at, MISSED)


def test_udp_comes_before_fake_tcp() -> None:
    assert KINDS["auto"] == (Kind.UDP, Kind.FAKE_TCP)
    assert [KINDS[each] for each in ("udp", "faketcp", "tcp")] == [(Kind.UDP,), (Kind.FAKE_TCP,), ()]


def test_the_first_kind_begins_at_once() -> None:
    assert Turn().follow([], 0)
    assert Turn().follow([CarrierStatus(State.OFF, 0, OFF_BY_PEER)], 0), "what the other end lacks is no kind"


def test_a_later_one_waits_while_probes_may_be_answered_yet() -> None:
    turn = Turn()
    assert not turn.follow([PROBING], HEAD_START_NS - 1)
    assert turn.follow([PROBING], HEAD_START_NS)


def test_it_begins_at_once_when_the_first_goes_dark() -> None:
    turn = Turn()
    assert not turn.follow([opened(0)], 10 * HEAD_START_NS)
    assert turn.follow([dark(10 * HEAD_START_NS)], 10 * HEAD_START_NS)


def test_it_stays_for_a_while_when_the_first_is_open_again() -> None:
    turn = Turn(is_on=True)
    assert turn.follow([opened(7)], 7 + KEEP_NS - 1)
    assert not turn.follow([opened(7)], 7 + KEEP_NS)
    assert not turn.follow([opened(7)], 8 + KEEP_NS)


@pytest.mark.parametrize("before", [PROBING, opened(0)])
def test_one_that_a_predecessor_has_used_goes_on(before: CarrierStatus) -> None:
    assert Turn(is_on=True).follow([before], 1)
