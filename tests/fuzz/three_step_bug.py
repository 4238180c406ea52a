"""A parser with a bug behind four checks, which chance alone does not come by: what the fuzzer is held against.

"toy" | length u16, of what follows it | kind u8 | body        kind 3: an index u8, and as many entries as its bytes
"""

from __future__ import annotations

from pipeline.errors import PeerError

FILE = "tests/fuzz/three_step_bug.py"


def parse(data: bytes) -> int:
    if data[:3] != b"toy":
        raise PeerError("no toy")
    length = int.from_bytes(data[3:5], "big")
    if length != len(data) - 5 or length < 3:
        raise PeerError("a length that is wrong")
    kind = data[5]
    if kind == 1:
        return length
    if kind != 3:
        raise PeerError("an unknown kind")
    index, entries = data[6], data[7:]
    if index < 200:
        return 0
    return entries[index - 200]  # the bug: nobody has looked how many there are


def sound(data: bytes) -> int:
    """The same without it."""
    try:
        return parse(data)
    except IndexError:
        raise PeerError("an entry that is not there") from None


def stairs(data: bytes) -> None:
    """A bug that takes three bytes: each alone is soon hit upon, all at once never."""
    if data[:1] == b"s":  # noqa: SIM102 - a step is a line, which is what the fuzzer is led by
        if data[1:2] == b"t":  # noqa: SIM102
            if data[2:3] == b"e":
                raise IndexError("the top")
