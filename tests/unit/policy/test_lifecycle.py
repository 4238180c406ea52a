"""The life cycle of workers: every state with every event, and what holds in whatever order the events come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LocalError
from pipeline.policy.lifecycle import (
    ABORT_NS,
    ALIVE,
    GRACE_NS,
    PHASES,
    READY_NS,
    TRANSITIONS,
    Abort,
    Action,
    Event,
    Kill,
    Lifecycle,
    Limits,
    Phase,
    ReportDeath,
    ReportPause,
    ReportRunning,
    ReportStartFailed,
    ReportStopping,
    Start,
    Terminate,
    Worker,
    WorkerState,
)
from pipeline.policy.pauses import LOOK_NS
from pipeline.policy.restart import BACKOFF_MIN, EX_CONFIG, YOUNG_NS, RestartPolicy

STOPPED, STARTING, RUNNING, STOPPING, BACKOFF, FAILED = WorkerState
SECOND = 1_000_000_000
START = 1000 * SECOND
HEARTBEAT_NS, DRAIN_NS = 5 * SECOND, 2 * SECOND
INTENSITY, PERIOD = 3, 60.0
WORKERS = [("tcp-0", "tcp"), ("tcp-1", "tcp"), ("fec-0", "fec"), ("tun-0", "tun"), ("tun-1", "tun")]
NAMES = [name for name, _ in WORKERS]


class Instance:
    """A supervisor that carries out actions on workers which obey, at a clock that the test moves."""

    def __init__(self, workers: list[tuple[str, str]] = WORKERS) -> None:
        limits = Limits(HEARTBEAT_NS, DRAIN_NS, RestartPolicy(INTENSITY, PERIOD))
        self.lifecycle = Lifecycle(workers, limits)
        self.now = START
        self.silent: set[str] = set()  # workers without a heartbeat
        self.heartbeats = {name: 0 for name, _ in workers}

    def state(self, name: str) -> WorkerState:
        return self.lifecycle.workers[name].state

    def phase(self) -> Phase:
        return self.lifecycle.phase

    def states(self) -> list[WorkerState]:
        return [worker.state for worker in self.lifecycle.workers.values()]

    def tick(self, after: int = 0) -> list[Action]:
        """The next tick of a supervisor that runs all the time."""
        for _ in range(after // LOOK_NS):
            self.now += LOOK_NS
            self.lifecycle.look_at_clock(self.now)
        self.now += after % LOOK_NS
        for name in self.heartbeats.keys() - self.silent:
            self.heartbeats[name] = self.now
        return self.lifecycle.tick(self.heartbeats, self.now)

    def died(self, name: str, status: int = -9) -> list[Action]:
        return self.lifecycle.died(name, status, self.now)

    def became_ready(self, name: str) -> None:
        self.lifecycle.became_ready(name, self.now)

    def run(self) -> Instance:
        """Every worker is started and becomes ready."""
        while self.lifecycle.phase is Phase.STARTING:
            for action in self.tick():
                if isinstance(action, Start):
                    self.became_ready(action.worker)
        return self


def looks(instance: Instance, after: int) -> list[Action]:
    """One step of the supervisor's loop, so much later."""
    instance.now += after
    return instance.lifecycle.look_at_clock(instance.now) + instance.tick()


# -- the table


def test_the_table_has_every_event_and_no_state_that_nothing_leads_to() -> None:
    assert set(TRANSITIONS) == set(Event)
    reached = {to for row in TRANSITIONS.values() for targets in row.values() for to in targets}
    assert reached == set(WorkerState)


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("to", WorkerState)
def test_a_worker_moves_as_the_table_says_and_in_no_other_way(
    event: Event, state: WorkerState, to: WorkerState
) -> None:
    worker = Worker("tcp-0", "tcp", state)
    if to in TRANSITIONS[event].get(state, ()):
        worker.move(event, to)
        assert worker.state is to
    else:
        with pytest.raises(LocalError, match=f"tcp-0: {event} leads from {state} to {to}, which is forbidden"):
            worker.move(event, to)
        assert worker.state is state


