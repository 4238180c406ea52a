"""The process of a worker: spawned, signalled through its pidfd, reaped.

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


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as possible: a server has one for each connection, and workers inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


INHERITED_VARIABLES = (
    *("LANG", "LC_", "TZ", "PATH", "LD_", "PYTHON", "GLIBC_", "MALLOC_"),
    *("OPENSSL_", "SSL_CERT_", "RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES"),
)
"""Beginnings of the environment variables that a worker gets. Others may be secrets of the service's, or ways to its
service manager."""


class Process:
    """The present process of a worker, if there is one: `pid` is 0 and both descriptors are -1 if not."""

    def __init__(self, plan: WorkerPlan, cores: list[int]) -> None:
        self.plan = plan
        self.cores = cores  # it is pinned to them; [] for none
        self.pid = 0
        self.pidfd = -1  # readable once the process is dead
        self.ready_fd = -1  # readable once the worker is ready, or dead before that
        self._popen: subprocess.Popen[bytes] | None = None
        self._usage: psutil.Process | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    def spawn(self, plan_fd: int, fds: dict[str, int]) -> None:
        """Start the next process. `fds`: the descriptors that it inherits besides, by the option that names each."""
        ready, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        options = {"plan-fd": plan_fd, "ready-fd": write_end, **fds}
        argv = [sys.executable, "-I", "-m", "workers", self.name, "--parent", str(os.getpid())]
        for option, fd in options.items():
            argv += [f"--{option}", str(fd)]
        try:
            self._popen = subprocess.Popen(
                argv,
                pass_fds=list(options.values()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name.startswith(INHERITED_VARIABLES)},
            )
        except OSError:
            os.close(ready)
            raise
        finally:
            os.close(write_end)
        try:
            self.pidfd = os.pidfd_open(self._popen.pid)
        except OSError:
            self._popen.kill()
            self._popen.wait()
            os.close(ready)
            raise
        self.pid = self._popen.pid
        self.ready_fd = ready
        if self.cores:
            try:
                os.sched_setaffinity(self.pid, self.cores)
            except OSError:
                pass  # it died at once, or the core went away: not a reason to stop the tunnel
        self._usage = None

    def read_readiness(self) -> bool:
        """Whether the worker is ready; to be called once `ready_fd` is readable. False: the worker has just died."""
        ready = bool(os.read(self.ready_fd, 1))
        self._close_ready()
        return ready

    def _close_ready(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def reap(self) -> int:
        """Wait for the end of the process. Its exit status, negative for a signal."""
        assert self._popen is not None, f"{self.name} has not been spawned"
        status = self._popen.wait()
        os.close(self.pidfd)
        self.pidfd = -1
        self.pid = 0
        self._close_ready()
        return status

    def send(self, number: int) -> None:
        """Send a signal, through the pidfd: it never reaches another process that was given the old pid."""
        if self.pidfd < 0:
            return  # reaped
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # dead, not yet reaped

    def usage(self) -> tuple[float, int]:
        """CPU percent since the last call, and resident bytes; zeros if there is no process."""
        if not self.pid:
            return 0.0, 0
        try:
            if self._usage is None:
                self._usage = psutil.Process(self.pid)
            return self._usage.cpu_percent(), self._usage.memory_info().rss
        except psutil.Error:
            return 0.0, 0
