"""Adaptive parity follows what the kernel does about loss: up at once, down in time."""

from __future__ import annotations

from pipeline.policy.adaptive_parity import CALM_NS, LOSS_WINDOW, AdaptiveParity, LossSample

TICK = 100_000_000
MOST = 3


class Path:
    """One connection that sends so many segments a tick, some of them again."""

    def __init__(self, serial: int = 1) -> None:
        self.serial = serial
        self.sent = self.resent = 0
        self.adaptive = AdaptiveParity(MOST)
        self.now = 0

    def tick(
        self,
        times: int = 1,
        sent: int = 400,
        resent: int = 0,
        timeouts: int = 0,
        ended: int = 0,
        unread: bool = False,
    ) -> int:
        for _ in range(times):
            self.now += TICK
            self.sent += sent
            self.resent += resent
            sample = LossSample(self.serial, timeouts, self.resent, self.sent, unread)
            self.adaptive.update([sample], ended, self.now)
        return self.adaptive.parity


def test_a_clean_path_calls_for_no_parity() -> None:
    assert Path().tick(100) == 0


def test_two_percent_of_segments_sent_again_call_for_all_within_a_second() -> None:
    path = Path()
    path.tick(20)
    assert path.tick(10, resent=8) == MOST


def test_half_a_percent_calls_for_some() -> None:
    path = Path()
    path.tick(20)
    assert 0 < path.tick(10, resent=2) < MOST


def test_what_a_congestion_control_loses_in_probing_calls_for_none() -> None:
    path = Path()
    path.tick(10)
    assert path.tick(1, resent=10) == 0  # 10 of 4000 in that second
    assert path.tick(30) == 0


def test_one_loss_of_a_light_flow_calls_for_all() -> None:
    path = Path()
    path.tick(20, sent=5)
    assert path.tick(1, sent=5, resent=1) == MOST


def test_a_timeout_in_progress_calls_for_all_at_once() -> None:
    path = Path()
    path.tick(5)
    assert path.tick(1, sent=0, timeouts=1) == MOST


def test_a_connection_that_ended_calls_for_all_at_once() -> None:
    path = Path()
    path.tick(5)
    assert path.tick(1, ended=1) == MOST


def test_parity_goes_down_step_by_step_after_a_quiet_time() -> None:
    path = Path()
    path.tick(1, ended=1)
    quiet = CALM_NS // TICK
    assert path.tick(quiet) == MOST
    assert path.tick(2) == MOST - 1
    assert path.tick(2 * quiet + 2) == 0


def test_trouble_that_goes_on_keeps_it_up() -> None:
    path = Path()
    path.tick(LOSS_WINDOW, resent=8)
    for _ in range(30):
        assert path.tick(LOSS_WINDOW, resent=8) == MOST


def test_a_connection_that_is_new_brings_no_history() -> None:
    path = Path()
    path.tick(10)
    path.serial, path.resent = 2, 1000
    assert path.tick(10) == 0


def test_a_connection_that_the_other_end_does_not_read_calls_for_none() -> None:
    path = Path()
    path.tick(20)
    assert path.tick(10, sent=3, resent=1, timeouts=1, unread=True) == 0
    assert path.tick(10) == 0  # what was sent again meanwhile is not found out later
