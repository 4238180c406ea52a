"""The process of the exporter: spawned, watched over a pidfd and a channel, killed and reaped.

It inherits the listening socket and a file with its settings. It writes a byte to its channel every two seconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

from pipeline.supervisor.processes.spawn import spawn

NEWS_BYTES = 256


class ExporterProcess:
    """From its spawn until it is reaped. OSError if it cannot be made; nothing is left then."""

    def __init__(self, listener: socket.socket, settings: dict[str, Any]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.channel.setblocking(False)
        plan = -1
        try:
            with theirs:
                plan = os.memfd_create("exporter", os.MFD_CLOEXEC)
                os.write(plan, json.dumps(settings).encode())
                fds = {"--listener": listener.fileno(), "--plan": plan, "--channel": theirs.fileno()}
                words = [str(word) for pair in fds.items() for word in pair]
                self._popen, self.pidfd = spawn(
                    "pipeline.exporter", ["--parent", str(os.getpid()), *words], list(fds.values())
                )
        except OSError:
            self.channel.close()
            raise
        finally:
            if plan >= 0:
                os.close(plan)

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
