"""When a client opens another fake flow."""

from __future__ import annotations

import itertools

from pipeline.policy.flow_renewal import FIRST_WAIT_NS, LASTING_NS, MOST_WAIT_NS, SILENCE_NS, FlowRenewal

SECOND = 1_000_000_000
START = 5 * SECOND


def test_the_first_flow_is_opened_at_once_and_a_dead_server_is_asked_less_and_less_often() -> None:
    renewal = FlowRenewal()
    attempts = [now for now in range(START, START + 400 * SECOND, SECOND) if renewal.due(now, 0, 0, False)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert attempts[0] == START
    assert gaps[:3] == [FIRST_WAIT_NS, 2 * FIRST_WAIT_NS, 4 * FIRST_WAIT_NS]
    assert gaps[-1] == MOST_WAIT_NS


def test_a_good_flow_stays() -> None:
    renewal = FlowRenewal()
    assert renewal.due(START, 0, 0, False)
    later = START + 100 * SECOND
    assert not renewal.due(later, START, 0, False)
    assert not renewal.due(later, START, later - SILENCE_NS, False)


def test_a_flow_that_was_reset_or_has_fallen_silent_is_replaced_at_once() -> None:
    for asked_ns, is_over in ((0, True), (START + 97 * SECOND, False)):
        renewal = FlowRenewal()
        assert renewal.due(START, 0, 0, False)
        assert renewal.due(START + 100 * SECOND, START, asked_ns, is_over)


def test_resets_without_end_cost_a_handshake_a_minute() -> None:
    """A forged one does no more than that, nor a box that resets every flow at once."""
    renewal = FlowRenewal()
    times = range(START, START + 600 * SECOND, SECOND)
    assert sum(renewal.due(now, now - 1, 0, True) for now in times) <= 16


def test_a_flow_that_has_lasted_is_followed_by_another_one_at_once() -> None:
    renewal = FlowRenewal()
    for now in range(START, START + 400 * SECOND, SECOND):
        renewal.due(now, 0, 0, False)
    opened = START + 400 * SECOND
    assert not renewal.due(opened + LASTING_NS + 1, opened, 0, False)
    lost = opened + 2 * LASTING_NS
    assert renewal.due(lost, opened, 0, True)
    assert renewal.due(lost + FIRST_WAIT_NS, opened, 0, True)
