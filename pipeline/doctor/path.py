"""The longest packets that pass, on the way to the server and through the tunnel. Black holes are found by trying.

Outside, TCP itself is asked. A client begins a TLS handshake with the server. Its first message is longer than a few
segments, and the kernel tells whether that was acknowledged. It needs no right, no ICMP and no cooperation.
Connections with smaller segments, side by side, tell how long a packet may be.

Inside, echo requests of several lengths, none of which may be cut, go to the other end of the tunnel.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import LocalError
from pipeline.policy import bypass
from pipeline.policy.kernel_entries import IPAddress
from pipeline.supervisor.kernel.route_socket import RouteSocket
from pipeline.transport.settings import ALPN

CONNECT_SECONDS = 1.5
ACKNOWLEDGED_SECONDS = 1.5
ECHO_SECONDS = 1.5
LOOK_SECONDS = 0.02
SEGMENTS = (1360, 1240, 1000, 536)  # MSS; the last one is what every path carries
HEADERS = {4: 40, 6: 60}  # IP and TCP
LONG_MESSAGE_BYTES = 6000  # more than a few segments of an Ethernet, less than the first window of TCP
NAME_BYTES_MAX = 255  # of a protocol in ALPN (RFC 7301)

SIOCOUTQ = 0x5411  # linux/sockios.h: bytes that are not acknowledged
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3  # linux/in.h: never cut, and never mind what the kernel knows
IPV6_MTU_DISCOVER = 23  # linux/in6.h
ECHO, ECHO_REPLY, ECHO6, ECHO6_REPLY = 8, 0, 128, 129
ICMP_BYTES = 8
ADDRESSES_MAX = 2  # of the server that are tried until one answers
ENDS_MAX = 3  # other ends of the tunnel that are tried


class Passed(Enum):
    """The fate of a long message."""

    WHOLE = "whole"
    STUCK = "stuck"  # the connection stands, and the message is not acknowledged
    UNTRIED = "untried"  # there was no connection


# -- outside


def outside(subject: Subject, addresses: Sequence[IPAddress]) -> list[Finding]:
    """`addresses`: of a client's server. Only with TLS: what else would we say to a server?"""
    config = subject.config
    if config is None or not subject.is_client or config.encryption == "none" or not addresses:
        return []
    port, mark = config.remote_endpoint.port, bypass.numbers(config.name).table
    address, first = addresses[0], Passed.UNTRIED
    for address in addresses[:ADDRESSES_MAX]:
        first = send_long_message(str(address), port, mark=mark)
        if first is not Passed.UNTRIED:
            break
    found: dict[int, Passed] = {}
    if first is Passed.STUCK:
        with ThreadPoolExecutor(len(SEGMENTS)) as pool:
            tries = pool.map(lambda size: send_long_message(str(address), port, size, mark), SEGMENTS)
            found = dict(zip(SEGMENTS, tries, strict=True))
    return judge_outside(address, first, found)


def judge_outside(address: IPAddress, first: Passed, by_size: dict[int, Passed]) -> list[Finding]:
    """`by_size`: of messages in segments of so many bytes, tried if the first one got stuck."""
    if first is Passed.UNTRIED:
        return []  # that there is no connection is said elsewhere
    if first is Passed.WHOLE:
        return [ok(f"full packets pass to {address}")]
    passing = [size for size, passed in by_size.items() if passed is Passed.WHOLE]
    if not passing:
        return [
            note(f"{address} connects, and acknowledges nothing", "Look at the load of the server, and for a proxy.")
        ]
    longest = max(passing) + HEADERS[address.version]
    return [
        problem(
            f"the path to {address} swallows long packets: those of {longest} bytes pass, full ones do not, and nobody "
            "says so (a black hole)",
            f"Lower the MTU of the uplink (ip link set dev UPLINK mtu {longest}), or at both ends: sysctl -w "
            "net.ipv4.tcp_mtu_probing=1.",
        )
    ]


