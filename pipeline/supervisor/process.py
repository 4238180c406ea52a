"""A worker process as the supervisor sees it.

    stopped -> starting -> running -> stopping -> stopped
                  |            |
                  +-> backoff <+      died; starts again at `due`
                  +-> failed  <+      given up

Only the supervisor's main thread spawns: PR_SET_PDEATHSIG fires when the spawning *thread* ends.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import psutil

from pipeline.runtime.plan import WorkerPlan

STOPPED, STARTING, RUNNING, STOPPING, BACKOFF, FAILED = (
    "stopped",
    "starting",
    "running",
    "stopping",
    "backoff",
    "failed",
)
ALIVE = (STARTING, RUNNING, STOPPING)


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: a server has one for each connection, and workers inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Process:
    """One worker over all its generations. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, plan: WorkerPlan, cores: list[int]) -> None:
        self.plan = plan
        self.cores = cores
        self.state = STOPPED
        self.pid = 0
        self.restarts = 0
        self.due = 0
        self.started = 0
        self.ready_at = 0
        self.term_at = 0
        self.abort_at = 0
        self.replace = False  # its stop was asked for by a restart: start it again, uncounted
        self.pidfd = -1
        self.ready_fd = -1
        self._popen: subprocess.Popen | None = None
        self._usage: psutil.Process | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    def spawn(self, plan_fd: int, options: dict[str, int], now: int) -> None:
        """Start the next generation. `options`: further file descriptors, by option name."""
        ready, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fds = [plan_fd, write_end, *options.values()]
        argv = [
            sys.executable,
            "-I",
            "-m",
            "workers",
            self.name,
            "--plan-fd",
            str(plan_fd),
            "--ready-fd",
            str(write_end),
            "--parent",
            str(os.getpid()),
        ]
        for option, fd in options.items():
            argv += [f"--{option}", str(fd)]
        try:
            self._popen = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError:
            os.close(ready)
            raise
        finally:
            os.close(write_end)
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.ready_fd = ready
        self.state = STARTING
        self.started = now
        self.ready_at = self.term_at = self.abort_at = 0
        if self.cores:
            try:
                os.sched_setaffinity(self.pid, self.cores)
            except OSError:
                pass  # it died at once, or the core went away: not a reason to stop the tunnel
        self._usage = None

    def became_ready(self) -> bool:
        """Take the readiness byte. False if the pipe was closed without one: the worker is about to be found dead."""
        ready = bool(os.read(self.ready_fd, 1))
        self.close_ready()
        return ready

    def close_ready(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def reap(self) -> int:
        """Exit status of the dead process, negative for a signal."""
        status = self._popen.wait()
        os.close(self.pidfd)
        self.pidfd = -1
        self.pid = self.term_at = self.abort_at = 0
        self.close_ready()
        return status

    def send(self, number: int) -> None:
        """Send a signal through the pidfd: never to a process that took over the number."""
        if self.pidfd < 0:
            return  # reaped
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # dead, not yet reaped

    def usage(self) -> tuple[float, int]:
        """CPU percent since the last call, and resident bytes; zeros when it is not running."""
        if not self.pid:
            return 0.0, 0
        try:
            if self._usage is None:
                self._usage = psutil.Process(self.pid)
            return self._usage.cpu_percent(), self._usage.memory_info().rss
        except psutil.Error:
            return 0.0, 0
