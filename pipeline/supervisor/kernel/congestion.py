"""The congestion control that workers cannot have by themselves: modules are loaded, and sockets set, with our rights.

    configure(config)      load what the setting needs: the kernel does that when a socket asks for it
    prepare(listener)      accepted connections begin with the algorithm of the listening socket
    set_on(name, fd)       for a worker that the kernel has refused it

No setting of the kernel changes, so nothing is to be put back. A module that has been loaded stays: others may use it.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

from pipeline.config import Config
from pipeline.log import LOG
from pipeline.policy.congestion import AUTO, CALM, COST_OF_LOSS, LOSSY, cure
from pipeline.transport.socket_options import congestion_control, first_congestion_control

HOST_DEFAULT = Path("/proc/sys/net/ipv4/tcp_congestion_control")

NO_LINGER = struct.pack("=ii", 0, 0)


class CongestionControl:
    """`notes`: for `status`, what cannot be had and how to get it."""

    def __init__(self, config: Config) -> None:
        self._missing: dict[str, str] = {}  # algorithms that cannot be had: why
        self.configure(config)

    @property
    def notes(self) -> list[str]:
        return [_explained(name, reason, self._setting) for name, reason in self._missing.items()]

    def configure(self, config: Config) -> None:
        self._setting = config.congestion
        self._missing.clear()
        wanted = LOSSY if self._setting == AUTO else self._setting
        if wanted:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                self._set(probe, wanted)

    def prepare(self, listener: socket.socket) -> None:
        """Let the connections that this socket will accept begin with the right algorithm."""
        wanted = first_congestion_control(self._setting, _host_default())
        if wanted != congestion_control(listener):
            self._set(listener, wanted)

    def set_on(self, name: object, fd: int) -> None:
        """Set an algorithm that the setting knows on the TCP socket of a worker. ValueError for anything else."""
        if name not in (LOSSY, CALM, self._setting, _host_default()) or not isinstance(name, str):
            raise ValueError(f"congestion control {str(name)[:20]!r} of a worker: the setting knows no such name")
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            raise ValueError(f"congestion control {name}: what the worker has handed over is no socket") from None
        try:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
                raise ValueError(f"congestion control {name}: what the worker has handed over is no TCP socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)  # to close our descriptor takes no time
            self._set(sock, name)
        finally:
            sock.detach()

    def _set(self, sock: socket.socket, name: str) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as error:
            reason = _reason(error)
            if self._missing.get(name) != reason:
                self._missing[name] = reason
                LOG.warning("%s", _explained(name, reason, self._setting))
        else:
            self._missing.pop(name, None)


def _host_default() -> str:
    try:
        return HOST_DEFAULT.read_text().strip()
    except OSError:
        return ""  # no /proc


def _reason(error: OSError) -> str:
    return "the kernel does not have it" if error.errno == errno.ENOENT else str(error.strerror)


def _explained(name: str, reason: str, setting: str) -> str:
    if setting != AUTO:
        cost = "connections use what the host has"
    elif name == LOSSY:
        cost = COST_OF_LOSS
    else:
        cost = "connections pace themselves, which costs a fast path up to a quarter"
    return f"congestion control {name} cannot be had ({reason}): {cost}. {cure(name)}"
