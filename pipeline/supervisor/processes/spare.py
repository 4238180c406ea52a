"""A spare: a process of one kind that waits for its assignment. Every worker begins as one.

Only the supervisor's main thread spawns: PR_SET_PDEATHSIG fires when the spawning *thread* ends. The other end of the
channel, and its messages: `pipeline.runtime.assignment`.
"""

from __future__ import annotations

import os
import signal
import socket
from enum import StrEnum

from pipeline.runtime.assignment import FORMAT, MESSAGE_BYTES, READY, message_of
from pipeline.supervisor.processes.spawn import spawn


class SpareState(StrEnum):
    """How far a process has come."""

    IMPORTING = "importing"
    WAITING = "waiting"  # for its assignment
    FOREIGN = "foreign"  # it understands other plans: the program on disk has been replaced
    ASSIGNED = "assigned"
    READY = "ready"


class Spare:
    """The process, from its spawn until it is reaped. OSError if it cannot be made; nothing is left then."""

    def __init__(self, kind: str, mode: str) -> None:
        self.kind = kind
        self.state = SpareState.IMPORTING
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.channel.setblocking(False)
        fd = theirs.fileno()
        words = [kind, mode, "--parent", str(os.getpid()), "--channel", str(fd)]
        try:
            with theirs:
                self._popen, self.pidfd = spawn("workers", words, [fd])
        except OSError:
            self.channel.close()
            raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    def read_news(self) -> SpareState | None:
        """The state after the news, to be called once the channel is readable. None: the process has just died."""
        try:
            news = self.channel.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return self.state
        except ConnectionResetError:
            return None
        if not news:
            return None
        if self.state is SpareState.IMPORTING:
            self.state = SpareState.WAITING if news == FORMAT else SpareState.FOREIGN
        elif news == READY:
            self.state = SpareState.READY
        return self.state

    @property
    def is_dead(self) -> bool:
        """Dead, and not reaped yet."""
        return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def assign(self, worker: str, number: int, fds: dict[str, int]) -> None:
        """Make it this worker. OSError if it is dead.

        `number`: of the process, higher than that of any before it. `fds` are copied to it: "plan", and fields of
        WorkerFds.
        """
        data, descriptors = message_of(worker, number, fds)
        socket.send_fds(self.channel, [data], descriptors)
        self.state = SpareState.ASSIGNED

    def send(self, number: int) -> None:
        """Send a signal, through the pidfd: it never reaches another process that was given the old pid."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # dead, not yet reaped

    def reap(self) -> int:
        """Wait for the end of the process. Its exit status, negative for a signal."""
        status = self._popen.wait()
        os.close(self.pidfd)
        self.channel.close()
        return status
