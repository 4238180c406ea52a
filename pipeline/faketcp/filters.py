"""Which packets the kernel gives to which socket, as programs of the classic BPF (linux/filter.h, bpf(4)).

    tap_of_server, tap_of_client    of a packet socket: segments of its port and its lane, whole, and for this machine
    listener                        of the listening socket, and of what it accepts: a SYN, and the header of all else
    lane_chooser                    of the listening sockets of all lanes: which of them gets a SYN

One rule joins them: the client's port modulo the number of lanes is the lane. A NAT changes the port that a server
sees, so the lanes of the two ends need not be equal.

A program reads behind SKF_NET_OFF, so it does not depend on the link header of the device.
"""

from __future__ import annotations

import struct

LISTENED_BYTES = 0xFFFF

# linux/bpf_common.h, linux/filter.h
_LD_W, _LD_H, _LD_B, _LDX_MSH, _LD_H_IND = 0x20, 0x28, 0x30, 0xB1, 0x48
_JMP, _JEQ, _JSET, _MOD, _RSH, _RET, _RET_A = 0x05, 0x15, 0x45, 0x94, 0x74, 0x06, 0x16
_NET = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF
_PACKET_TYPE = (-0x1000 + 4) & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_PKTTYPE
_PACKET_HOST = 0
_FRAGMENT = 0x3FFF  # more fragments, or an offset
_TCP = 6
_FLAGS_AT, _SYN = 13, 2  # in a TCP header, where the programs of TCP sockets begin
_LAST = 0xFF  # a jump to the last instruction
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, value: all of struct sock_filter."""

Check = tuple[int, int, int]
"""How to load a value, where, and the value that it has to have."""


def tap_of_server(version: int, port: int, lane: int, lanes: int) -> bytes:
    source, destination = _ports(version)
    return _tap(version, [(_LD_H, destination, port)], source, lane, lanes)


def tap_of_client(version: int, server: bytes, port: int, lane: int, lanes: int) -> bytes:
    """`server`: the address as bytes, of that version."""
    source, destination = _ports(version)
    at = 12 if version == 4 else 8
    words = struct.unpack(f">{len(server) // 4}I", server)
    checks = [(_LD_W, at + 4 * index, word) for index, word in enumerate(words)]
    return _tap(version, [(_LD_H, source, port), *checks], destination, lane, lanes)


def listener() -> bytes:
    """TCP trims a packet to what a program returns, and never cuts its header.

    So the first data make a connection of a handshake whose last packet was lost, and yet the kernel gets none."""
    return _pack([(_LD_B, 0, 0, _FLAGS_AT), (_JSET, 0, 1, _SYN), (_RET, 0, 0, LISTENED_BYTES), (_RET, 0, 0, 1)])


def lane_chooser(lanes: int) -> bytes:
    """For SO_ATTACH_REUSEPORT_CBPF. The listening sockets are numbered in the order in which they listen."""
    return _pack(
        [
            (_LD_B, 0, 0, _NET),
            (_RSH, 0, 0, 4),
            (_JEQ, 0, 2, 6),
            (_LD_H, 0, 0, _NET + 40),
            (_JMP, 0, 0, 2),
            (_LDX_MSH, 0, 0, _NET),
            (_LD_H_IND, 0, 0, _NET),
            (_MOD, 0, 0, lanes),
            (_RET_A, 0, 0, 0),
        ]
    )


def _ports(version: int) -> tuple[int, int]:
    """Where the source port and the destination port are."""
    return (20, 22) if version == 4 else (40, 42)


def _tap(version: int, checks: list[Check], client_port: int, lane: int, lanes: int) -> bytes:
    whole = [(_LD_B, 0, 0x45), (_LD_B, 9, _TCP)] if version == 4 else [(_LD_B, 6, _TCP)]
    program: list[Instruction] = [(_LD_B, 0, 0, _PACKET_TYPE), (_JEQ, 0, _LAST, _PACKET_HOST)]
    for load, at, value in [*whole, *checks]:
        program += [(load, 0, 0, _NET + at), (_JEQ, 0, _LAST, value)]
    if version == 4:
        program += [(_LD_H, 0, 0, _NET + 6), (_JSET, _LAST, 0, _FRAGMENT)]
    program += [(_LD_H, 0, 0, _NET + client_port), (_MOD, 0, 0, lanes), (_JEQ, 0, _LAST, lane)]
    return _pack([*program, (_RET, 0, 0, 0xFFFFFFFF), (_RET, 0, 0, 0)])


def _pack(program: list[Instruction]) -> bytes:
    last = len(program) - 1
    return b"".join(
        _INSTRUCTION.pack(code, *(last - at - 1 if jump == _LAST else jump for jump in jumps), value)
        for at, (code, *jumps, value) in enumerate(program)
    )
