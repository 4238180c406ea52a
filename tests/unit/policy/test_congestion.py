"""Losses in, a verdict on the path out: when BBR is called for, and when what the host has comes back."""

from __future__ import annotations

import pytest

from pipeline.policy.congestion import (
    CALM_LEAST_NS,
    CALM_MOST_NS,
    CALM_SEGMENTS,
    HURT_UPDATES,
    WINDOW,
    LossCounts,
    PathLoss,
    algorithm,
)

TICK = 100_000_000
SECOND = 1_000_000_000
MS = 1_000_000
COUNT_END = 1 << 32

SLOW, FAST = 430, 43_000  # segments in a tick: 50 Mbit/s, 5 Gbit/s


class Path:
    """The connections over one path, all of which move alike."""

    def __init__(self, rtt_ns: int = 40 * MS, connections: int = 1) -> None:
        self.loss = PathLoss()
        self.counts = [LossCounts(serial, 0, 0, rtt_ns) for serial in range(connections)]
        self.now = 5 * SECOND

    def tick(self, times: int = 1, *, resent: int = 0, sent: int = SLOW) -> bool:
        for _ in range(times):
            self.now += TICK
            self.counts = [each._replace(resent=each.resent + resent, sent=each.sent + sent) for each in self.counts]
            self.loss.update([each._replace(sent=each.sent % COUNT_END) for each in self.counts], self.now)
        return self.loss.lossy

    def ticks_until(self, lossy: bool, **counts: int) -> int:
        """How many ticks it takes."""
        for passed in range(1, 2 * CALM_MOST_NS // TICK):
            if self.tick(**counts) is lossy:
                return passed
        raise AssertionError(f"it never became {'lossy' if lossy else 'calm'}")


@pytest.mark.parametrize(
    ("host", "calm", "lossy"),
    [("cubic", "cubic", "bbr"), ("reno", "reno", "bbr"), ("bbr", "cubic", "bbr"), ("bbr2", "cubic", "bbr2")],
)
def test_the_host_chooses_the_algorithm_of_a_calm_path_but_for_pacing(host: str, calm: str, lossy: str) -> None:
    assert [algorithm(host, lossy=False), algorithm(host, lossy=True)] == [calm, lossy]


def test_a_path_is_calm_again_although_a_count_of_segments_begins_anew() -> None:
    path = Path()
    path.counts = [each._replace(sent=COUNT_END - 10 * SLOW) for each in path.counts]
    path.tick()
    assert path.ticks_until(True, resent=SLOW // 50) == HURT_UPDATES
    assert not path.tick(CALM_LEAST_NS // TICK + WINDOW)
    assert path.counts[0].sent > COUNT_END


def test_a_path_that_loses_two_percent_is_lossy_within_a_moment() -> None:
    path = Path()
    assert not path.tick(50, sent=SLOW)
    assert path.ticks_until(True, resent=SLOW // 50) == HURT_UPDATES


def test_light_flows_alone_show_that_a_path_loses() -> None:
    """Fifty packets a second, of which one is lost."""
    path = Path()
    for _ in range(WINDOW // 10):
        path.tick(9, sent=5)
        path.tick(sent=5, resent=1)
    assert path.loss.lossy


def test_losses_of_one_moment_call_for_nothing() -> None:
    """The end of a slow start; a way that has changed."""
    path = Path()
    for _ in range(3):
        assert not path.tick(HURT_UPDATES - 1, resent=SLOW // 2)
        assert not path.tick(WINDOW)


def test_what_turns_out_to_have_arrived_is_no_loss() -> None:
    """Tail loss probes of a connection whose other end answers late."""
    path = Path()
    for _ in range(100):
        assert not path.tick(sent=1, resent=1)
        assert not path.tick(sent=1, resent=-1)


@pytest.mark.parametrize(
    ("rtt_ns", "share", "lossy"),
    [
        (100_000, 0.01, False),  # even so a control that takes each loss for a full queue carries 1.4 Gbit/s
        (300_000, 0.001, False),
        (300_000, 0.01, True),
        (2 * MS, 0.001, True),
        (20 * MS, 0.0001, True),
        (0, 0.5, False),  # nothing has been answered yet
    ],
)
def test_losses_count_where_they_hold_a_control_that_fears_them_below_what_is_fast(
    rtt_ns: int, share: float, lossy: bool
) -> None:
    path = Path(rtt_ns)
    path.tick()
    assert path.tick(WINDOW, sent=FAST, resent=round(share * FAST)) is lossy


def test_connections_that_end_and_begin_are_no_losses() -> None:
    path = Path()
    path.tick(5, resent=SLOW // 50)
    lost = PathLoss()
    for serial in range(WINDOW):
        lost.update([LossCounts(serial, 50, 100, 40 * MS)], path.now + serial * TICK)
    assert not lost.lossy


def test_a_path_is_fast_that_has_carried_more_than_a_gigabit_a_second() -> None:
    path = Path(connections=2)
    assert not path.loss.is_fast
    path.tick(10)
    assert not path.loss.is_fast
    path.tick(WINDOW, sent=FAST // 8)
    assert path.loss.is_fast
    path.tick(WINDOW, sent=SLOW)
    assert not path.loss.is_fast


# -- back


def lossy_path(rtt_ns: int = 40 * MS) -> Path:
    path = Path(rtt_ns)
    path.tick()
    path.ticks_until(True, resent=SLOW // 50)
    return path


def test_the_hosts_control_comes_back_once_the_path_has_been_clean_for_long() -> None:
    path = lossy_path()
    assert path.tick(CALM_LEAST_NS // TICK)
    assert path.ticks_until(False) <= 2


def test_a_path_that_goes_on_losing_keeps_bbr() -> None:
    path = lossy_path()
    assert path.tick(10 * CALM_LEAST_NS // TICK, resent=SLOW // 50)


def test_a_path_on_which_little_is_sent_is_not_known_to_be_clean() -> None:
    path = lossy_path()
    assert path.tick(10 * CALM_LEAST_NS // TICK, sent=1)
    assert path.ticks_until(False, sent=SLOW) <= CALM_SEGMENTS // SLOW + 1


def test_each_relapse_doubles_the_calm_time_up_to_the_most() -> None:
    path, waits = lossy_path(), []
    for _ in range(10):
        waits.append(path.ticks_until(False))
        path.ticks_until(True, resent=SLOW // 50)
    assert [wait * TICK // CALM_LEAST_NS for wait in waits] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert CALM_MOST_NS == 64 * CALM_LEAST_NS


def test_a_path_that_was_clean_for_minutes_begins_anew() -> None:
    path = lossy_path()
    for _ in range(3):
        path.ticks_until(False)
        path.ticks_until(True, resent=SLOW // 50)
    path.ticks_until(False)
    assert not path.tick(150 * SECOND // TICK)
    path.ticks_until(True, resent=SLOW // 50)
    assert path.ticks_until(False) * TICK < 1.1 * CALM_LEAST_NS


def test_a_fast_path_gives_the_hosts_control_a_trial_although_it_loses() -> None:
    """BBR may be what loses, where queues are short; and nothing on such a path is as dear as its pacing."""
    path = lossy_path(5 * MS)
    assert path.ticks_until(False, sent=FAST, resent=5) * TICK < 1.1 * CALM_LEAST_NS
    assert not path.tick(300, sent=FAST)


def test_trials_of_a_fast_path_that_loses_become_rare() -> None:
    path = lossy_path(5 * MS)
    slow = 0
    for _ in range(3600 * SECOND // TICK):
        lossy = path.loss.lossy
        slow += not lossy
        path.tick(sent=FAST if lossy else SLOW, resent=(FAST if lossy else SLOW) // 50)
    assert slow / (3600 * SECOND // TICK) < 0.005
