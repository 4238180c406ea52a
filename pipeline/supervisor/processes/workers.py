"""The processes of all workers: started, told what they are, signalled, reaped; and the spares that take over.

    start(name)     a spare becomes the worker; if there is none, a new process does, once it has imported everything
    WorkerNews      what the owner hears

A worker gets its assignment when its predecessor has been reaped. So no cursor in shared memory ever has two owners.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from pipeline.log import LOG
from pipeline.supervisor.kernel.datagram_carriers import DatagramCarriers
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.processes.process import Process
from pipeline.supervisor.processes.spare import SpareState
from pipeline.supervisor.processes.spares import Spares
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.run.run import Run
from pipeline.system import task_limit


class WorkerNews(Protocol):
    """The owner's answers to what happens to a worker."""

    def on_ready(self, name: str) -> None: ...

    def on_died(self, name: str, status: int) -> None: ...

    def on_unusable(self, name: str, reason: str) -> None:
        """The worker's process could not be made, or was of no use and has been ended."""


class Workers:
    """`processes` by the name of the worker. `listener`: a server's listening socket; `bridged`: that for its own
    bridge, when a worker starts; `datagrams`: the sockets for them."""

    def __init__(
        self,
        run: Run,
        device: TunDevice,
        listener: socket.socket | None,
        pinned: dict[str, list[int]],
        spares: Spares,
        channels: WorkerChannels,
        selector: selectors.BaseSelector,
        news: WorkerNews,
        bridged: Callable[[], socket.socket | None] = lambda: None,
        datagrams: DatagramCarriers | None = None,
    ) -> None:
        self.processes = {plan.name: Process(plan, pinned.get(plan.name, [])) for plan in run.plan.workers}
        self.spares = spares
        self.channels = channels
        self._run = run
        self._device = device
        self._listener = listener
        self._bridged = bridged
        self._datagrams = datagrams
        self._selector = selector
        self._news = news
        self._assigned = 0  # number of the latest process that was made a worker: in the nonces of its blocks

    def start(self, name: str) -> None:
        process = self.processes[name]
        try:
            spare = self.spares.take(process.plan.kind)
        except OSError as error:
            self._news.on_unusable(name, task_limit.explain(error))
            return
        process.adopt(spare)
        self._watch(spare.pidfd, lambda: self._died(process))
        self._watch(spare.channel, lambda: self._read_news(process))
        LOG.debug("%s started: pid %d, %s", name, spare.pid, spare.state)
        if spare.state is SpareState.WAITING:
            self._assign(process)

    def send(self, name: str, number: int) -> None:
        """Send a signal to a worker, if it has a process."""
        self.processes[name].send(number)

    def await_deaths(self) -> None:
        """Wait for the end of all workers, which have been killed."""
        for process in self.processes.values():
            if process.pid:
                self._died(process)

    def kill_all(self) -> None:
        """Leave no process."""
        self.spares.discard()
        for process in self.processes.values():
            if process.pid:
                process.send(signal.SIGKILL)
                self._reap(process)

    def _watch(self, source: int | socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, callback)

    def _assign(self, process: Process) -> None:
        fds, channel = {"plan": self._run.plan_fd(process.plan.kind)}, -1
        try:
            if process.plan.kind == "tun":
                fds["tun"] = self._device.fds[process.plan.lane]
                if self._run.seal_memory is not None:
                    fds |= self._run.seal_memory.fds(process.plan.lane)
                if self._run.reach_memory is not None:
                    fds |= self._run.reach_memory.fds()
            elif process.plan.kind == "tcp":
                fds["supervisor"] = channel = self.channels.open_channel(process.name)
                if self._listener is not None:
                    fds["listener"] = self._listener.fileno()
                if (bridged := self._bridged()) is not None:
                    fds["bridged"] = bridged.fileno()
            elif process.plan.kind == "dgram" and self._datagrams is not None and self._run.datagram_memory is not None:
                fds |= self._datagrams.fds(process.plan.lane) | self._run.datagram_memory.fds(process.plan.lane)
            self._assigned += 1
            process.assign(self._assigned, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died, and its pidfd says so
        except OSError as error:
            self._end_unusable(process, error.strerror or str(error))
        finally:
            if channel >= 0:
                os.close(channel)

    # -- news of a process

    def _read_news(self, process: Process) -> None:
        assert process.spare is not None
        match process.spare.read_news():
            case SpareState.WAITING:
                self._assign(process)
            case SpareState.FOREIGN:
                self._end_unusable(process, "the program on disk was replaced by one that does not fit this run")
            case SpareState.READY:
                self._selector.unregister(process.spare.channel)
                self._news.on_ready(process.name)
            case None:
                self._selector.unregister(process.spare.channel)  # it has died: _died comes next

    def _end_unusable(self, process: Process, reason: str) -> None:
        process.send(signal.SIGKILL)
        self._reap(process)
        self._news.on_unusable(process.name, reason)

    def _died(self, process: Process) -> None:
        self._news.on_died(process.name, self._reap(process))

    def _reap(self, process: Process) -> int:
        assert process.spare is not None
        for source in (process.spare.pidfd, process.spare.channel):
            if source in self._selector.get_map():
                self._selector.unregister(source)
        return process.reap()