def start_failed(instance: Instance) -> list[Action]:
    return instance.lifecycle.start_failed("tcp-0", "no memory", 0)


def ready(instance: Instance) -> list[Action]:
    instance.became_ready("tcp-0")
    return []


def died(instance: Instance) -> list[Action]:
    return instance.died("tcp-0", EX_CONFIG)


def restart(instance: Instance) -> list[Action]:
    return instance.lifecycle.restart(["tcp-0"], instance.now)


def overdue(instance: Instance) -> list[Action]:
    instance.silent.add("tcp-0")
    return instance.tick(READY_NS + 1)


def terminate(instance: Instance) -> list[Action]:
    instance.lifecycle.stop(0, "asked")
    return instance.tick()


FORBIDDEN = "forbidden"
STOP = ReportStopping(1, "tcp-0 cannot be started: no memory")
REFUSED = ReportStopping(EX_CONFIG, "tcp-0 refuses its configuration")
NOT_READY = Abort("tcp-0", "not ready in time")
SILENT = Abort("tcp-0", "no heartbeat for 10.0 s")
DEATH = ReportDeath("tcp-0", EX_CONFIG, False)

# fmt: off
EVENTS = [
    # event        state     actions                       state afterwards
    (start_failed, STOPPED,  FORBIDDEN,                    STOPPED),
    (start_failed, STARTING, [STOP],                       STOPPED),
    (start_failed, RUNNING,  FORBIDDEN,                    RUNNING),
    (start_failed, STOPPING, FORBIDDEN,                    STOPPING),
    (start_failed, BACKOFF,  FORBIDDEN,                    BACKOFF),
    (start_failed, FAILED,   FORBIDDEN,                    FAILED),
    (ready,        STOPPED,  FORBIDDEN,                    STOPPED),
    (ready,        STARTING, [],                           RUNNING),
    (ready,        RUNNING,  FORBIDDEN,                    RUNNING),
    (ready,        STOPPING, [],                           STOPPING),
    (ready,        BACKOFF,  FORBIDDEN,                    BACKOFF),
    (ready,        FAILED,   FORBIDDEN,                    FAILED),
    (died,         STOPPED,  FORBIDDEN,                    STOPPED),
    (died,         STARTING, [DEATH, REFUSED],             FAILED),
    (died,         RUNNING,  [DEATH, REFUSED],             FAILED),
    (died,         STOPPING, [],                           BACKOFF),
    (died,         BACKOFF,  FORBIDDEN,                    BACKOFF),
    (died,         FAILED,   FORBIDDEN,                    FAILED),
    (restart,      STOPPED,  [],                           STOPPED),
    (restart,      STARTING, [],                           STARTING),
    (restart,      RUNNING,  [Terminate("tcp-0")],         STOPPING),
    (restart,      STOPPING, [],                           STOPPING),
    (restart,      BACKOFF,  [],                           BACKOFF),
    (restart,      FAILED,   [],                           FAILED),
    (overdue,      STOPPED,  [Start("tcp-0")],             STARTING),
    (overdue,      STARTING, [NOT_READY],                  STARTING),
    (overdue,      RUNNING,  [SILENT, ReportRunning()],    RUNNING),
    (overdue,      STOPPING, [Kill("tcp-0")],              STOPPING),
    (overdue,      BACKOFF,  [Start("tcp-0")],             STARTING),
    (overdue,      FAILED,   [],                           FAILED),
    (terminate,    STOPPED,  [],                           STOPPED),
    (terminate,    STARTING, [Terminate("tcp-0")],         STOPPING),
    (terminate,    RUNNING,  [Terminate("tcp-0")],         STOPPING),
    (terminate,    STOPPING, [],                           STOPPING),
    (terminate,    BACKOFF,  [],                           BACKOFF),
    (terminate,    FAILED,   [],                           FAILED),
]
# fmt: on


