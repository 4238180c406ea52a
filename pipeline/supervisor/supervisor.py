"""The supervisor: it starts the workers in order, keeps them alive, stops them in reverse and leaves no trace.

It owns what must outlive a worker: the lock, the TUN device, the listening socket, the shared memory, the processes.
One thread and one selector serve signals, deaths (a pidfd per process), news of processes, sockets (control, worker
channels) and a clock.

Decided elsewhere, carried out here:

    lifecycle       which worker is started, ended or given up, and when; the phases of the instance
    cores           where a worker runs
    workers         their processes, and the spares that take over
    rolling         the replacement of one worker after the other
    server_role     which peers may connect
    client_role     what follows from the server's WELCOME
    reload          which settings have changed, and whether workers are replaced for them
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pipeline import log
from pipeline.config import Config, to_json
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError, TunnelError
from pipeline.events import Event
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
from pipeline.supervisor.control.control_socket import ControlServer
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.control.publisher import Publisher
from pipeline.supervisor.control.run_files import RunFiles
from pipeline.supervisor.control.sd_notify import Watchdog, notify
from pipeline.supervisor.control.service_status import ServiceStatus
from pipeline.supervisor.control.signals import Signals
from pipeline.supervisor.control.worker_events import WorkerEvents
from pipeline.supervisor.hooks.facts import facts_of
from pipeline.supervisor.hooks.hooks import Hooks
from pipeline.supervisor.instance import Instance
from pipeline.supervisor.kernel.clamp_keeper import ClampKeeper
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.processes import cores
from pipeline.supervisor.processes.exporter import Exporter
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.processes.process import raise_descriptor_limit
from pipeline.supervisor.processes.rolling import Rolling
from pipeline.supervisor.processes.spares import Spares
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.processes.workers import Workers
from pipeline.supervisor.reload import Reload
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.roles.server_role import ServerRole
from pipeline.supervisor.run.run import PreparedPlan, Run
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.supervisor.run.worker_account import account_beside, choose_account

TICK = 0.1  # seconds; the longest time between two looks at the clock, the heartbeats and the device

FAILURE_PAUSE = 0.01  # seconds; an event that fails comes again at once, and must not take a core

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """One run of one instance. `run()` returns the exit status.

    `reread` loads the configuration anew; `key` is the client's key from an invitation, b"" without one.
    """

    def __init__(self, config: Config, reread: Callable[[], Config], key: bytes = b"") -> None:
        self.config = config
        self._reread = reread
        self._key = key
        self._cleanup: list[Callable[[], object]] = []  # called at the end, the last one first
        self._selector = selectors.DefaultSelector()
        self._watchdog = Watchdog()
        self._service_status = ServiceStatus()
        self.events = Events()
        self._worker_events = WorkerEvents(self.events)

    def run(self) -> int:
        """Start, supervise, stop. TunnelError if it cannot start; nothing is left behind either way."""
        try:
            self._set_up()
            run_id = self._run.plan.run_id
            self.events.record("starting", text=f"{self.config.mode}, {self.config.lanes} lane(s), run {run_id}")
            while self._lifecycle.phase is not Phase.STOPPED or self._hooks.is_waited_for:
                self._step()
            self.events.record("down", text=f"exit status {self._lifecycle.exit_status}")
            return self._lifecycle.exit_status
        finally:
            self._tear_down()

    # -- set up and tear down

    def _set_up(self) -> None:
        config = self.config
        raise_descriptor_limit()
        self._precedence = Precedence()
        self._cleanup.append(self._precedence.restore_own)
        self._precedence.protect()
        signals = Signals(SIGNALS, (signal.SIGHUP,), self._handle_signal, self._selector)
        self._cleanup.append(signals.close)
        instance = Instance(config.name)
        instance.acquire()
        self._cleanup.append(instance.release)
        choice = choose_account(config.user)
        LOG.info("%s", choice.text)
        is_server = config.mode == "server"
        events = self.events
        self._exporter = Exporter(account_beside(choice.account), self._selector, self._precedence, events.record)
        self._exporter.prepare(config)
        self._role = ServerRole(config, events) if is_server else ClientRole(config, self._key, events)
        self._device = TunDevice(config)
        self._cleanup.append(self._device.close)
        self._clamp = ClampKeeper(config.tun_name, config.name)
        self._cleanup.append(self._clamp.close)
        self._clamp.apply(config.mss_clamp)
        self._listener: socket.socket | None = None
        if is_server:
            self._listener = listen(config.listen_endpoint)
            self._cleanup.append(self._listener.close)
        self._run = Run(choice.account)
        self._cleanup.append(self._run.close)
        self._write_plan()
        self._memory = SharedMemory(self._run.plan)
        self._cleanup.append(lambda: self._memory.end())
        events.use(self._memory.event_log)
        self._cleanup.append(events.finish)
        self._role.start(self._memory.peer_table, self._device)
        self._cleanup.append(self._role.accountant.close)
        self._hooks = Hooks(self._selector, self._precedence, self._facts)
        self._cleanup.append(self._hooks.close)
        self._hooks.configure(config)
        events.subscribe(self._hooks.handle)
        self._make_workers()
        control = ControlServer(instance.socket_path, self._answer, self._selector, self._take_back)
        self._cleanup.append(control.close)
        self._run_files = RunFiles(instance, control)

    def _facts(self, event: Event) -> dict[str, str]:
        table, now = self._memory.peer_table, time.monotonic_ns()
        return facts_of(event, self.config, self._role, self._device, table, now)

    def _write_plan(self) -> None:
        self._use(self._prepare_plan(self.config, self._role.credentials))

    def _prepare_plan(self, config: Config, credentials: TlsSettings) -> PreparedPlan:
        role = self._role
        return self._run.prepare_plan(config, credentials, self._device, role.capacity, role.known_servers)

    def _renew_plan(self) -> None:
        """Let workers that start from now on know where a client has found its server meanwhile."""
        if self._run.settings.known_servers != self._role.known_servers:
            with suppress(LocalError):  # the old plan is as good as before
                self._write_plan()

    def _use(self, plan: PreparedPlan) -> None:
        self._run.use(plan)
        self._role.expect(self._run.settings)

    def _make_workers(self) -> None:
        workers = self._run.plan.workers
        pinned = cores.assign([(w.name, w.lane) for w in workers], self.config.affinity, cores.available())
        channels = WorkerChannels(self._role.answer_request, self._selector, self._run.failures)
        self._cleanup.append(channels.close_all)
        self._role.tell_workers = channels.send_to_all
        spares = Spares(
            [w.kind for w in workers], self.config.mode, self.config.spares, self._selector, self._precedence
        )
        self._workers = Workers(
            self._run, self._device, self._listener, pinned, spares, channels, self._selector, news=self
        )
        self._cleanup.append(self._workers.kill_all)
        self._lifecycle = Lifecycle([(w.name, w.kind) for w in workers], self._limits())
        self._rolling = Rolling(spares, self._replace)
        self._exporter.configure_prepared()
        self._cleanup.append(self._exporter.close)
        self._publisher = Publisher(
            self._run,
            self._lifecycle,
            self._workers,
            self._rolling,
            self._role,
            self._device,
            self._exporter,
            self._hooks.status,
        )
        self._publisher.use(self._memory)

    def _limits(self) -> Limits:
        config = self.config
        policy = RestartPolicy(config.restart_intensity, config.restart_period)
        return Limits(int(config.heartbeat_timeout * 1e9), int(config.drain_timeout * 1e9), policy)

    def _tear_down(self) -> None:
        while self._cleanup:
            try:
                self._cleanup.pop()()
            except OSError as error:
                LOG.error("clean-up failed: %s", error)
        self._selector.close()

    # -- the loop

    def _step(self) -> None:
        events = self._selector.select(TICK)
        self._carry_out(self._lifecycle.look_at_clock(time.monotonic_ns()))
        for key, _ in events:
            # an earlier callback may have closed the descriptor, and another one may have got its number
            if self._selector.get_map().get(key.fd) is key:
                self._survive("an event", key.data)
        now = time.monotonic_ns()
        pages = self._memory.scoreboard.pages
        heartbeats = {name: pages[p.plan.page].oldest_heartbeat() for name, p in self._workers.processes.items()}
        self._carry_out(self._lifecycle.tick(heartbeats, now))
        is_running = self._lifecycle.phase is Phase.RUNNING
        if not self._lifecycle.is_stopping:
            self._survive("the care for the device", lambda: self._device.repair(now))
            self._survive("the care for the clamp", lambda: self._clamp.tick(now))
            self._survive("the care for the run directory", lambda: self._run_files.check(now))
            self._survive("the care for the peers", lambda: self._role.tick(now))
            self._survive("the rolling restart", lambda: self._rolling.tick(is_running, now))
            may_spare = is_running and not self._rolling.is_under_way
            self._survive("the care for spares", lambda: self._workers.spares.tick(may_spare, now))
            if is_running:
                self._survive("the care for the exporter", lambda: self._exporter.tick(now))
            if lost := self._memory.lost_names(now):
                self._rebuild(lost)  # without a data plane there is nothing to survive for
        self._survive("the hooks", lambda: self._hooks.tick(now))
        self.events.tick(now)
        self._publisher.tick(now)
        log.tick()
        if is_running:
            self._watchdog.feed(now)
            self._survive("the status line", lambda: self._service_status.tick(self._memory, self._role.status, now))

    def _survive(self, doing: str, act: Callable[[], object]) -> None:
        """Nothing that happens here ends the instance."""
        try:
            act()
        except Exception:
            self._run.failures.record(doing)
            time.sleep(FAILURE_PAUSE)

    def _handle_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
        elif self._lifecycle.is_stopping:
            LOG.warning("stopping: asked to stop again; workers are killed without a drain")
            self._carry_out(self._lifecycle.stop_without_drain())
            self._hooks.end_all()
        else:
            self._carry_out(self._lifecycle.stop(0, f"signal {signal.Signals(number).name}"))

    def _rebuild(self, lost: list[str]) -> None:
        """Make the shared memory anew, under other names, and replace all workers. Device and listener stay."""
        text = (
            f"{len(lost)} names of this run are gone from /dev/shm, such as {lost[0]}: a cleaner of temporary files, "
            "or RemoveIPC of systemd-logind, has removed them. Making them anew, and replacing all workers"
        )
        self.events.record("memory-lost", text=text)
        self._worker_events.expect(self._workers.processes, "the shared memory was made anew")
        self._carry_out(self._lifecycle.replace_at_once(time.monotonic_ns()))
        self._workers.await_deaths()
        kept = self._memory.kept()
        self._role.accountant.settle()
        self._memory.close()  # first: there may not be room for both
        self._run.renew_names()
        self._write_plan()
        self._memory = SharedMemory(self._run.plan)
        self._memory.restore(kept)
        self.events.use(self._memory.event_log)
        self._publisher.use(self._memory)
        self._exporter.renew()
        self._role.start(self._memory.peer_table, self._device)
        for worker in self._run.plan.workers:
            self._workers.processes[worker.name].plan = worker

    # -- what the life cycle decides

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(name):
                    self._renew_plan()
                    self._workers.start(name)
                case Terminate(name):
                    self._workers.send(name, signal.SIGTERM)
                case Abort(name):
                    self._worker_events.hung(action)
                    self._workers.send(name, signal.SIGABRT)
                    self._workers.send(name, signal.SIGCONT)  # a stopped process aborts once it continues
                case Kill(name):
                    self._workers.send(name, signal.SIGKILL)
                case ReportDeath():
                    self._worker_events.died(action)
                case ReportPause(missed):
                    text = f"the supervisor did not run for {missed / 1e9:.1f} s; heartbeats begin anew"
                    self.events.record("paused", text=text)
                case ReportRunning():
                    addresses = ", ".join(map(str, self.config.tunnel_interfaces)) or "address from the server"
                    self.events.record("up", text=f"{addresses} on {self.config.tun_name}")
                    notify("READY=1")
                case ReportStartFailed():
                    self._worker_events.start_failed(action)
                case ReportStopping(exit_status, reason):
                    self.events.record("failing" if exit_status else "stopping", text=reason)
                    self._rolling.cancel()
                    self._workers.spares.discard()
                    notify("STOPPING=1")

    def _replace(self, name: str) -> None:
        self._carry_out(self._lifecycle.restart([name], time.monotonic_ns()))

    # -- news of a worker

    def on_ready(self, name: str) -> None:
        self._lifecycle.became_ready(name, time.monotonic_ns())
        if self._lifecycle.workers[name].state is WorkerState.RUNNING:
            self._worker_events.ready(name, self._workers.processes[name].pid)

    def on_died(self, name: str, status: int) -> None:
        self._carry_out(self._lifecycle.died(name, status, time.monotonic_ns()))

    def on_unusable(self, name: str, reason: str) -> None:
        if self._lifecycle.workers[name].state is WorkerState.STARTING:
            self._carry_out(self._lifecycle.start_failed(name, reason, time.monotonic_ns()))
        else:  # it was to stop anyway
            self.on_died(name, -signal.SIGKILL)

    # -- commands

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request on the control socket, whatever happens."""
        try:
            return self._answer_command(request)
        except TunnelError as error:
            return {"ok": False, "error": str(error)}
        except Exception:
            return {"ok": False, "error": self._run.failures.record(f"the command {request.get('command')!r}")}

    def _take_back(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """A command has ended before it got its answer."""
        if answer.get("ok"):
            self._survive("taking back a command", lambda: self._role.take_back(request))

    def _answer_command(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("command"):
            case "status":
                return self._publisher.status()
            case "stop":
                self._carry_out(self._lifecycle.stop(0, "asked by the control socket"))
                return {"ok": True, "pid": os.getpid()}
            case "restart":
                return self._restart(request.get("worker") or "", rolling=bool(request.get("rolling")))
            case "reload":
                return self._reload()
            case "configuration":
                return {"ok": True, "configuration": json.loads(to_json(self.config))}
        answer = self._role.run_command(request)
        return answer or {"ok": False, "error": f"unknown command {request.get('command')!r}"}

    def _restart(self, name: object, rolling: bool = False) -> dict[str, Any]:
        """Replace workers by ones with the program that is on disk now, all at once or one after the other."""
        names = [each for each in self._workers.processes if not name or each == name]
        if not names:
            return {"ok": False, "error": f'no worker "{name}": there are {", ".join(self._workers.processes)}'}
        if self._lifecycle.is_stopping:
            return {"ok": False, "error": "the instance is stopping: no worker is replaced"}
        if self._rolling.is_under_way:
            return {"ok": False, "error": "a rolling restart is under way"}
        now = time.monotonic_ns()
        if rolling:
            kinds = [(each, self._lifecycle.workers[each].kind) for each in names]
            self._rolling.begin(kinds, READY_NS + self._lifecycle.limits.drain_ns + GRACE_NS, now)
        else:
            self._workers.spares.discard()
            self._carry_out(self._lifecycle.restart(names, now))
        return {"ok": True, "workers": names}

    def _reload(self) -> dict[str, Any]:
        """Read everything again: the configuration, and the files of keys and certificates that it names."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            return self._read_again().answer()
        finally:
            notify("READY=1")

    def _read_again(self) -> Reload:
        reload = Reload(self.config, self._reread)
        if self._lifecycle.is_stopping:
            reload.error = "the instance is stopping"
        if not reload.error:
            try:
                credentials = self._role.prepare_reload(reload.config)
                self._exporter.prepare(reload.config)
                self._apply(reload, self._prepare_plan(reload.config, credentials))
                reload.problems += self._role.problems
            except TunnelError as error:
                reload.error = str(error)
            except Exception:
                reload.error = self._run.failures.record("the reload")
        if reload.error:
            self.events.record("reload-refused", text=reload.error)
        return reload

    def _apply(self, reload: Reload, plan: PreparedPlan) -> None:
        """All that can refuse has been asked, but for the kernel. Each thing that it refuses costs itself alone, is
        said, and is tried again later: the new configuration is in force."""
        self._role.apply_reload()
        self.config = reload.config
        self._use(plan)
        self._lifecycle.limits = self._limits()
        log.start(self.config.name, "supervisor", self.config.log_level, self.config.log_format)
        self.events.record("reloaded", text=", ".join(reload.changed) or "no setting has changed")
        reload.problems += self._device.configure(self.config)
        reload.problems += self._clamp.apply(self.config.mss_clamp)
        reload.problems += self._exporter.apply()
        self._workers.spares.enable(self.config.spares)
        self._hooks.configure(self.config)
        if reload.replaces_workers:
            self._worker_events.expect(self._workers.processes, "for the new settings")
            self._carry_out(self._lifecycle.restart(self._workers.processes, time.monotonic_ns()))
            return
        lost = self._workers.channels.send_to_all({"settings": list(self._run.settings)})
        if lost:  # they would go on with the old settings for ever; their successors read the new plan
            LOG.warning("%s did not take the new settings: replaced", ", ".join(lost))
            self._carry_out(self._lifecycle.restart(lost, time.monotonic_ns()))
