"""The supervisor: starts the workers in order, keeps them alive, stops them in reverse, leaves no trace.

It owns what must outlive a worker: the lock, the TUN device, the listening socket, the shared memory. One thread,
one selector: signals, deaths (pidfd), readiness (a pipe per worker), the control socket, the tcp workers' desks, and a
clock.

    starting -> running <-> degraded -> stopping -> (exit status)

What a dead worker leads to is decided by `restart`, where it runs by `cores`, what a device needs by `tun`, who may
connect by `server_end`, and what the server says by `client_end`.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable

from pipeline import log
from pipeline.config import Config
from pipeline.errors import ConfigError, LocalError
from pipeline.log import LOG
from pipeline.policy.restart import EX_CONFIG, RestartAt, RestartPolicy
from pipeline.runtime import privileges, topology
from pipeline.supervisor import cores, status
from pipeline.supervisor.client_role import ClientRole
from pipeline.supervisor.control_socket import ControlServer
from pipeline.supervisor.instance import Instance
from pipeline.supervisor.listener import listen
from pipeline.supervisor.mss_clamp import MssClamp
from pipeline.supervisor.process import (
    ALIVE,
    BACKOFF,
    FAILED,
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    Process,
    raise_descriptor_limit,
)
from pipeline.supervisor.reload import Reload
from pipeline.supervisor.sd_notify import notify, watchdog_seconds
from pipeline.supervisor.server_role import ServerRole
from pipeline.supervisor.shared_memory import SharedMemory
from pipeline.supervisor.tun_device import TunDevice
from pipeline.supervisor.worker_channels import WorkerChannels
from pipeline.supervisor.worker_settings import LIMITS, new_session, worker_settings

TICK = 0.1  # seconds between looks at clocks, heartbeats and the device
READY_NS = 10_000_000_000  # a worker that is not ready by then is hung
ABORT_NS = 1_000_000_000  # from SIGABRT, which leaves a stack in the log, to SIGKILL
GRACE_NS = 1_000_000_000  # beyond drain_timeout, from SIGTERM to SIGKILL

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """One run of one instance. `run()` returns the exit status; `reread` loads the configuration anew; `key`: a
    client's that came with an invitation."""

    def __init__(self, config: Config, reread: Callable[[], Config], key: bytes = b"") -> None:
        self.config = config
        self._key = key
        self._reread = reread
        self._state = "starting"
        self._exit_status = 0
        self._since = time.monotonic_ns()
        self._stack: list[Callable[[], None]] = []  # what to undo, last first
        self._session = new_session()
        self._policy = RestartPolicy(config.restart_intensity, config.restart_period)
        self._selector = selectors.DefaultSelector()
        self._watchdog = watchdog_seconds()
        self._next_watchdog = 0.0

    def run(self) -> int:
        """Start, supervise, stop. TunnelError if it cannot start; nothing is left behind either way."""
        try:
            self._set_up()
            LOG.info("starting: %s, %d lane(s), run %s", self.config.mode, self.config.lanes, self.plan.run_id)
            while self._state != "stopped":
                self._step()
            return self._exit_status
        finally:
            self._tear_down()

    # -- set up and tear down

    def _set_up(self) -> None:
        config = self.config
        raise_descriptor_limit()
        self._take_signals()
        instance = Instance(config.name)
        instance.acquire()
        self._stack.append(instance.release)
        choice = privileges.choose(config.user)
        self._account = choice.account
        LOG.info("%s", choice.text)
        is_server = config.mode == "server"
        self._end = ServerRole(config) if is_server else ClientRole(config, self._key)
        self._device = TunDevice(config)
        self._stack.append(self._device.close)
        self._clamp = MssClamp(config.tun_name, config.name)
        self._stack.append(self._clamp.remove)
        self._guard_forwarding()
        self._listener: socket.socket | None = None
        if is_server:
            self._listener = listen(config.listen_endpoint)
            self._stack.append(self._listener.close)
        self._make_plan(secrets.token_hex(4))
        self._stack.append(lambda: os.close(self._plan_fd))
        self._memory = SharedMemory(self.plan)
        self._stack.append(self._memory.unlink)
        self._end.open(self._memory.peers, self._device)
        placed = cores.assign([(w.name, w.lane) for w in self.plan.workers], config.affinity, cores.available())
        self._processes = [Process(worker, placed.get(worker.name, [])) for worker in self.plan.workers]
        self._stack.append(self._kill_all)
        self._desks = WorkerChannels(self._end.answer, self._selector)
        self._stack.append(self._desks.close_all)
        self._control = ControlServer(instance.socket_path, self._answer, self._selector)
        self._stack.append(self._control.close)

    def _guard_forwarding(self) -> None:
        """See that what is forwarded into the tunnel fits it, or that nothing is left of a run that did."""
        trouble = self._clamp.install() if self.config.mss_clamp else self._clamp.remove()
        if trouble:
            LOG.warning("%s", trouble)

    def _make_plan(self, run: str) -> None:
        config = self.config
        settings = worker_settings(config, self._device.offloads, self._device.accepted, self._session, self._account)
        settings |= self._end.settings()
        code = None if config.fec == "off" else (config.fec_data, config.fec_parity)
        self.plan = topology.build(
            config.name,
            run,
            config.mode,
            config.lanes,
            code,
            config.ring_slots,
            config.slot_bytes,
            settings,
            self._end.capacity,
        )
        fd = os.memfd_create("plan", os.MFD_CLOEXEC)
        os.write(fd, self.plan.to_json().encode())
        self._plan_fd = fd

    def _take_signals(self) -> None:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        previous = signal.set_wakeup_fd(writer.fileno())

        def undo() -> None:
            signal.set_wakeup_fd(previous)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._selector.unregister(reader)
            reader.close()
            writer.close()

        self._selector.register(reader, selectors.EVENT_READ, lambda: self._signalled(reader))
        self._stack.append(undo)

    def _tear_down(self) -> None:
        while self._stack:
            try:
                self._stack.pop()()
            except OSError as error:
                LOG.error("while stopping: %s", error)
        self._selector.close()

    def _kill_all(self) -> None:
        for process in self._processes:
            if process.state in ALIVE:
                process.send(signal.SIGKILL)
                self._forget(process)
                process.reap()

    # -- the loop

    def _step(self) -> None:
        for key, _ in self._selector.select(TICK):
            if key.fd in self._selector.get_map():  # an earlier callback may have closed it
                key.data()
        now = time.monotonic_ns()
        self._start_due(now)
        self._check_heartbeats(now)
        if self._state == "stopping":
            self._stop_next(now)
        else:
            self._device.mend()
            self._settle(now)

    def _settle(self, now: int) -> None:
        running = all(process.state == RUNNING for process in self._processes)
        if running and self._state != "running":
            first = self._state == "starting"
            self._state = "running"
            if first:
                addresses = ", ".join(map(str, self.config.tunnel_interfaces)) or "address from the server"
                LOG.info("running: %s on %s", addresses, self.config.tun_name)
                notify("READY=1")
        elif not running and self._state == "running":
            self._state = "degraded"
        if self._watchdog and running and now / 1e9 >= self._next_watchdog:
            self._next_watchdog = now / 1e9 + self._watchdog
            notify("WATCHDOG=1")

    def _signalled(self, reader: socket.socket) -> None:
        for number in reader.recv(64):
            if number == signal.SIGHUP:
                self._reload()
            elif self._state == "stopping":
                LOG.warning("asked to stop again: stopping without a drain")
                for process in self._processes:
                    process.send(signal.SIGKILL)
            else:
                self._stop(0, f"signal {signal.Signals(number).name}")

    # -- starting

    def _start_due(self, now: int) -> None:
        if self._state == "stopping":
            return
        if self._state == "starting":  # in plan order, one ready before the next begins
            for process in self._processes:
                if process.state == STOPPED:
                    self._spawn(process, now)
                if process.state != RUNNING:
                    break
        for process in self._processes:
            if process.state == BACKOFF and process.due <= now:
                self._spawn(process, now)

    def _spawn(self, process: Process, now: int) -> None:
        options, desk = {}, -1
        try:
            if process.plan.kind == "tun":
                options["tun-fd"] = self._device.fds[process.plan.lane]
            elif process.plan.kind == "tcp":
                options["desk-fd"] = desk = self._desks.open(process.name)
                if self._listener is not None:
                    options["listen-fd"] = self._listener.fileno()
            process.spawn(self._plan_fd, options, now)
        except OSError as error:
            self._stop(1, f"{process.name} cannot be started: {error.strerror}")
            return
        finally:
            if desk >= 0:
                os.close(desk)
        LOG.debug("%s started: pid %d, generation %d", process.name, process.pid, process.restarts)
        self._selector.register(process.pidfd, selectors.EVENT_READ, lambda: self._died(process))
        self._selector.register(process.ready_fd, selectors.EVENT_READ, lambda: self._became_ready(process))

    def _became_ready(self, process: Process) -> None:
        self._selector.unregister(process.ready_fd)
        if process.became_ready() and process.state == STARTING:
            process.state = RUNNING
            process.ready_at = time.monotonic_ns()
            LOG.info("%s ready: pid %d", process.name, process.pid)

    # -- dying

    def _died(self, process: Process) -> None:
        now = time.monotonic_ns()
        lived = now - process.ready_at if process.ready_at else 0
        was, ended_by_us = process.state, bool(process.abort_at)
        self._forget(process)
        code = process.reap()
        if was == STOPPING or self._state == "stopping":
            process.state = STOPPED
            if process.replace:
                process.replace = False
                process.state, process.due = BACKOFF, now
                self._start_due(now)
            return
        LOG.error("%s died: %s", process.name, _describe(code, ended_by_us))
        decision = self._policy.died(process.name, code, lived, now)
        if isinstance(decision, RestartAt):
            process.state = BACKOFF
            process.due = decision.at
            process.restarts += 1
            self._start_due(now)
        else:
            process.state = FAILED
            self._stop(code if code == EX_CONFIG else 1, decision.why)

    def _forget(self, process: Process) -> None:
        for fd in (process.pidfd, process.ready_fd):
            if fd >= 0 and fd in self._selector.get_map():
                self._selector.unregister(fd)

    def _check_heartbeats(self, now: int) -> None:
        limit = int(self.config.heartbeat_timeout * 1e9)
        patience = int(self.config.drain_timeout * 1e9) + GRACE_NS
        for process in self._processes:
            if process.abort_at:
                if now - process.abort_at > ABORT_NS:
                    process.send(signal.SIGKILL)
            elif process.state == RUNNING:
                beat = max(process.ready_at, self._memory.scoreboard.pages[process.plan.page].oldest_heartbeat())
                if now - beat > limit:
                    self._abort(process, f"no heartbeat for {(now - beat) / 1e9:.1f} s", now)
            elif process.state == STOPPING and now - process.term_at > patience:
                process.send(signal.SIGKILL)
            elif process.state == STARTING and now - process.started > READY_NS:
                self._abort(process, "not ready in time", now)

    def _abort(self, process: Process, why: str, now: int) -> None:
        LOG.error("%s hangs (%s): ending it; its stack follows", process.name, why)
        process.abort_at = now
        process.send(signal.SIGABRT)
        process.send(signal.SIGCONT)  # a stopped one takes it, and leaves its stack, only once it goes on

    # -- stopping

    def _stop(self, exit_status: int, why: str) -> None:
        if self._state == "stopping":
            return
        LOG.info("stopping: %s", why) if exit_status == 0 else LOG.error("stopping: %s", why)
        notify("STOPPING=1")
        self._state = "stopping"
        self._exit_status = exit_status

    def _stop_next(self, now: int) -> None:
        """Stop kind by kind, in reverse start order, so that what was read is still sent."""
        alive = [process for process in self._processes if process.state in ALIVE]
        if not alive:
            self._state = "stopped"
            return
        for process in alive:
            if process.plan.kind == alive[-1].plan.kind and not process.term_at:
                self._terminate(process, now)

    def _terminate(self, process: Process, now: int) -> None:
        process.state = STOPPING
        process.term_at = now
        process.send(signal.SIGTERM)

    # -- the control plane

    def _answer(self, request: dict) -> dict:
        match request.get("command"):
            case "status":
                return status.snapshot(
                    self.plan,
                    self._state,
                    os.getpid(),
                    self._since,
                    self.config.tun_name,
                    self._processes,
                    self._memory,
                    time.monotonic_ns(),
                )
            case "stop":
                self._stop(0, "asked by the control socket")
                return {"ok": True, "pid": os.getpid()}
            case "restart":
                return self._restart(request.get("worker") or "")
            case "reload":
                return self._reload()
        answer = self._end.command(request)
        return answer or {"ok": False, "error": f"unknown command {request.get('command')!r}"}

    def _restart(self, name: str) -> dict:
        chosen = [p for p in self._processes if not name or p.name == name]
        if not chosen:
            known = ", ".join(p.name for p in self._processes)
            return {"ok": False, "error": f'no worker "{name}": there are {known}'}
        now = time.monotonic_ns()
        for process in chosen:
            if process.state == RUNNING:
                process.replace = True
                process.restarts += 1
                self._terminate(process, now)
        return {"ok": True, "workers": [process.name for process in chosen]}

    def _reload(self) -> dict:
        """Read everything again: the configuration, and the files of keys and certificates that it names."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        outcome = Reload(self.config, self._reread)
        if not outcome.error:
            try:
                self._end.prepare(outcome.config)
                self._device.route(outcome.config)
            except (ConfigError, LocalError) as error:
                outcome.error = str(error)
        if outcome.error:
            LOG.error("reload refused, the old configuration goes on: %s", outcome.error)
        else:
            self._apply(outcome)
        notify("READY=1")
        return outcome.answer()

    def _apply(self, outcome: Reload) -> None:
        self.config = outcome.config
        self._policy = RestartPolicy(self.config.restart_intensity, self.config.restart_period)
        log.start(self.config.name, "supervisor", self.config.log_level, self.config.log_format)
        LOG.info("reloaded: %s", ", ".join(outcome.changed) or "no setting has changed")
        self._end.apply()
        self._guard_forwarding()
        os.close(self._plan_fd)
        self._make_plan(self.plan.run_id)
        if outcome.workers_concerned:
            self._restart("")
        else:
            self._desks.tell({name: self.plan.settings[name] for name in ("tls", *LIMITS)})


def _describe(code: int, ended_by_us: bool) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return name + (" (out of memory?)" if -code == signal.SIGKILL and not ended_by_us else "")
