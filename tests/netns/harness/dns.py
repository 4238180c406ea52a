"""Questions to a DNS server, as any resolver asks them: `ask(node, server, "laptop.tunnel")` gives its answers."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct

from tools.lab.namespace import Namespace

A, PTR, AAAA = 1, 12, 28
NXDOMAIN = 3
REFUSED = 5
_CLASS_IN = 1
_RECURSION_DESIRED = 0x100
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")
_SECONDS = 2.0


class NoAnswer(Exception):
    """`code`: of the response (RFC 1035, 4.1.1)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def ask(node: Namespace, server: str, name: str, kind: int = A, port: int = 53) -> list[str]:
    """The addresses or names of the answer. NoAnswer with the code of a refusal, TimeoutError without any answer."""
    number = secrets.randbits(16)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + b"\0" + struct.pack(">HH", kind, _CLASS_IN)
    with node.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_SECONDS)
        sock.connect((server, port))
        try:
            sock.send(_HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + question)
            answer = sock.recv(4096)
        except ConnectionRefusedError:
            raise TimeoutError from None
    found_number, flags, _, count, _, _ = _HEADER.unpack_from(answer)
    assert found_number == number
    if flags & 15:
        raise NoAnswer(flags & 15)
    at = _HEADER.size + len(question)
    found = []
    for _ in range(count):
        _, at = _name(answer, at)
        kind_found, _, _, length = _RECORD.unpack_from(answer, at)
        at += _RECORD.size
        if kind_found == kind:
            data = answer[at : at + length]
            found.append(_name(answer, at)[0] if kind == PTR else str(ipaddress.ip_address(data)))
        at += length
    return sorted(found)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name that begins there, and where the next thing begins."""
    labels, end = [], 0
    while length := message[at]:
        if length >= 0xC0:
            end = end or at + 2
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            continue
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), end or at + 1
