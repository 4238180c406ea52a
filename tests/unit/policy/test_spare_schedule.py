"""When a spare is started: in calm moments, one at a time, and less and less often if spares die."""

from __future__ import annotations

from pipeline.policy.spare_schedule import BACKOFF_MAX, BACKOFF_MIN, CALM_NS, SpareSchedule

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
KINDS = ("tcp", "fec", "tun")


class Clock:
    """A schedule that is asked every tenth of a second, with the spares that it has started."""

    def __init__(self) -> None:
        self.schedule = SpareSchedule(KINDS)
        self.now = NOW
        self.present: list[str] = []

    def run(self, seconds: float, calm: bool = True, importing: bool = False) -> list[str]:
        """The kinds whose spares were started in that time."""
        started = []
        for _ in range(round(10 * seconds)):
            self.now += SECOND // 10
            kind = self.schedule.next_due(self.present, importing, calm, self.now)
            if kind is not None:
                self.present.append(kind)
                started.append(kind)
        return started


def test_spares_of_all_kinds_are_started_once_the_instance_has_been_calm_for_a_while() -> None:
    clock = Clock()
    assert clock.run(60, calm=False) == []
    assert clock.run(CALM_NS / SECOND - 0.1) == []
    assert clock.run(1) == list(KINDS)
    assert clock.run(60) == []


def test_a_death_puts_off_every_spare() -> None:
    clock = Clock()
    clock.run(10)
    clock.present.remove("fec")  # it has become a worker
    assert clock.run(0.1, calm=False) == []
    assert clock.run(CALM_NS / SECOND - 0.1) == []
    assert clock.run(1) == ["fec"]


def test_workers_that_die_again_and_again_get_no_spare() -> None:
    clock = Clock()
    assert [clock.run(0.1, calm=False) + clock.run(1.5) for _ in range(20)] == [[]] * 20


def test_one_spare_is_started_at_a_time() -> None:
    clock = Clock()
    assert clock.run(30, importing=True) == []
    assert clock.run(0.1) == ["tcp"]


def test_a_kind_whose_spares_die_waits_longer_and_longer_and_the_others_do_not() -> None:
    clock = Clock()
    clock.run(10)
    starts = []
    for _ in range(8):
        clock.present.remove("fec")
        clock.schedule.failed("fec", clock.now)
        began = clock.now
        while not clock.run(0.1):
            pass
        starts.append((clock.now - began) / SECOND)
    assert BACKOFF_MIN <= starts[0] < BACKOFF_MIN + 0.2
    assert BACKOFF_MAX / 2 - 0.2 < starts[-1] < BACKOFF_MAX + 0.2
    clock.present.remove("tun")
    assert clock.run(0.1) == ["tun"]
    clock.schedule.succeeded("fec")
    clock.present.remove("fec")
    clock.schedule.failed("fec", clock.now)
    assert clock.run(BACKOFF_MIN + 0.1) == ["fec"]
