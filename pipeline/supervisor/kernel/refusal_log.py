"""Packets that the kernel has refused, as nftables tells of them (`log group`, nfnetlink_log).

    open_log()      a log of a group of our own; None where the kernel has no such thing
    take()          the packets that have come: the prefix of the rule, and the bytes from the IP header on

A group belongs to the socket that binds it first. So a group is drawn at random until one is free. The kernel keeps a
few for us; those beyond are lost here, and counted in the table.

Sources: linux/netfilter/nfnetlink_log.h, nfnetlink.h, netlink.h.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

NETLINK_NETFILTER = 12
NFNL_SUBSYS_ULOG = 4
NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG = 0, 1
NFULA_CFG_CMD, NFULA_CFG_MODE = 1, 2
NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET = 1, 2
NFULA_PAYLOAD, NFULA_PREFIX = 9, 10
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLMSG_ERROR = 2
TYPE_MASK = 0x3FFF  # of an attribute: without the bits that say what is in it

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
FAMILY = struct.Struct(">BBH")  # struct nfgenmsg: family, version, group
ATTRIBUTE = struct.Struct("=HH")
MODE = struct.Struct(">IBx")  # bytes to copy, mode
ERROR = struct.Struct("=i")

GROUPS_TRIED = 16
RECEIVE_BYTES = 1 << 16
READS_MAX = 100  # of one look


class RefusalLog:
    def __init__(self, sock: socket.socket, group: int) -> None:
        self.group = group
        self._socket = sock

    def take(self) -> Iterator[tuple[str, bytes]]:
        for _ in range(READS_MAX):
            try:
                yield from packets_of(self._socket.recv(RECEIVE_BYTES))
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some are lost
                continue

    def close(self) -> None:
        self._socket.close()


def open_log(copied: int) -> RefusalLog | None:
    """`copied`: bytes of each packet."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        sock.bind((0, 0))
        for _ in range(GROUPS_TRIED):
            group = random.randrange(1, 1 << 16)
            if _asked(sock, group, NFULA_CFG_CMD, bytes([NFULNL_CFG_CMD_BIND])):
                _asked(sock, group, NFULA_CFG_MODE, MODE.pack(copied, NFULNL_COPY_PACKET))
                sock.setblocking(False)
                return RefusalLog(sock, group)
    except OSError:
        pass
    sock.close()
    return None


def _asked(sock: socket.socket, group: int, attribute: int, value: bytes) -> bool:
    """Whether the kernel has done it."""
    body = FAMILY.pack(socket.AF_UNSPEC, 0, group) + _attribute(attribute, value)
    kind = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG
    sock.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
    answer = sock.recv(RECEIVE_BYTES)
    length, kind, *_ = HEADER.unpack_from(answer)
    if kind != NLMSG_ERROR or length < HEADER.size + ERROR.size:
        return False
    (failed,) = ERROR.unpack_from(answer, HEADER.size)
    return not failed


def _attribute(kind: int, value: bytes) -> bytes:
    data = ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value
    return data + bytes(-len(data) % 4)


def packets_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The packets in a datagram: prefix and payload. Bytes that do not fit end it."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        if kind == NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET:
            found = dict(_attributes(data[at + HEADER.size + FAMILY.size : at + length]))
            yield found.get(NFULA_PREFIX, b"").rstrip(b"\0").decode(errors="replace"), found.get(NFULA_PAYLOAD, b"")
        at += length + -length % 4


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & TYPE_MASK, data[at + ATTRIBUTE.size : at + length]
        at += length + -length % 4
