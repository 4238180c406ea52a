"""The workforce: all workers of an instance, as the life cycle decides about them.

    tick(heartbeats, now), look_at_clock(now)    what is due: starts, ends, hangs
    restart(names), roll(names)                  replace workers, all at once or one after the other
    stop(exit_status, reason), stop_at_once()    the end
    replace_all(reason)                          kill all and wait for their ends, so that the memory can be made anew

`policy.lifecycle` decides which worker is started, ended or given up, and when. Here that is carried out and recorded,
and what happens to the processes is told to the life cycle.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.config import Config
from pipeline.events import Record
from pipeline.log import LOG
from pipeline.policy.lifecycle import (
    GRACE_NS,
    READY_NS,
    Abort,
    Action,
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
    WorkerState,
)
from pipeline.policy.restart import RestartPolicy
from pipeline.runtime.supervisor_channel import Answer
from pipeline.supervisor.kernel.entries import KernelEntries
from pipeline.supervisor.processes import cores
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.processes.rolling import Rolling
from pipeline.supervisor.processes.spares import Spares
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.processes.worker_events import WorkerEvents
from pipeline.supervisor.processes.workers import Workers
from pipeline.supervisor.run.run import Run
from pipeline.system import machine_reader


class Workforce:
    """`answer`: the answer to a request of a tcp worker. `record`: an event. `bridged`: see Workers."""

    def __init__(
        self,
        run: Run,
        entries: KernelEntries,
        answer: Callable[[Any], Answer | None],
        selector: selectors.BaseSelector,
        precedence: Precedence,
        record: Record,
        bridged: Callable[[], socket.socket | None] = lambda: None,
    ) -> None:
        config, planned = run.config, run.plan.workers
        self.placement = cores.assign(config, planned, machine_reader.read_cores())
        kinds = [each.kind for each in planned]
        self.spares = Spares(kinds, config.mode, config.spares, selector, precedence)
        self.workers = Workers(
            run,
            entries.device,
            entries.listener,
            self.placement.threads,
            self.spares,
            WorkerChannels(answer, selector, run.failures, entries.congestion.set_on),
            selector,
            news=self,
            bridged=bridged,
            datagrams=entries.datagrams,
        )
        self.lifecycle = Lifecycle([(each.name, each.kind) for each in planned], _limits(config))
        self.rolling = Rolling(self.spares, lambda name: self.restart([name]))
        self._run = run
        self._record = record
        self._events = WorkerEvents(record)

    @property
    def names(self) -> list[str]:
        return list(self.workers.processes)

    # -- on the clock

    def look_at_clock(self, now: int) -> None:
        """Before anything that has happened meanwhile is looked at."""
        self._carry_out(self.lifecycle.look_at_clock(now))

    def tick(self, heartbeats: Mapping[str, int], now: int) -> None:
        """`heartbeats`: by worker, the older one of its two duties."""
        self._carry_out(self.lifecycle.tick(heartbeats, now))

    def tick_rolling(self, now: int) -> None:
        self.rolling.tick(self._is_running, now)

    def tick_spares(self, now: int) -> None:
        self.spares.tick(self._is_running and not self.rolling.is_under_way, now)

    @property
    def _is_running(self) -> bool:
        return self.lifecycle.phase is Phase.RUNNING

    # -- what is asked

    def restart(self, names: Iterable[str], reason: str = "") -> None:
        """Drain these workers, and start others in their place."""
        names = list(names)
        if reason:
            self._events.expect(names, reason)
        self._carry_out(self.lifecycle.restart(names, time.monotonic_ns()))

    def roll(self, names: Iterable[str]) -> None:
        """Replace these workers one after the other."""
        kinds = [(each, self.lifecycle.workers[each].kind) for each in names]
        limit_ns = READY_NS + self.lifecycle.limits.drain_ns + GRACE_NS
        self.rolling.begin(kinds, limit_ns, time.monotonic_ns())

    def configure(self, config: Config) -> None:
        """Take over the settings by which workers are watched."""
        self.lifecycle.limits = _limits(config)
        self.spares.enable(config.spares)

    def tell_settings(self) -> None:
        """Give the settings of the run to the workers that can change them as they run."""
        lost = self.workers.channels.send_to_all({"settings": list(self._run.settings)})
        if lost:  # they would go on with the old settings for ever; their successors read the new plan
            LOG.warning("%s did not take the new settings: replaced", ", ".join(lost))
            self.restart(lost)

    def follow_role(self, now: int) -> None:
        """Let workers have what the role has learnt: those that start from now on, and others if they need it."""
        if self._run.renew_plan():
            self.tell_settings()

    def replace_all(self, reason: str) -> None:
        """Kill all workers and wait for their ends. Others start with the plan of that time."""
        self._events.expect(self.names, reason)
        self._carry_out(self.lifecycle.replace_at_once(time.monotonic_ns()))
        self.workers.await_deaths()

    def adopt_plan(self) -> None:
        """Let the workers be those of the present plan, which has the same names. None of them has a process."""
        for worker in self._run.plan.workers:
            self.workers.processes[worker.name].plan = worker

    def stop(self, exit_status: int, reason: str) -> None:
        self._carry_out(self.lifecycle.stop(exit_status, reason))

    def stop_at_once(self) -> None:
        """Without a drain."""
        self._carry_out(self.lifecycle.stop_without_drain())

    def close(self) -> None:
        """Leave no process."""
        self.workers.kill_all()
        self.workers.channels.close_all()

    # -- what the life cycle decides

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self.follow_role(0)
                    self.workers.start(name)
                case Terminate(name):
                    self.workers.send(name, signal.SIGTERM)
                case Abort(name):
                    self._events.hung(action)
                    self.workers.send(name, signal.SIGABRT)
                    self.workers.send(name, signal.SIGCONT)  # a stopped process aborts once it continues
                case Kill(name):
                    self.workers.send(name, signal.SIGKILL)
                case ReportDeath():
                    self._events.died(action)
                case ReportPause(missed):
                    text = f"the supervisor did not run for {missed / 1e9:.1f} s; heartbeats begin anew"
                    self._record("paused", "", text)
                case ReportRunning():
                    config = self._run.config
                    addresses = ", ".join(map(str, config.tunnel_interfaces)) or "address from the server"
                    self._record("up", "", f"{addresses} on {config.tun_name}")
                case ReportStartFailed():
                    self._events.start_failed(action)
                case ReportStopping(exit_status, reason):
                    self._record("failing" if exit_status else "stopping", "", reason)
                    self.rolling.cancel()
                    self.spares.discard()

    # -- news of a worker (pipeline.supervisor.processes.workers.WorkerNews)

    def on_ready(self, name: str) -> None:
        self.lifecycle.became_ready(name, time.monotonic_ns())
        if self.lifecycle.workers[name].state is WorkerState.RUNNING:
            self._events.ready(name, self.workers.processes[name].pid)

    def on_died(self, name: str, status: int) -> None:
        self._carry_out(self.lifecycle.died(name, status, time.monotonic_ns()))

    def on_unusable(self, name: str, reason: str) -> None:
        if self.lifecycle.workers[name].state is WorkerState.STARTING:
            self._carry_out(self.lifecycle.start_failed(name, reason, time.monotonic_ns()))
        else:  # it was to stop anyway
            self.on_died(name, -signal.SIGKILL)


def _limits(config: Config) -> Limits:
    policy = RestartPolicy(config.restart_intensity, config.restart_period)
    return Limits(int(config.heartbeat_timeout * 1e9), int(config.drain_timeout * 1e9), policy)