def send_long_message(host: str, port: int, segment: int = 0, mark: int = 0) -> Passed:
    """`segment`: bytes of a segment at most; 0: the kernel's choice. `mark`: that of the bypass (policy.bypass)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if segment:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(CONNECT_SECONDS)
            sock.connect((host, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no rest stays behind
            sock.sendall(_long_hello())
            return _acknowledged(sock)
        except OSError:
            return Passed.UNTRIED


def _long_hello() -> bytes:
    """A TLS ClientHello for our server that fills several segments: it offers protocols that nobody has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    filling = ["x" * (NAME_BYTES_MAX - 3) + f"{number:03}" for number in range(LONG_MESSAGE_BYTES // NAME_BYTES_MAX)]
    context.set_alpn_protocols([ALPN, *filling])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def _acknowledged(sock: socket.socket) -> Passed:
    until = time.monotonic() + ACKNOWLEDGED_SECONDS
    while time.monotonic() < until:
        if not struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0]:
            return Passed.WHOLE
        time.sleep(LOOK_SECONDS)
    return Passed.STUCK


# -- inside


class Echoes(NamedTuple):
    """The lengths of IP packets that were sent to an end, and of those that came back."""

    sent: tuple[int, ...]
    returned: frozenset[int]


def inside(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.established:
        return []
    lengths = tuple(length for length in sorted({100, 576, 1000, 1280, config.mtu}) if length <= config.mtu)
    found: list[Finding] = []
    for address in _other_ends(subject)[:ENDS_MAX]:
        with suppress(OSError):  # without the right to send echo requests nothing is tried
            found += judge_inside(address, config.mtu, send_echoes(address, lengths))
    return found


def _other_ends(subject: Subject) -> list[IPAddress]:
    """Addresses in the tunnel: of connected peers, or of the server, which has the first address of a subnet."""
    if subject.is_server:
        connected = [peer for peer in subject.peers or () if peer["state"] == "connected"]
        return [ip_address(peer["addresses"][0]) for peer in connected if peer["addresses"]]
    try:
        device = socket.if_nametoindex(subject.tun_name)
        with closing(RouteSocket()) as ask:
            own = [each.interface for each in ask.addresses() if each.device == device]
    except (OSError, LocalError):
        return []
    firsts = [
        (interface, interface.network.network_address + 1) for interface in own if interface.network.num_addresses > 2
    ]
    return [first for interface, first in firsts if first != interface.ip and not interface.is_link_local]


def send_echoes(address: IPAddress, lengths: Sequence[int]) -> Echoes:
    """OSError without the right to do so."""
    six = address.version == 6
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    identity = os.getpid() & 0xFFFF
    returned: set[int] = set()
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        for length in lengths:
            with suppress(OSError):  # too long for the device, or the tunnel has just gone
                sock.sendto(_echo(six, identity, length), (str(address), 0))
        until = time.monotonic() + ECHO_SECONDS
        while returned < set(lengths) and (left := until - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                break
            data, (sender, *_) = sock.recvfrom(65535)
            length = _length_of_reply(data, six, identity)
            if length and ip_address(sender.partition("%")[0]) == address:
                returned.add(length)
    return Echoes(tuple(lengths), frozenset(returned & set(lengths)))


def _echo(six: bool, identity: int, length: int) -> bytes:
    """An echo request whose packet has this length, which is its sequence number, too."""
    body = bytes(length - (40 if six else 20) - ICMP_BYTES)
    kind = ECHO6 if six else ECHO
    bare = struct.pack(">BBHHH", kind, 0, 0, identity, length) + body
    if six:
        return bare  # the kernel has to compute the checksum (RFC 3542)
    return bare[:2] + struct.pack(">H", checksum(bare)) + bare[4:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _length_of_reply(data: bytes, six: bool, identity: int) -> int:
    """The length that was asked with; 0 for anything else."""
    message = data if six else data[(data[0] & 15) * 4 :]
    if len(message) < ICMP_BYTES:
        return 0
    kind, _, _, whose, length = struct.unpack_from(">BBHHH", message)
    return int(length) if kind == (ECHO6_REPLY if six else ECHO_REPLY) and whose == identity else 0


def judge_inside(address: IPAddress, mtu: int, echoes: Echoes) -> list[Finding]:
    if not echoes.returned:
        return [
            note(
                f"{address}, at the other end of the tunnel, does not answer to echo requests",
                "If it should: look at the firewall and at the routes of the other end.",
            )
        ]
    missing = [length for length in echoes.sent if length not in echoes.returned]
    longest = max(echoes.returned)
    if missing and min(missing) > longest:
        return [
            problem(
                f"packets of {min(missing)} bytes through the tunnel to {address} get no answer, those of {longest} do",
                f"Set mtu to {longest} at both ends, or find the firewall that drops long packets (mtu is {mtu} here).",
            )
        ]
    if missing:
        return [note(f"{len(missing)} of {len(echoes.sent)} echo requests to {address} were lost", "Run it again.")]
    return [ok(f"packets of all lengths up to {longest} bytes pass through the tunnel to {address}")]
