"""The congestion control that workers cannot have by themselves: modules are loaded, and sockets set, with our rights.

    configure(config)      load what the setting needs: the kernel does that when a socket asks for it
    prepare(listener)      accepted connections begin with the algorithm of the listening socket
    set_on(name, fd)       for a worker that the kernel has refused it

No setting of the kernel changes, so nothing is to be put back. A module that has been loaded stays: others may use it.

To look for a module the kernel starts modprobe, and we wait for that. So an algorithm that it does not have is asked
for seldom, however many connections, or whatever worker, want it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path

from pipeline.config import Config
from pipeline.log import LOG
from pipeline.policy.congestion import AUTO, CALM, COST_OF_LOSS, LOSSY, cure
from pipeline.transport.socket_options import congestion_control, first_congestion_control

HOST_DEFAULT = Path("/proc/sys/net/ipv4/tcp_congestion_control")

NO_LINGER = struct.pack("=ii", 0, 0)
AGAIN_NS = 10_000_000_000
NOT_PERMITTED = (
    "A route of the connections locks another one (`ip route`, congctl lock), or it is missing in the sysctl "
    "net.ipv4.tcp_allowed_congestion_control of this host."
)


class CongestionControl:
    """`notes`: for `status`, what cannot be had and how to get it."""

    def __init__(self, config: Config) -> None:
        self._missing: dict[str, int] = {}  # algorithms that cannot be had: errno(3)
        self._setting = ""
        self._given: set[str] = set()  # those of earlier settings, and those that routes gave to workers' sockets
        self._again_at: dict[str, int] = {}  # those that the kernel does not have: when it may be asked again
        self.configure(config)

    @property
    def notes(self) -> list[str]:
        return [_explained(name, error, self._setting) for name, error in self._missing.items()]

    def configure(self, config: Config) -> None:
        self._given |= self._known()  # workers of the setting before are still there
        self._setting = config.congestion
        self._missing.clear()
        self._again_at.clear()
        wanted = LOSSY if self._setting == AUTO else self._setting
        if wanted:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                self._set(probe, wanted)

    def prepare(self, listener: socket.socket) -> None:
        """Let the connections that this socket will accept begin with the right algorithm."""
        wanted = first_congestion_control(self._setting, _host_default())
        if wanted and wanted != congestion_control(listener):
            self._set(listener, wanted)

    def set_on(self, name: object, fd: int) -> None:
        """Set an algorithm that the setting knows on the TCP socket of a worker. ValueError for anything else."""
        if not isinstance(name, str) or name not in self._known():
            raise ValueError(f"congestion control {str(name)[:20]!r} of a worker: the setting knows no such name")
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            raise ValueError(f"congestion control {name}: what the worker has handed over is no socket") from None
        try:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
                raise ValueError(f"congestion control {name}: what the worker has handed over is no TCP socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)  # to close our descriptor takes no time
            self._given.add(congestion_control(sock))
            self._set(sock, name)
        finally:
            sock.detach()

    def _known(self) -> set[str]:
        """The algorithms that a worker may ask for."""
        setting = {LOSSY, CALM} if self._setting == AUTO else {self._setting}
        return (setting | self._given | {_host_default()}) - {""}

    def _set(self, sock: socket.socket, name: str) -> None:
        now = time.monotonic_ns()
        if now < self._again_at.get(name, 0):
            return
        try:
            _choose(sock, name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._again_at[name] = now + AGAIN_NS
            if self._missing.get(name) != error.errno:
                self._missing[name] = error.errno or 0
                LOG.warning("%s", _explained(name, error.errno or 0, self._setting))
        else:
            self._missing.pop(name, None)
            self._again_at.pop(name, None)


def _choose(sock: socket.socket, name: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def _host_default() -> str:
    try:
        return HOST_DEFAULT.read_text().strip()
    except OSError:
        return ""  # no /proc


def _explained(name: str, error: int, setting: str) -> str:
    if setting != AUTO:
        cost = "connections use what the host has"
    elif name == LOSSY:
        cost = COST_OF_LOSS
    else:
        cost = "connections pace themselves, which costs a fast path up to a quarter"
    reason, way = os.strerror(error), cure(name)
    if error == errno.ENOENT:
        reason = "the kernel does not have it"
    elif error == errno.EPERM:
        reason, way = "the kernel does not let us choose it", NOT_PERMITTED
    return f"congestion control {name} cannot be had ({reason}): {cost}. {way}"
