"""A question about the addresses of a name, and its answer, as DNS has them (RFC 1035). Pure.

    question(number, name, version)          the bytes of a question
    addresses_in(answer, number, version)    the addresses in an answer; none if it is none of ours, or an error

The answer is foreign bytes: anything gives a list. Addresses behind aliases are in the same answer, since the servers
that are asked do the whole search.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

PORT = 53
ANSWER_BYTES = 4096
NAME_BYTES_MAX = 255
TYPES = {4: 1, 6: 28}  # A, AAAA (RFC 3596)
SIZES = {4: 4, 6: 16}
CLASS_IN = 1
RECURSION_DESIRED, RESPONSE, ERROR_MASK = 0x0100, 0x8000, 0x000F
POINTER = 0xC0  # a name goes on elsewhere, and ends here

_HEADER = struct.Struct(">HHHHHH")  # number, flags, questions, answers, authorities, others
_QUESTION = struct.Struct(">HH")  # type, class
_RECORD = struct.Struct(">HHIH")  # type, class, time to live, length


def question(number: int, name: str, version: int) -> bytes:
    """ValueError if this is no name."""
    labels = [label.encode("idna") for label in name.rstrip(".").split(".")]
    packed = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if not all(0 < len(label) < 64 for label in labels) or len(packed) > NAME_BYTES_MAX:
        raise ValueError(f"{name!r} is no name of DNS")
    return _HEADER.pack(number, RECURSION_DESIRED, 1, 0, 0, 0) + packed + _QUESTION.pack(TYPES[version], CLASS_IN)


def addresses_in(answer: bytes, number: int, version: int) -> list[IPv4Address | IPv6Address]:
    found: list[IPv4Address | IPv6Address] = []
    if len(answer) < _HEADER.size:
        return found
    its, flags, questions, answers, _, _ = _HEADER.unpack_from(answer)
    if its != number or not flags & RESPONSE or flags & ERROR_MASK:
        return found
    at = _HEADER.size
    for _ in range(questions):
        at = _behind_name(answer, at) + _QUESTION.size
    for _ in range(answers):
        at = _behind_name(answer, at)
        if at + _RECORD.size > len(answer):
            break
        kind, klass, _, size = _RECORD.unpack_from(answer, at)
        at += _RECORD.size
        data = answer[at : at + size]
        if (kind, klass) == (TYPES[version], CLASS_IN) and len(data) == size == SIZES[version]:
            found.append(ip_address(data))
        at += size
    return found


def _behind_name(data: bytes, at: int) -> int:
    """Where a name ends; beyond the data if it does not."""
    while at < len(data):
        length = data[at]
        if length >= POINTER:
            return at + 2
        at += 1 + length
        if not length:
            return at
    return at
