"""A process beside the workers, exporter or bridge: spawned, watched over a pidfd and a channel, killed, reaped.

It inherits a listening socket and a file with its plan. It writes a byte to its channel every two seconds.
"""

from __future__ import annotations

import os
import signal
import socket

from pipeline.observe.process_stat import HALTED, read_process
from pipeline.supervisor.processes.spawn import spawn

NEWS_BYTES = 256
SECOND = 1_000_000_000
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

    def has_written(self) -> bool | None:
        """Whether it has given a sign of life since the last call; None if it has closed its channel."""
        try:
            return True if self.channel.recv(NEWS_BYTES) else None
        except BlockingIOError:
            return False
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
