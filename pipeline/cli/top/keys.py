"""Bytes of a terminal as keys. Pure."""

from __future__ import annotations

SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page-up",
    b"\x1b[6~": "page-down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b[1~": "home",
    b"\x1b[4~": "end",
    b"\r": "enter",
    b"\n": "enter",
    b"\t": "tab",
    b"\x1b": "escape",
    b"\x7f": "escape",
}
"""Sequences of the terminals of the xterm family. Escape alone is the last resort."""

SEQUENCE_BYTES_MAX = 8


def decode(data: bytes) -> list[str]:
    """The keys in these bytes, by name or as the character itself. Unknown ones are passed over."""
    found = []
    while data:
        known = max((each for each in SEQUENCES if data.startswith(each)), key=len, default=b"")
        if known == b"\x1b" and data[1:2] in (b"[", b"O"):
            data = data[_sequence_length(data) :]
        elif known:
            found.append(SEQUENCES[known])
            data = data[len(known) :]
        else:
            if 32 < data[0] < 127:
                found.append(chr(data[0]))
            elif data[0] == 32:
                found.append("space")
            data = data[1:]
    return found


def _sequence_length(data: bytes) -> int:
    """Of an unknown sequence (ECMA-48): parameters, and one final byte from @ to ~."""
    for at in range(2, min(len(data), SEQUENCE_BYTES_MAX)):
        if 0x40 <= data[at] <= 0x7E:
            return at + 1
    return min(len(data), SEQUENCE_BYTES_MAX)