@pytest.mark.parametrize(("event", "state", "actions", "after"), EVENTS)
def test_every_event_in_every_state(
    event: Callable[[Instance], list[Action]], state: WorkerState, actions: list[Action] | str, after: WorkerState
) -> None:
    instance = Instance([("tcp-0", "tcp")])
    worker = instance.lifecycle.workers["tcp-0"]
    worker.state = state
    worker.started_ns = worker.ready_ns = worker.alive_ns = worker.terminated_ns = worker.due_ns = START
    if actions == FORBIDDEN:
        with pytest.raises(LocalError, match="forbidden"):
            event(instance)
    else:
        assert event(instance) == actions
    assert worker.state is after


def test_the_events_above_are_all_that_there_are() -> None:
    events = (start_failed, ready, died, restart, overdue, terminate)
    assert Counter((event, state) for event, state, _, _ in EVENTS) == Counter(
        (event, state) for event in events for state in WorkerState
    )
    assert len(events) == len(Event) - 1  # START is no news: the clock alone leads to it


# -- starting


def test_workers_start_kind_by_kind_each_kind_when_the_one_before_it_is_ready() -> None:
    instance = Instance()
    for _, group in groupby(WORKERS, key=lambda worker: worker[1]):
        names = [name for name, _ in group]
        assert instance.tick() == [Start(name) for name in names]
        for name in names:
            assert instance.tick(SECOND) == []
            instance.became_ready(name)
    assert instance.phase() is Phase.STARTING
    assert instance.tick() == [ReportRunning()]
    assert instance.phase() is Phase.RUNNING
    assert instance.tick() == []


def test_a_worker_that_dies_while_others_wait_for_it_starts_again_before_they_do() -> None:
    instance = Instance()
    instance.tick()
    assert instance.died("tcp-0") == [ReportDeath("tcp-0", -9, False)]
    assert instance.tick() == []
    assert instance.tick(int(BACKOFF_MIN * SECOND)) == [Start("tcp-0")]
    assert instance.states() == [STARTING, STARTING, STOPPED, STOPPED, STOPPED]


def test_a_worker_that_cannot_be_started_stops_the_instance() -> None:
    instance = Instance()
    instance.tick()
    why = "tcp-0 cannot be started: Cannot allocate memory"
    assert instance.lifecycle.start_failed("tcp-0", "Cannot allocate memory", 0) == [ReportStopping(1, why)]
    assert instance.tick() == [Terminate("tcp-1")]
    instance.died("tcp-1", 0)
    assert instance.tick() == []
    assert (instance.phase(), instance.lifecycle.exit_status) == (Phase.STOPPED, 1)


def test_a_worker_that_is_not_ready_in_time_is_aborted_then_killed_and_started_again() -> None:
    instance = Instance()
    instance.tick()
    instance.became_ready("tcp-1")
    assert instance.tick(READY_NS) == []
    assert instance.tick(1) == [Abort("tcp-0", "not ready in time")]
    assert instance.tick(ABORT_NS) == []
    assert instance.tick(1) == [Kill("tcp-0")]
    assert instance.died("tcp-0") == [ReportDeath("tcp-0", -9, True)]
    assert instance.tick(int(BACKOFF_MIN * SECOND)) == [Start("tcp-0")]
    assert instance.tick(READY_NS) == []  # its abort is forgotten


# -- running


def test_a_dead_worker_that_has_worked_is_started_again_at_once_and_counted() -> None:
    instance = Instance().run()
    instance.tick(YOUNG_NS)
    assert instance.died("fec-0", 1) == [ReportDeath("fec-0", 1, False)]
    assert instance.tick() == [Start("fec-0")]
    assert instance.phase() is Phase.DEGRADED
    assert instance.lifecycle.workers["fec-0"].restarts == instance.lifecycle.workers["fec-0"].deaths == 1
    instance.became_ready("fec-0")
    assert instance.tick() == []  # only the first time is told
    assert instance.phase() is Phase.RUNNING


def test_a_worker_that_dies_soon_after_it_was_ready_waits_before_it_is_started_again() -> None:
    instance = Instance().run()
    instance.tick(YOUNG_NS - 1)
    instance.died("fec-0")
    assert instance.tick() == []
    assert instance.tick(int(BACKOFF_MIN * SECOND)) == [Start("fec-0")]


