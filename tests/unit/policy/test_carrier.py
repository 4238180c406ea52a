"""The choice between datagrams and TCP for one peer, on paths in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.carrier import (
    ANSWERS,
    BUSY_NS,
    HOLD_MOST_NS,
    HOLD_NS,
    MISSED,
    MISSES,
    MS,
    NOT_YET,
    OFF_BY_PEER,
    OFF_BY_SETTING,
    PASSES,
    PROBE_MOST_NS,
    PROBE_NS,
    SILENT_NS,
    STEADY_NS,
    Carrier,
    State,
    Way,
)

TICK = 5 * MS
SECOND = 1000 * MS
BEGIN = 1000 * SECOND


class Path:
    """A peer behind a path that passes datagrams while `passes` says so, with traffic or without."""

    def __init__(self, passes: Callable[[int], bool], rtt: int = 20 * MS, loss: float = 0.0, busy: bool = True) -> None:
        self.passes, self.rtt, self.loss, self.busy = passes, rtt, loss, busy
        self.carrier = Carrier("auto", True, BEGIN)
        self.chance = random.Random(1)
        self.now = BEGIN
        self.answers: list[int] = []
        self.reports: list[int] = []
        self.oldest: int | None = None
        self.probes: list[int] = []
        self.changes: list[tuple[int, State]] = []

    def pass_ns(self, time: int) -> State:
        for _ in range(time // TICK):
            self.now += TICK
            self.step()
        return self.carrier.status.state

    def step(self) -> None:
        carrier, before = self.carrier, self.carrier.status.state
        while self.answers and self.answers[0] <= self.now:
            self.answers.pop(0)
            carrier.answered(self.now)
        while self.reports and self.reports[0] <= self.now:
            self.oldest = self.reports.pop(0) - self.rtt + TICK
            carrier.reported(self.now)
        passes = self.passes(self.now - BEGIN)
        if carrier.due(self.now, self.rtt):
            self.probes.append(self.now)
            if passes and self.chance.random() >= self.loss:
                self.answers.append(self.now + self.rtt)
        if self.busy and carrier.way is Way.DATAGRAMS:
            self.oldest = self.now if self.oldest is None else self.oldest
            if passes and self.chance.random() >= self.loss:
                self.reports.append(self.now + self.rtt)
        else:
            self.oldest = None
        carrier.update(self.oldest, self.now, self.rtt)
        if carrier.status.state is not before:
            self.changes.append((self.now - BEGIN, carrier.status.state))


def always(_: int) -> bool:
    return True


def never(_: int) -> bool:
    return False


def test_blocks_go_by_tcp_until_the_first_probe_is_answered() -> None:
    path = Path(always)
    assert (path.carrier.way, path.carrier.status.reason) == (Way.TCP, NOT_YET)
    path.pass_ns(path.rtt + 2 * TICK)
    assert path.carrier.way is Way.DATAGRAMS
    assert path.carrier.status == (State.OPEN, path.changes[0][0] + BEGIN, PASSES)


@pytest.mark.parametrize("rtt_ms", [1, 20, 300, 700])
def test_a_path_that_breaks_under_load_is_dark_after_three_round_trips_and_a_tenth_of_a_second(rtt_ms: int) -> None:
    rtt = rtt_ms * MS
    path = Path(lambda at: at < 90 * SECOND, rtt)
    path.pass_ns(100 * SECOND)
    (opened, _), (dark, _) = path.changes
    limit = 3 * rtt + SILENT_NS
    assert opened <= 2 * SECOND
    assert limit <= dark - 90 * SECOND <= limit + rtt + 4 * TICK  # the last report is on its way for a round trip
    assert path.carrier.way is Way.TCP
    assert f"{limit // MS} ms" in path.carrier.status.reason


@pytest.mark.parametrize("pause_ms", [200, 1000, 30_000])
def test_a_pause_of_this_end_is_no_silence_of_the_path(pause_ms: int) -> None:
    path = Path(lambda since: True)
    assert path.pass_ns(5 * SECOND) is State.OPEN
    path.now += pause_ms * MS
    path.reports = [at + pause_ms * MS + 3 * TICK for at in path.reports]  # the other end was late as well
    assert path.pass_ns(5 * SECOND) is State.OPEN
    assert [state for _, state in path.changes] == [State.OPEN]


def test_a_path_that_breaks_in_a_pause_is_dark_soon_after_it() -> None:
    path = Path(lambda since: since < 5 * SECOND)
    assert path.pass_ns(5 * SECOND) is State.OPEN
    path.now += 10 * SECOND
    path.reports.clear()
    path.answers.clear()
    assert path.pass_ns(SILENT_NS + 3 * path.rtt + 10 * MS) is State.DARK


def test_a_path_that_was_open_for_long_is_open_again_after_two_answers() -> None:
    path = Path(lambda at: not 90 * SECOND <= at < 95 * SECOND)
    path.pass_ns(110 * SECOND)
    assert [state for _, state in path.changes] == [State.OPEN, State.DARK, State.OPEN]
    again = path.changes[2][0]
    after = [at for at in path.probes if at - BEGIN >= 95 * SECOND]
    assert again == after[ANSWERS - 1] + path.rtt - BEGIN
    assert again <= 95 * SECOND + 3 * SECOND


def test_one_answer_is_not_enough_and_a_missing_one_begins_the_row_anew() -> None:
    carrier = Carrier("auto", True, BEGIN)
    now = BEGIN
    carrier.due(now)
    carrier.answered(now)
    now += STEADY_NS
    carrier.update(now - SECOND, now)
    assert carrier.status.state is State.DARK
    for answers in (True, False, True):
        now += PROBE_NS
        assert carrier.due(now)
        if answers:
            carrier.answered(now)
            carrier.answered(now)  # a copy of it
        assert carrier.status.state is State.DARK
    now += PROBE_NS
    assert carrier.due(now)
    carrier.answered(now)
    assert carrier.way is Way.DATAGRAMS


def test_a_path_that_passes_probes_but_no_segments_is_used_less_and_less_often() -> None:
    """Such as one that throttles datagrams under load."""
    path = Path(always)
    opened: list[int] = []
    while path.now - BEGIN < 3600 * SECOND:
        path.pass_ns(TICK)
        path.reports.clear()
        if path.changes and path.changes[-1][1] is State.OPEN and path.changes[-1][0] not in opened:
            opened.append(path.changes[-1][0])
    pauses = [later - earlier for earlier, later in pairwise(opened)]
    assert pauses[0] >= HOLD_NS
    assert pauses[-1] >= HOLD_MOST_NS
    assert len(opened) <= 20
    assert all(later >= earlier for earlier, later in pairwise(pauses))


def test_after_a_minute_that_was_steady_a_path_is_trusted_as_before() -> None:
    def passes(at: int) -> bool:
        return not (10 * SECOND <= at < 12 * SECOND or 110 * SECOND <= at < 111 * SECOND)

    path = Path(passes)
    path.pass_ns(130 * SECOND)
    times = [at for at, _ in path.changes]
    assert [state for _, state in path.changes] == [State.OPEN, State.DARK, State.OPEN, State.DARK, State.OPEN]
    assert times[2] - times[1] >= HOLD_NS
    assert times[4] - times[3] <= 2 * SECOND


@settings(max_examples=20)
@given(st.integers(0, 1 << 30), st.sampled_from([1, 20, 150]))
def test_a_tenth_of_losses_each_way_darkens_no_path(seed: int, rtt_ms: int) -> None:
    path = Path(always, rtt_ms * MS, loss=0.19)
    path.chance = random.Random(seed)
    path.pass_ns(30 * SECOND)
    assert [state for _, state in path.changes] == [State.OPEN]


# -- an idle path


def test_an_idle_path_gets_no_probe() -> None:
    path = Path(always, busy=False)
    path.pass_ns(SECOND)
    assert len(path.probes) == 1
    path.pass_ns(3600 * SECOND)
    assert len(path.probes) == 1 and path.carrier.status.state is State.OPEN


def test_a_path_that_has_become_idle_gets_no_more_probes() -> None:
    path = Path(always)
    path.pass_ns(10 * SECOND)
    path.busy = False
    path.pass_ns(2 * SECOND)
    before = len(path.probes)
    path.pass_ns(600 * SECOND)
    assert len(path.probes) == before


def test_a_doubt_on_an_idle_path_is_settled_by_probes() -> None:
    good, broken = Path(always, busy=False), Path(lambda at: at < SECOND, busy=False)
    for path in (good, broken):
        path.pass_ns(10 * SECOND)
        path.carrier.doubt()
        path.pass_ns((MISSES + 1) * PROBE_NS)
    assert good.carrier.status.state is State.OPEN and len(good.probes) == 2
    assert broken.carrier.status[::2] == (State.DARK, MISSED)


def test_endless_doubts_change_nothing_about_a_good_path_and_cost_four_probes_a_second() -> None:
    path = Path(always, busy=False)
    for _ in range(10 * SECOND // TICK):
        path.pass_ns(TICK)
        path.carrier.doubt()
    assert [state for _, state in path.changes] == [State.OPEN]
    assert len(path.probes) <= 10 * SECOND // PROBE_NS + 1


# -- probes


def test_an_open_path_under_load_gets_a_probe_a_second() -> None:
    path = Path(always)
    path.pass_ns(100 * SECOND)
    assert 95 <= len(path.probes) <= 100 * SECOND // BUSY_NS + 1


def test_a_network_without_udp_costs_less_and_less_probes() -> None:
    path = Path(never)
    path.pass_ns(60 * SECOND)
    assert 20 <= len(path.probes) <= 60
    path.pass_ns(3600 * SECOND)
    before = len(path.probes)
    path.pass_ns(3600 * SECOND)
    assert len(path.probes) - before <= 3600 * SECOND // PROBE_MOST_NS + 1
    assert (path.carrier.status.state, path.carrier.way) == (State.PROBING, Way.TCP)


def test_an_answer_after_a_long_round_trip_opens_the_path_although_it_is_not_known_yet() -> None:
    carrier = Carrier("auto", True, BEGIN)
    rtt, now, sent = 700 * MS, BEGIN, []
    while carrier.status.state is State.PROBING and now < BEGIN + 10 * SECOND:
        now += TICK
        if carrier.due(now):
            sent.append(now)
        if sent and sent[0] + rtt <= now:
            sent.pop(0)
            carrier.answered(now)
    assert now <= BEGIN + rtt + 2 * TICK


# -- the setting


@pytest.mark.parametrize(
    ("setting", "is_offered", "reason"),
    [("tcp", True, OFF_BY_SETTING), ("tcp", False, OFF_BY_SETTING), ("auto", False, OFF_BY_PEER)],
)
def test_without_datagrams_at_either_end_nothing_is_probed_and_blocks_go_by_tcp(
    setting: str, is_offered: bool, reason: str
) -> None:
    carrier = Carrier(setting, is_offered, BEGIN)
    for step in range(1000):
        assert not carrier.due(BEGIN + step * SECOND)
        carrier.answered(BEGIN + step * SECOND)
        carrier.update(BEGIN, BEGIN + step * SECOND)
    assert carrier.status == (State.OFF, BEGIN, reason)
    assert carrier.way is Way.TCP


def test_with_udp_alone_no_block_ever_goes_by_tcp() -> None:
    path = Path(lambda at: not 2 * SECOND <= at < 10 * SECOND)
    path.carrier = Carrier("udp", True, BEGIN)
    ways = []
    for _ in range(20 * SECOND // TICK):
        path.pass_ns(TICK)
        ways.append(path.carrier.way)
    assert ways[0] is Way.NOWHERE and ways[-1] is Way.DATAGRAMS
    assert set(ways) == {Way.NOWHERE, Way.DATAGRAMS}
    assert Carrier("udp", False, BEGIN).way is Way.NOWHERE
