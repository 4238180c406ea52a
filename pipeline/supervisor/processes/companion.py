"""A process beside the workers, exporter or bridge: spawned, watched over a pidfd and a channel, killed, reaped.

    CompanionProcess    one process, from its spawn until it is reaped
    Companion           the care for it: there is one process or none, and its owner hears how it is

It inherits a listening socket and a file with its plan. It writes a report to its channel every two seconds, of a byte
at least, as a sign of life.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from contextlib import suppress
from typing import Protocol

from pipeline.log import LOG
from pipeline.observe.process_stat import HALTED, read_process
from pipeline.supervisor.processes.spawn import spawn

NEWS_BYTES = 256
SECOND = 1_000_000_000
PAUSED_NS = SECOND  # between two looks at the clock: we have not run ourselves, so that its silence means nothing
STOPPED_NS = 5 * SECOND  # without a sign of life, due every two seconds, of a process that somebody has stopped
HANG_NS = 20 * SECOND  # of any other: its priority may be low, so it may wait for a core; workers have 5 s by default


class CompanionProcess:
    """From its spawn until it is reaped. OSError if it cannot be made; nothing is left then. `plan`: a text."""

    def __init__(self, module: str, listener: socket.socket, plan: str) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.channel.setblocking(False)
        file = -1
        try:
            with theirs:
                file = os.memfd_create(module, os.MFD_CLOEXEC)
                os.write(file, plan.encode())
                fds = {"--listener": listener.fileno(), "--plan": file, "--channel": theirs.fileno()}
                words = [str(word) for pair in fds.items() for word in pair]
                self._popen, self.pidfd = spawn(module, ["--parent", str(os.getpid()), *words], list(fds.values()))
        except OSError:
            self.channel.close()
            raise
        finally:
            if file >= 0:
                os.close(file)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def read_reports(self) -> bytes | None:
        """The reports since the last call; None if it has closed its channel."""
        try:
            return self.channel.recv(NEWS_BYTES) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def kill(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # dead, not yet reaped

    def reap(self) -> int:
        """Wait for its end. The exit status, negative for a signal."""
        status = self._popen.wait()
        os.close(self.pidfd)
        self.channel.close()
        return status


def hang(pid: int, silent_ns: int) -> str:
    """Why a process that has been silent for so long is to be replaced; "" if it is not."""
    if silent_ns > HANG_NS:
        return f"no sign of life for {HANG_NS // SECOND} s"
    found = read_process(pid) if silent_ns > STOPPED_NS else None
    if found is None or found.state not in HALTED:
        return ""
    return f"no sign of life for {STOPPED_NS // SECOND} s, since it is {found.state}"


class CompanionNews(Protocol):
    """The owner's answers to what a companion does."""

    def on_sign(self, reports: bytes, now: int) -> None:
        """It has given a sign of life."""

    def on_died(self, reason: str, status: int, now: int) -> None:
        """It has ended, and its owner has not asked for that. `status`: negative for a signal."""


class Companion:
    """`name`: of its process, in the log; `module`: what it runs. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, name: str, module: str, selector: selectors.BaseSelector, news: CompanionNews) -> None:
        self._name = name
        self._module = module
        self._selector = selector
        self._news = news
        self._process: CompanionProcess | None = None
        self._ticked_ns = 0
        self._alive_ns = 0  # its last sign of life
        self._killed_for = ""

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._process.pid if self._process is not None else 0

    def start(self, listener: socket.socket, plan: str, now: int) -> int:
        """Its process id. OSError if no process can be made."""
        process = CompanionProcess(self._module, listener, plan)
        self._process, self._alive_ns, self._killed_for = process, now, ""
        self._selector.register(process.pidfd, selectors.EVENT_READ, self._died)
        self._selector.register(process.channel, selectors.EVENT_READ, lambda: self._read_news(process))
        return process.pid

    def tick(self, now: int) -> None:
        """Kill it if it hangs."""
        paused = now - self._ticked_ns > PAUSED_NS
        self._ticked_ns = now
        if self._process is None:
            return
        if paused:
            self._alive_ns = now
        elif reason := hang(self._process.pid, now - self._alive_ns):
            LOG.warning("%s: %s, it is killed", self._name, reason)
            self._killed_for, self._alive_ns = reason, now
            self._process.kill()

    def end(self) -> None:
        """Leave no process."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def _read_news(self, process: CompanionProcess) -> None:
        reports = process.read_reports()
        if reports is None:
            self._selector.unregister(process.channel)  # it has died, or will be found to hang
        elif reports:
            self._alive_ns = time.monotonic_ns()
            self._news.on_sign(reports, self._alive_ns)

    def _died(self) -> None:
        status = self._forget()
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        self._news.on_died(self._killed_for or how, status, time.monotonic_ns())

    def _forget(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        self._selector.unregister(process.pidfd)
        with suppress(KeyError):
            self._selector.unregister(process.channel)
        return process.reap()
