"""The channel by which a client's dgram worker gets its tap: a packet socket that sees the segments of one server.

The supervisor makes taps, and it learns from a WELCOME which server that is. So a tap comes while the worker runs, and
another one when the server is another. A message says where the server is; the tap comes with it, or none if there is
no such server any more. The latest message counts.
"""

from __future__ import annotations

import os
import socket
import struct

_SERVER = struct.Struct(">16sHI")  # host, port, scope: see shm.datagram_secrets.DatagramServer
_DESCRIPTORS_MOST = 1

TapServer = tuple[bytes, int, int]
"""The host of a server in 16 bytes, its port for fake TCP, and the number of the interface of a link-local address."""

NO_SERVER: TapServer = (bytes(16), 0, 0)


def channel() -> tuple[socket.socket, socket.socket]:
    """The end of the supervisor, and that of a worker. Neither blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(to: socket.socket, server: TapServer, tap: socket.socket | None) -> None:
    """OSError if nobody is there, or reads."""
    socket.send_fds(to, [_SERVER.pack(*server)], [] if tap is None else [tap.fileno()])


def receive(source: socket.socket) -> tuple[TapServer, socket.socket | None] | None:
    """The latest message; None: there is none."""
    found: tuple[TapServer, socket.socket | None] | None = None
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(source, _SERVER.size, _DESCRIPTORS_MOST, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return found
        if len(data) != _SERVER.size:
            for fd in fds:
                os.close(fd)
            return found
        if found is not None and found[1] is not None:
            found[1].close()
        host, port, scope = _SERVER.unpack(data)
        found = (host, port, scope), socket.socket(fileno=fds[0]) if fds else None