def test_a_worker_without_a_heartbeat_is_aborted_then_killed() -> None:
    instance = Instance().run()
    instance.silent.add("tun-1")
    assert instance.tick(HEARTBEAT_NS) == []
    assert instance.tick(100_000_000) == [Abort("tun-1", "no heartbeat for 5.1 s")]
    assert instance.tick(ABORT_NS) == []
    assert instance.tick(1) == [Kill("tun-1")]
    assert instance.died("tun-1", -6) == [ReportDeath("tun-1", -6, True)]
    assert instance.state("tun-1") is BACKOFF


def test_a_pause_of_the_supervisor_gives_all_heartbeats_a_new_start() -> None:
    """All of the instance was stopped for 45 s. Nobody has written a heartbeat when the supervisor looks first."""
    instance = Instance().run()
    instance.silent.update(NAMES)
    lifecycle = instance.lifecycle
    lifecycle.look_at_clock(instance.now)
    instance.now += 45 * SECOND
    assert lifecycle.tick(instance.heartbeats, instance.now) == [ReportPause(44 * SECOND)]
    assert instance.tick() == []
    aborted = [action for _ in range(50) for action in looks(instance, SECOND // 10)]
    assert aborted == [Abort(name, "no heartbeat for 5.1 s") for name in NAMES]


def test_a_worker_that_hangs_is_found_by_a_supervisor_that_is_always_late() -> None:
    instance = Instance().run()
    instance.silent.add("tun-1")
    aborted: list[Action] = []
    for _ in range(8):
        aborted += [action for action in looks(instance, 3 * SECOND) if isinstance(action, Abort)]
    assert aborted == [Abort("tun-1", "no heartbeat for 6.0 s")]


def test_a_pause_is_no_time_of_a_start_of_a_drain_or_of_an_abort() -> None:
    instance = Instance()
    instance.tick()
    instance.lifecycle.look_at_clock(instance.now)
    assert looks(instance, READY_NS + SECOND) == [ReportPause(READY_NS)]
    instance.became_ready("tcp-0")
    instance.lifecycle.stop(0, "asked")
    assert Terminate("tcp-0") in instance.tick()
    assert looks(instance, DRAIN_NS + GRACE_NS + SECOND) == [ReportPause(DRAIN_NS + GRACE_NS)]
    assert Kill("tcp-0") in [action for _ in range(5) for action in looks(instance, SECOND)]


def test_a_worker_that_dies_after_a_pause_has_not_lived_through_it() -> None:
    instance = Instance().run()
    instance.lifecycle.look_at_clock(instance.now)
    looks(instance, 60 * SECOND)
    instance.died("tun-1")
    assert instance.lifecycle.workers["tun-1"].due_ns == instance.now  # a second counts, so it has worked
    assert all(worker.ready_ns <= worker.alive_ns <= instance.now for worker in instance.lifecycle.workers.values())


def test_the_heartbeat_of_a_predecessor_is_no_reason_to_abort() -> None:
    instance = Instance().run()
    instance.silent.add("tun-1")
    instance.tick(SECOND)
    instance.died("tun-1")
    instance.tick()
    instance.tick(HEARTBEAT_NS)
    instance.became_ready("tun-1")
    assert instance.tick(HEARTBEAT_NS) == []


@pytest.mark.parametrize(("status", "exit_status"), [(-9, 1), (1, 1), (EX_CONFIG, EX_CONFIG)])
def test_a_worker_that_the_policy_gives_up_stops_the_instance(status: int, exit_status: int) -> None:
    instance = Instance().run()
    while not instance.lifecycle.is_stopping:
        actions = instance.died("tun-0", status)
        if not instance.lifecycle.is_stopping:
            instance.tick(6 * SECOND)
            instance.became_ready("tun-0")
    report, stop = actions
    assert report == ReportDeath("tun-0", status, False)
    assert isinstance(stop, ReportStopping) and stop.exit_status == exit_status
    assert instance.state("tun-0") is FAILED
    assert instance.lifecycle.exit_status == exit_status


def test_new_limits_hold_from_the_next_tick() -> None:
    instance = Instance().run()
    instance.silent = set(NAMES)
    instance.lifecycle.limits = instance.lifecycle.limits._replace(heartbeat_ns=SECOND)
    assert [type(action) for action in instance.tick(SECOND + 1)] == [Abort] * len(NAMES)


# -- replacing


def test_a_replaced_worker_drains_and_is_started_again_at_once_without_a_report() -> None:
    instance = Instance().run()
    assert instance.lifecycle.restart(["tcp-1", "tun-0"], instance.now) == [Terminate("tcp-1"), Terminate("tun-0")]
    assert instance.tick() == []
    assert instance.phase() is Phase.DEGRADED
    assert instance.died("tcp-1", 0) == []
    assert instance.tick() == [Start("tcp-1")]
    assert (instance.lifecycle.workers["tcp-1"].restarts, instance.lifecycle.workers["tcp-1"].deaths) == (1, 0)
    instance.became_ready("tcp-1")
    assert instance.died("tcp-1") == [ReportDeath("tcp-1", -9, False)]  # replaced once, not for ever


def test_any_number_of_replacements_gives_up_nothing() -> None:
    instance = Instance().run()
    for _ in range(10 * INTENSITY):
        instance.lifecycle.restart(["tcp-0"], instance.now)
        instance.died("tcp-0", 0)
        assert instance.tick() == [Start("tcp-0")]
        instance.became_ready("tcp-0")
    assert not instance.lifecycle.is_stopping


def test_what_workers_are_attached_to_is_lost_and_every_living_one_is_killed_and_started_again_uncounted() -> None:
    instance = Instance().run()
    instance.died("tun-1")  # waits for its next start
    instance.lifecycle.restart(["tcp-1"], instance.now)  # is being replaced already
    for _ in range(INTENSITY + 2):
        actions = instance.lifecycle.replace_at_once(instance.now)
        alive = [name for name in NAMES if instance.state(name) is WorkerState.STOPPING]
        assert actions == [Kill(name) for name in alive] and "tcp-0" in alive
        for name in alive:
            assert instance.died(name) == []
        started = [action.worker for action in instance.tick(SECOND) if isinstance(action, Start)]
        assert set(started) >= set(alive)
        for name in started[1:]:  # the first is still starting when memory is lost again
            instance.became_ready(name)
    assert instance.phase() is Phase.DEGRADED


def test_while_the_instance_stops_nothing_is_replaced_whatever_is_lost() -> None:
    instance = Instance().run()
    instance.lifecycle.stop(0, "asked")
    assert instance.lifecycle.replace_at_once(instance.now) == []


def test_a_worker_that_is_stopping_already_is_not_asked_to_twice() -> None:
    instance = Instance().run()
    instance.lifecycle.restart(["tcp-0"], instance.now)
    assert instance.lifecycle.restart(["tcp-0"], instance.now) == []
    assert instance.lifecycle.workers["tcp-0"].restarts == 1


def test_a_replaced_worker_that_does_not_end_is_killed_after_drain_time_and_grace() -> None:
    instance = Instance().run()
    instance.lifecycle.restart(["tcp-0"], instance.now)
    assert instance.tick(DRAIN_NS + GRACE_NS) == []
    assert instance.tick(1) == [Kill("tcp-0")]


# -- stopping


def test_kinds_stop_in_reverse_start_order() -> None:
    instance = Instance().run()
    assert instance.lifecycle.stop(0, "signal SIGTERM") == [ReportStopping(0, "signal SIGTERM")]
    for kind in (["tun-0", "tun-1"], ["fec-0"], ["tcp-0", "tcp-1"]):
        assert instance.tick() == [Terminate(name) for name in kind]
        for name in kind:
            assert instance.tick() == []
            assert instance.died(name, 0) == []
    assert instance.phase() is Phase.STOPPING
    assert instance.tick() == []
    assert (instance.phase(), instance.lifecycle.exit_status) == (Phase.STOPPED, 0)
    assert instance.states() == [STOPPED] * len(NAMES)
    assert instance.tick(SECOND) == []


def test_the_first_reason_to_stop_is_the_one_that_counts() -> None:
    instance = Instance().run()
    instance.lifecycle.stop(0, "asked")
    assert instance.lifecycle.stop(1, "later") == []
    assert instance.lifecycle.exit_status == 0


def test_a_stop_while_workers_start_ends_those_that_there_are() -> None:
    instance = Instance()
    instance.tick()
    instance.lifecycle.stop(0, "asked")
    assert instance.tick() == [Terminate("tcp-0"), Terminate("tcp-1")]
    instance.became_ready("tcp-0")
    assert instance.state("tcp-0") is STOPPING
    assert instance.died("tcp-0", 0) == instance.died("tcp-1", 0) == []
    assert instance.tick() == []
    assert instance.phase() is Phase.STOPPED


def test_a_replaced_worker_is_not_started_again_once_the_instance_stops() -> None:
    instance = Instance().run()
    instance.lifecycle.restart(["tcp-0"], instance.now)
    instance.lifecycle.stop(0, "asked")
    assert instance.tick() == [Terminate("tun-0"), Terminate("tun-1")]
    instance.died("tcp-0", 0)
    assert instance.state("tcp-0") is STOPPED
    assert instance.tick() == []


def test_no_worker_is_replaced_while_the_instance_stops() -> None:
    instance = Instance().run()
    instance.lifecycle.stop(0, "asked")
    assert instance.lifecycle.restart(NAMES, instance.now) == []


def test_a_worker_that_dies_unasked_while_the_instance_stops_is_no_error() -> None:
    instance = Instance().run()
    instance.lifecycle.stop(0, "asked")
    assert instance.died("tcp-0", -11) == []
    assert instance.state("tcp-0") is STOPPED


def test_a_hung_worker_is_aborted_while_the_instance_stops_as_well() -> None:
    instance = Instance().run()
    instance.silent.add("tcp-0")
    instance.lifecycle.stop(0, "asked")
    assert instance.tick(HEARTBEAT_NS + 1)[0] == Abort("tcp-0", "no heartbeat for 5.0 s")


def test_a_stop_without_drain_kills_what_is_alive() -> None:
    instance = Instance().run()
    instance.lifecycle.stop(0, "asked")
    instance.tick()
    instance.died("tun-1", 0)
    assert instance.lifecycle.stop_without_drain() == [Kill(name) for name in NAMES[:-1]]


def test_every_phase_that_lasts_can_be_stopped() -> None:
    assert {phase for phase, targets in PHASES.items() if Phase.STOPPING not in targets} == {
        Phase.STOPPING,
        Phase.STOPPED,
    }


# -- whatever happens

WAITS = [0, 1_000_000, SECOND, 2 * SECOND + 1, 3 * SECOND + 1, READY_NS + 1]
WAIT = st.tuples(st.just("wait"), st.sampled_from(WAITS))
EVENT = st.tuples(
    st.sampled_from(["ready", "died", "died", "refused", "silent", "restart", "unstartable"]), st.sampled_from(NAMES)
)
STEPS = st.lists(st.one_of(WAIT, EVENT), max_size=25)


class Watched(Instance):
    """Checks each action of its life cycle against what a supervisor may rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[str] = set()
        self.terminated: dict[str, int] = {}  # when each living worker was
        self.aborted: dict[str, int] = {}
        self.deaths: dict[str, list[int]] = {name: [] for name in NAMES}
        self.stops = 0

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    assert not self.lifecycle.is_stopping and name not in self.alive
                    self.alive.add(name)
                    self.silent.discard(name)
                case Terminate(name):
                    assert name in self.alive and name not in self.terminated
                    self.terminated[name] = self.now
                    if self.lifecycle.is_stopping:
                        kind = dict(WORKERS)[name]
                        later = [n for n, k in WORKERS[NAMES.index(name) :] if k != kind]
                        assert not self.alive & set(later)
                case Abort(name):
                    assert name in self.alive and name not in self.aborted.keys() | self.terminated.keys()
                    self.aborted[name] = self.now
                case Kill(name):
                    assert name in self.alive
                    if name in self.aborted:
                        assert self.now - self.aborted[name] > ABORT_NS
                    else:
                        assert self.now - self.terminated[name] > DRAIN_NS + GRACE_NS
                case ReportDeath(name):
                    self.deaths[name].append(self.now)
                case ReportStopping():
                    self.stops += 1

    def end(self, name: str, status: int) -> None:
        if name in self.alive:
            self.bury(name)
            self.carry_out(self.died(name, status))

    def bury(self, name: str) -> None:
        self.alive.discard(name)
        self.terminated.pop(name, None)
        self.aborted.pop(name, None)

    def step(self, step: str, value: str | int) -> None:
        match step, value:
            case "wait", int(ns):
                self.carry_out(self.tick(ns))
            case "ready", str(name) if self.state(name) is STARTING:
                self.became_ready(name)
            case "died", str(name):
                self.end(name, -9)
            case "refused", str(name):
                self.end(name, EX_CONFIG)
            case "silent", str(name):
                self.silent.add(name)
            case "restart", str(name):
                self.carry_out(self.lifecycle.restart([name], self.now))
            case "unstartable", str(name) if self.state(name) is STARTING:
                self.bury(name)
                self.carry_out(self.lifecycle.start_failed(name, "no memory", self.now))

    def check(self) -> None:
        assert self.alive == {name for name in NAMES if self.state(name) in ALIVE}
        assert self.stops == self.lifecycle.is_stopping
        for deaths in self.deaths.values():
            recent = [at for at in deaths if self.now - at <= PERIOD * SECOND]
            assert len(recent) <= INTENSITY or self.lifecycle.is_stopping


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(NAMES)), STEPS, STEPS)
def test_whatever_happens_the_order_the_grace_and_the_intensity_are_kept(
    ready: int, before_stop: list[tuple[str, str | int]], after_stop: list[tuple[str, str | int]]
) -> None:
    instance = Watched()
    for name in NAMES[:ready]:
        instance.carry_out(instance.tick())
        instance.became_ready(name)
    for step in before_stop:
        instance.step(*step)
        instance.check()
    instance.carry_out(instance.lifecycle.stop(0, "asked"))
    for step in after_stop:
        instance.step(*step)
        instance.check()
    # it comes to an end: workers that do not obey are killed, and nothing is left
    for _ in range(6 * len(NAMES)):
        actions = instance.tick(DRAIN_NS + GRACE_NS + 1)
        instance.carry_out(actions)
        for action in actions:
            if isinstance(action, Kill):
                instance.end(action.worker, -9)
    assert instance.phase() is Phase.STOPPED
    assert not instance.alive


def test_a_running_instance_tries_again_when_a_process_cannot_be_made_and_gives_up_if_that_lasts() -> None:
    instance = Instance().run()
    instance.died("tcp-0")
    text = "tcp-0 cannot be started: Resource temporarily unavailable"
    for attempt in range(INTENSITY):
        assert Start("tcp-0") in instance.tick(after=LOOK_NS)
        assert instance.phase() is Phase.DEGRADED
        actions = instance.lifecycle.start_failed("tcp-0", "Resource temporarily unavailable", instance.now)
        assert actions == [ReportStartFailed(text) if attempt < INTENSITY - 1 else ReportStopping(1, text)]
    assert instance.state("tcp-0") is STOPPED


def test_a_process_that_can_be_made_at_the_second_attempt_runs() -> None:
    instance = Instance().run()
    instance.died("fec-0")
    assert Start("fec-0") in instance.tick(after=10 * SECOND)
    instance.lifecycle.start_failed("fec-0", "no memory", instance.now)
    assert instance.state("fec-0") is BACKOFF
    assert Start("fec-0") in instance.tick(after=10 * SECOND)
    instance.became_ready("fec-0")
    instance.tick()
    assert instance.phase() is Phase.RUNNING
