"""A rolling restart: one worker after the other, each only when the one before it works again."""

from __future__ import annotations

from itertools import pairwise

from pipeline.policy.rolling_restart import SETTLE_NS, GiveUp, Prepare, Replace, RollingRestart

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
LIMIT_NS = 10 * SECOND
WORKERS = [("tcp-0", "tcp"), ("fec-0", "fec"), ("tun-0", "tun")]
TICK = SECOND // 10


class Instance:
    """An instance that obeys. `spares`: kinds that have one. `heals`: a replaced worker runs again."""

    def __init__(self) -> None:
        self.now = NOW
        self.rolling = RollingRestart(WORKERS, LIMIT_NS, NOW)
        self.spares: set[str] = set()
        self.is_running = True
        self.starts_spares = self.heals = True
        self.actions: list[Prepare | Replace | GiveUp] = []

    def tick(self) -> Prepare | Replace | GiveUp | None:
        self.now += TICK
        kind = self.rolling.left[0][1] if self.rolling.left else ""
        action = self.rolling.step(self.is_running, kind in self.spares, self.now)
        self.is_running = self.is_running or self.heals
        match action:
            case Prepare(kind) if self.starts_spares:
                self.spares.add(kind)
            case Replace(_):
                self.spares.remove(kind)
                self.is_running = False
        if action is not None:
            self.actions.append(action)
        return action

    def run(self, seconds: float) -> list[Prepare | Replace | GiveUp]:
        self.actions = []
        for _ in range(round(seconds * SECOND / TICK)):
            if isinstance(self.tick(), GiveUp):
                break
        return self.actions


def test_each_worker_is_replaced_once_in_order_and_each_has_its_new_process_first() -> None:
    instance = Instance()
    assert instance.run(30) == [step for name, kind in WORKERS for step in (Prepare(kind), Replace(name))]
    assert instance.rolling.left == []


def test_a_worker_is_replaced_when_the_one_before_it_has_worked_for_a_while() -> None:
    instance = Instance()
    replaced = []
    while instance.rolling.left:
        if isinstance(instance.tick(), Replace):
            replaced.append(instance.now)
    assert all(later - earlier >= SETTLE_NS for earlier, later in pairwise(replaced))
    assert instance.now - replaced[-1] >= SETTLE_NS


def test_nothing_is_replaced_while_a_worker_is_missing() -> None:
    instance = Instance()
    instance.is_running = instance.heals = False
    assert instance.run(5) == []
    instance.heals = True
    assert instance.run(2)[:2] == [Prepare("tcp"), Replace("tcp-0")]


def test_a_spare_that_another_worker_has_taken_is_made_again() -> None:
    instance = Instance()
    assert instance.tick() == Prepare("tcp")
    instance.spares.clear()
    instance.is_running = False  # a worker died and took it
    assert instance.run(3)[:2] == [Prepare("tcp"), Replace("tcp-0")]


def test_a_program_that_cannot_be_started_costs_no_worker() -> None:
    instance = Instance()
    instance.starts_spares = False
    actions = instance.run(60)
    assert set(actions[:-1]) == {Prepare("tcp")}
    assert actions[-1] == GiveUp("a new process of kind tcp is not ready in time")
    assert instance.rolling.left == WORKERS


def test_a_worker_that_does_not_come_back_ends_the_rolling_restart() -> None:
    instance = Instance()
    instance.heals = False
    assert instance.run(60) == [
        Prepare("tcp"),
        Replace("tcp-0"),
        GiveUp("the instance does not run after tcp-0 was replaced"),
    ]


def test_after_the_death_of_a_worker_all_have_to_work_for_a_while_again() -> None:
    instance = Instance()
    instance.tick()
    instance.is_running = False
    instance.tick()
    back = instance.now
    while not isinstance(instance.tick(), Replace):
        assert instance.now < NOW + LIMIT_NS
    assert instance.now - back >= SETTLE_NS


def test_each_step_has_its_own_time() -> None:
    instance = Instance()
    instance.starts_spares = instance.heals = False
    instance.run(8)
    instance.spares.add("tcp")
    assert instance.run(8) == [Replace("tcp-0")]
