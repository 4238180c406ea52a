"""The sockets of fake TCP that need rights: packet sockets, and listening sockets, for workers that have none.

    open_tap                a packet socket that gets nothing but what a filter lets through; the filter is locked
    open_listeners          the listening sockets of all lanes, at one port
    ServerFakeTcpSockets    both, of a server
    ClientFakeTcpSockets    the taps of a client, which lead to the server that a WELCOME has named

A packet socket can still send anything on any interface. So a worker that has one could send packets in the name of
others, but could read nothing that is not for it.

A tap is bound to a protocol of the network layer, not to all. Such a socket gets no packet that is sent. It gets each
one that comes once, however many devices that passes (VLANs, bridges, bonds).

They outlive workers. So what comes while a worker is replaced waits, and a server's port is never without a listener.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from pipeline.errors import LocalError, PermissionDenied
from pipeline.faketcp import filters
from pipeline.log import LOG
from pipeline.runtime import tap_channel
from pipeline.runtime.tap_channel import NO_SERVER, TapServer
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6

SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/socket.h, linux/if_packet.h
# asm-generic/socket.h
SO_ATTACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_LOCK_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 32, 33, 44, 51
BUFFER_BYTES = 8 << 20
BACKLOG = 256
"""Handshakes that wait for a worker. Beyond it the kernel drops SYNs, or answers with SYN cookies."""

REFUSED = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT)
"""The last one is systemd's, for what RestrictAddressFamilies leaves out."""

PROTOCOLS = {4: ETH_P_IP, 6: ETH_P_IPV6}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_NOBODY = DatagramServer.at("0.0.0.0", 0)

_ADDRESS = struct.Struct("=HHiHBB8x")  # struct sockaddr_ll
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog
_INSTRUCTION_BYTES = 8
_libc = ctypes.CDLL(None, use_errno=True)


def open_tap(protocol: int, program: bytes) -> socket.socket:
    """`protocol`: ETH_P_IP or ETH_P_IPV6. PermissionDenied without CAP_NET_RAW."""
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except OSError as error:
        if error.errno in REFUSED:
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
    """One for each lane, in their order; 0 as port: one that is free. LocalError says why that is impossible.

    The first one is bound alone, so that no port of another program's is shared by mistake."""
    listeners: list[socket.socket] = []
    try:
        for lane in range(lanes):
            listeners.append(_listener(host, port, shares=lane > 0))
            port = listeners[0].getsockname()[1]
        _attach(listeners[0], SO_ATTACH_REUSEPORT_CBPF, filters.lane_chooser(lanes))
    except OSError as error:
        for listener in listeners:
            listener.close()
        why = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise LocalError(f"fake TCP: port {port}: {why}") from None
    return listeners


def _listener(host: str, port: int, shares: bool) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


class ServerFakeTcpSockets:
    """`port`: which clients learn from a WELCOME. PermissionDenied, or LocalError, says what is missing."""

    def __init__(self, listener: socket.socket, port: int, lanes: int) -> None:
        self._listeners: list[socket.socket] = []
        self._taps: list[dict[int, socket.socket]] = []  # of each lane, by version of IP
        host = listener.getsockname()[0]
        try:
            for lane in range(lanes):
                self._taps.append({})
                for version in (4, 6) if listener.family == socket.AF_INET6 else (4,):
                    program = filters.tap_of_server(version, port, lane, lanes)
                    self._taps[lane][version] = open_tap(PROTOCOLS[version], program)
            self._listeners = open_listeners(host, port, lanes)
        except LocalError:
            self.close()
            raise
        self.port = port

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the dgram worker of a lane gets."""
        taps = {f"fake_tcp_tap{version}": tap.fileno() for version, tap in self._taps[lane].items()}
        return taps | {"fake_tcp_listener": self._listeners[lane].fileno()}

    def close(self) -> None:
        for sock in (*self._listeners, *(tap for taps in self._taps for tap in taps.values())):
            sock.close()


class ClientFakeTcpSockets:
    """The taps of all lanes lead to one server, or there are none yet. PermissionDenied, or LocalError, says what is
    missing."""

    def __init__(self, lanes: int) -> None:
        open_tap(ETH_P_IP, filters.tap_of_client(4, _NOBODY.host[-4:], 0, 0, 1)).close()
        self._server: TapServer = NO_SERVER
        self._taps: list[socket.socket | None] = [None] * lanes
        self._channels: list[tuple[socket.socket, ...]] = [()] * lanes  # our end, and that of the worker

    def lead_to(self, server: DatagramServer | None) -> None:
        """Once a turn: where the present server takes fake TCP; None: nowhere."""
        wanted = NO_SERVER
        if server is not None and server.fake_tcp_port:
            wanted = server.host, server.fake_tcp_port, server.scope
        if wanted == self._server:
            return
        self._server = wanted
        for lane, before in enumerate(self._taps):
            self._taps[lane] = self._open(wanted, lane)
            self._tell(lane)
            if before is not None:
                before.close()

    def _open(self, server: TapServer, lane: int) -> socket.socket | None:
        host, port, _ = server
        if not port:
            return None
        version, host = (4, host[-4:]) if host.startswith(_MAPPED) else (6, host)
        try:
            return open_tap(PROTOCOLS[version], filters.tap_of_client(version, host, port, lane, len(self._taps)))
        except LocalError as error:
            LOG.warning("%s", error)
            return None

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the dgram worker of a lane gets: its end of a new channel, in which there is its tap already."""
        for sock in self._channels[lane]:
            sock.close()
        self._channels[lane] = tap_channel.channel()
        self._tell(lane)
        return {"fake_tcp_channel": self._channels[lane][1].fileno()}

    def _tell(self, lane: int) -> None:
        if self._channels[lane]:
            try:
                tap_channel.send(self._channels[lane][0], self._server, self._taps[lane])
            except OSError as error:
                LOG.debug("fake TCP: dgram-%d hears nothing of its server: %s", lane, error.strerror)

    def close(self) -> None:
        for each in self._channels:
            for sock in each:
                sock.close()
        for tap in self._taps:
            if tap is not None:
                tap.close()
