"""The hooks: which events run which commands of the operator's, in which order, and what is waited for at the end.

    handle(event)      a subscriber of the events: queue a hook, if the configuration has one
    tick(now)          start what may run now, end what runs for too long
    is_waited_for      at the end of the instance: `down` has its time before the device goes
    end_all()          no more waiting: kill what runs

Rules of order and of storms: `pipeline.policy.hook_queue`. A run of its own: `hook_process`.

Names and texts may come from peers. In an environment they are printable, short, and names are of harmless characters.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.types import HookEvent
from pipeline.events import Event
from pipeline.log import LOG, printable
from pipeline.policy.hook_queue import HookQueue
from pipeline.supervisor.hooks.hook_process import READ_BYTES, HookProcess
from pipeline.supervisor.processes.precedence import Precedence

HOOK_OF_EVENT: dict[str, HookEvent] = {
    "up": "up",
    "stopping": "down",
    "failing": "down",
    "connected": "connected",
    "lost": "lost",
    "peer-joined": "peer-joined",
    "peer-left": "peer-left",
    "quota": "quota",
}
OF_A_PEER = ("peer-joined", "peer-left", "quota")

LOOK_NS = 100_000_000
KILL_SECONDS = 1.0
VALUE_LENGTH_MAX = 1000
LEFT_OPEN_MAX = 16  # outputs that background processes hold open; beyond, the oldest is closed

Describe = Callable[[Event], Mapping[str, str]]
"""More about an event, by the name of a variable without TUNNEL_."""


class _Run(NamedTuple):
    hook: HookEvent
    argv: tuple[str, ...]
    variables: dict[str, str]


class Hooks:
    """`describe` is asked only about events that have a hook. `record(kind, subject, text)`: an event."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        precedence: Precedence,
        describe: Describe,
        record: Callable[[str, str, str], object] = lambda *event: None,
    ) -> None:
        self._selector = selector
        self._record = record
        self._precedence = precedence
        self._describe = describe
        self._queue: HookQueue[_Run] = HookQueue()
        self._running: dict[Hashable, HookProcess] = {}
        self._left_open: deque[int] = deque()
        self._was_up = self._is_ending = False
        self._said_dropped = self._look_at = 0
        self._counts = {"run": 0, "failed": 0}
        self._config: Config

    def configure(self, config: Config) -> None:
        self._config = config

    # -- events

    def handle(self, event: Event) -> None:
        hook = HOOK_OF_EVENT.get(event.kind.name)
        if hook is None or self._is_ending:
            return
        self._was_up |= hook == "up"
        if hook == "down":
            self._is_ending = True  # events of the end, such as peers that leave, run no hook
            self._queue.drop_waiting()
            if not self._was_up:
                return
        argv = self._config.on.get(hook)
        if argv:
            subject = (hook == "quota", event.subject) if hook in OF_A_PEER else "tunnel"
            self._queue.add(subject, _Run(hook, argv, self._variables(hook, event)))

    def _variables(self, hook: HookEvent, event: Event) -> dict[str, str]:
        config = self._config
        found = {
            "EVENT": hook,
            "NAME": config.name,
            "MODE": config.mode,
            "REASON": event.text,
            **self._describe(event),
        }
        if hook in OF_A_PEER:
            found["PEER"] = re.sub(r"[^A-Za-z0-9_.:@+-]", "_", event.subject)
        return {f"TUNNEL_{name}": printable(value)[:VALUE_LENGTH_MAX] for name, value in found.items()}

    # -- on the clock

    def tick(self, now: int) -> None:
        while turn := self._queue.next():
            self._start(turn.subject, turn.what)
        if now < self._look_at:
            return
        self._look_at = now + LOOK_NS
        timeout_ns = int(self._config.hook_timeout * 1e9)
        for process in list(self._running.values()):
            process.tick(now, timeout_ns)
        for fd in list(self._left_open):
            self._drop_output(fd)
        if self._queue.dropped != self._said_dropped and self._queue.is_idle:
            LOG.warning("hooks: %d events came too fast and ran none", self._queue.dropped - self._said_dropped)
            self._said_dropped = self._queue.dropped

    def _start(self, subject: Hashable, run: _Run) -> None:
        self._counts["run"] += 1
        try:
            self._running[subject] = HookProcess(
                run.hook,
                run.argv,
                run.variables,
                self._selector,
                self._precedence,
                lambda process, status, left_open: self._ended(process, subject, status, left_open),
            )
        except OSError as error:
            self._counts["failed"] += 1
            self._queue.ended(subject)
            why = f"{run.argv[0]} cannot be started: {error.strerror or error}"
            LOG.error("hook %s: %s", run.hook, why)
            self._record("hook-failed", run.hook, why)

    def _ended(self, process: HookProcess, subject: Hashable, status: int, left_open: int) -> None:
        self._counts["failed"] += status != 0
        if process.failure:
            self._record("hook-failed", process.name, process.failure)
        del self._running[subject]
        self._queue.ended(subject)
        if left_open >= 0:
            self._left_open.append(left_open)
            if len(self._left_open) > LEFT_OPEN_MAX:
                self._close_output(self._left_open[0])

    def _drop_output(self, fd: int) -> None:
        with suppress(BlockingIOError):
            if not os.read(fd, READ_BYTES):
                self._close_output(fd)

    def _close_output(self, fd: int) -> None:
        self._left_open.remove(fd)
        os.close(fd)

    # -- the end

    @property
    def is_waited_for(self) -> bool:
        return not self._queue.is_idle

    def end_all(self) -> None:
        self._queue.drop_waiting()
        for process in self._running.values():
            process.send(signal.SIGKILL)

    def close(self) -> None:
        """A start that failed, or an end that was not waited for: nothing runs on."""
        self.end_all()
        for process in list(self._running.values()):
            try:
                process.reap(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                LOG.error("hook %s: pid %d does not end, and is left behind", process.name, process.pid)
        for fd in list(self._left_open):
            self._close_output(fd)

    def status(self) -> dict[str, Any]:
        """For `status`."""
        running = [process.name for process in self._running.values()]
        return {"running": running, **self._counts, "dropped": self._queue.dropped}
