"""The sockets of fake TCP that need rights: packet sockets, and listening sockets, for workers that have none.

    open_tap          a packet socket that gets nothing but what a filter lets through; the filter is locked
    open_listeners    the listening sockets of all lanes, at one port

A packet socket can still send anything on any interface. So a worker that has one could send packets in the name of
others, but could read nothing that is not for it.

A tap is bound to a protocol of the network layer, not to all. Such a socket gets no packet that is sent. It gets each
one that comes once, however many devices that passes (VLANs, bridges, bonds).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from pipeline.errors import LocalError, PermissionDenied
from pipeline.faketcp import filters

SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
# asm-generic/socket.h
SO_ATTACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_LOCK_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 32, 33, 44, 51
BUFFER_BYTES = 8 << 20
BACKLOG = 256
"""Handshakes that wait for a worker. Beyond it the kernel drops SYNs, or answers with SYN cookies."""

_ADDRESS = struct.Struct("=HHiHBB8x")  # struct sockaddr_ll
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog
_INSTRUCTION_BYTES = 8
_libc = ctypes.CDLL(None, use_errno=True)


def open_tap(protocol: int, program: bytes) -> socket.socket:
    """`protocol`: ETH_P_IP or ETH_P_IPV6. PermissionDenied without CAP_NET_RAW."""
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PermissionDenied("fake TCP: a packet socket needs root or CAP_NET_RAW") from None
        raise LocalError(f"fake TCP: no packet socket: {error.strerror}") from None
    try:
        _attach(tap, SO_ATTACH_FILTER, program)
        tap.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            tap.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        _bind_to_all_devices(tap, protocol)
    except OSError as error:
        tap.close()
        raise LocalError(f"fake TCP: packet socket: {error.strerror}") from None
    return tap


def _bind_to_all_devices(tap: socket.socket, protocol: int) -> None:
    """socket.bind() needs the name of a device."""
    address = _ADDRESS.pack(socket.AF_PACKET, socket.htons(protocol), 0, 0, 0, 0)
    if _libc.bind(tap.fileno(), address, len(address)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_listeners(host: str, port: int, lanes: int) -> list[socket.socket]:
    """One for each lane, in their order; 0 as port: one that is free. LocalError says why that is impossible."""
    listeners: list[socket.socket] = []
    try:
        for _ in range(lanes):
            listeners.append(_listener(host, port))
            port = listeners[0].getsockname()[1]
        _attach(listeners[0], SO_ATTACH_REUSEPORT_CBPF, filters.lane_chooser(lanes))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise LocalError(f"fake TCP: port {port}: {error.strerror}") from None
    return listeners


def _listener(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        _attach(sock, SO_ATTACH_FILTER, filters.listener())
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _attach(sock: socket.socket, option: int, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    described = _PROGRAM.pack(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, option, described)
