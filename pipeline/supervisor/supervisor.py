"""The supervisor: it starts the workers in order, keeps them alive, stops them in reverse and leaves no trace.

It owns what must outlive a worker: the lock, the TUN device, the listening socket, the shared memory, the processes.
One thread and one selector serve signals, deaths (a pidfd per process), news of processes, sockets (control, worker
channels) and a clock.

Here is its loop. The rest is elsewhere:

    set_up                  all parts, in the order in which they are made
    memory_keeper           the shared memory
    processes.workforce     the workers, as the life cycle decides about them
    commands                what is asked of the instance, and its reload
    roles                   which peers may connect; what follows from the WELCOME of a server
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable

from pipeline.config import Config
from pipeline.log import LOG
from pipeline.policy.lifecycle import Phase
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.control.signals import Signals
from pipeline.supervisor.set_up import ALWAYS, RUNNING, UNTIL_STOP, Parts, set_up

TICK = 0.1  # seconds; the longest time between two looks at the clock, the heartbeats and the device

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """One run of one instance. `run()` returns the exit status.

    `reread` loads the configuration anew; `key` is the client's key from an invitation, b"" without one.
    """

    _parts: Parts

    def __init__(self, config: Config, reread: Callable[[], Config], key: bytes = b"") -> None:
        self._config = config  # with which it starts
        self._reread = reread
        self._key = key
        self._clean_up: list[Callable[[], object]] = []  # called at the end, the last one first
        self._selector = selectors.DefaultSelector()
        self._events = Events()

    def run(self) -> int:
        """Start, supervise, stop. TunnelError if it cannot start; nothing is left behind either way."""
        try:
            signals = Signals(SIGNALS, (signal.SIGHUP,), self._handle_signal, self._selector)
            self._clean_up.append(signals.close)
            config, add = self._config, self._clean_up.append
            self._parts = set_up(config, self._reread, self._key, self._events, self._selector, add)
            run_id, lifecycle = self._parts.run.plan.run_id, self._parts.workforce.lifecycle
            self._events.record("starting", text=f"{config.mode}, {config.lanes} lane(s), run {run_id}")
            while lifecycle.phase is not Phase.STOPPED or self._parts.hooks.is_waited_for:
                self._step()
            self._parts.entries.ended(well=lifecycle.exit_status == 0)
            self._events.record("down", text=f"exit status {lifecycle.exit_status}")
            return lifecycle.exit_status
        finally:
            self._tear_down()

    def _step(self) -> None:
        """One turn of the loop."""
        run, memory, workforce = self._parts.run, self._parts.memory, self._parts.workforce
        events = self._selector.select(TICK)
        workforce.look_at_clock(time.monotonic_ns())
        for key, _ in events:
            # an earlier callback may have closed the descriptor, and another one may have got its number
            if self._selector.get_map().get(key.fd) is key:
                run.failures.survive("an event", key.data)
        now = time.monotonic_ns()
        pages, processes = memory.current.scoreboard.pages, workforce.workers.processes
        plans = [each.plan for each in processes.values()]
        workforce.tick({plan.name: pages[plan.page].oldest_heartbeat(plan.duties) for plan in plans}, now)
        times = {ALWAYS}
        if not workforce.lifecycle.is_stopping:
            times.add(UNTIL_STOP)
            memory.check(workforce, now)  # without a data plane there is nothing to survive for
        if workforce.lifecycle.phase is Phase.RUNNING:
            times.add(RUNNING)
        for care in self._parts.cares:
            if care.when in times:
                run.failures.survive(care.what, care.tick, now)

    def _handle_signal(self, number: int) -> None:
        workforce = self._parts.workforce
        if number == signal.SIGHUP:
            self._parts.reloader.reload()
        elif workforce.lifecycle.is_stopping:
            LOG.warning("stopping: asked to stop again; workers are killed without a drain")
            workforce.stop_at_once()
            self._parts.hooks.end_all()
        else:
            self._parts.departure.stop(0, f"signal {signal.Signals(number).name}")

    def _tear_down(self) -> None:
        while self._clean_up:
            try:
                self._clean_up.pop()()
            except OSError as error:
                LOG.error("clean-up failed: %s", error)
        self._selector.close()
