"""Changed inputs from given ones. Randomness comes from random.Random, so a seed stands for one sequence of inputs.

A mutation makes a few changes, each from a table: bits, bytes, numbers at the edges of their fields, and pieces that
are removed, doubled or inserted from another input. Another change corrects lengths: without it, an input seldom passes
the first check of a parser.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

INPUT_BYTES_MAX = 4096
CHANGES_MAX = 6
WIDTHS = (1, 1, 2, 4, 4, 8)
EDGES = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    13,
    16,
    19,
    20,
    32,
    37,
    40,
    60,
    64,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    1023,
    1024,
    1496,
    1497,
    4096,
    16384,
    32767,
    32768,
    65535,
    65536,
    131072,
    133127,
    133128,
    133160,
    133161,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 2,
    (1 << 64) - 1,
)
"""Limits of the protocol and of machine words."""
WORDS = (
    b"[]",
    b"{}",
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1.5",
    b"1e999",
    b"-1e999",
    b"NaN",
    b"1e18",
    b'""',
    b'"x"',
    b"[[]]",
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"[" * 1500,
    b"9" * 400,
)
"""Values of JSON that are not the expected ones."""


class Mutator:
    """`seed`: whatever it is, the same one gives the same inputs from the same corpus."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def mutate(self, corpus: Sequence[bytes]) -> bytes:
        """An input that is near to one of the corpus, most often to one of the last that came."""
        chance = self._random
        last = len(corpus) - 1
        data = bytearray(corpus[max(chance.randint(0, last), chance.randint(0, last))])
        for _ in range(chance.randint(1, CHANGES_MAX)):
            change = chance.choice(_CHANGES)
            change(self, data, corpus)
            del data[INPUT_BYTES_MAX:]
        return bytes(data)

    def _place(self, data: bytearray) -> int:
        """Rather near the front, where the headers are."""
        chance = self._random
        place = chance.randint(0, len(data))
        return chance.randint(0, min(place, 64)) if chance.random() < 0.5 else place

    def _piece(self, data: Sequence[int]) -> tuple[int, int]:
        start = self._place(data)
        return start, min(len(data), start + int(self._random.expovariate(1 / 12)) + 1)

    def _flip(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        at = self._place(data)
        if at < len(data):
            data[at] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        at = self._place(data)
        if at < len(data):
            data[at] = self._random.randrange(256)

    def _insert(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        at = self._place(data)
        data[at:at] = self._random.randbytes(self._random.randint(1, 8))

    def _delete(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        start, end = self._piece(data)
        del data[start:end]

    def _double(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        start, end = self._piece(data)
        data[end:end] = data[start:end] * self._random.choice((1, 1, 1, 2, 40))

    def _cut_off(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        del data[self._place(data) :]

    def _splice(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """The front of this and the rest of another."""
        other = self._random.choice(corpus)
        data[self._place(data) :] = other[self._place(bytearray(other)) :]

    def _borrow(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """A piece of another in between."""
        other = self._random.choice(corpus)
        start, end = self._piece(other)
        at = self._place(data)
        data[at:at] = other[start:end]

    def _edge(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        width = self._random.choice(WIDTHS)
        at = self._place(data)
        if at + width <= len(data):
            value = self._random.choice(EDGES) & (1 << 8 * width) - 1
            data[at : at + width] = value.to_bytes(width, self._random.choice(("big", "big", "big", "little")))

    def _count(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """A number becomes a little more or less."""
        width = self._random.choice(WIDTHS)
        at = self._place(data)
        if at + width <= len(data):
            value = int.from_bytes(data[at : at + width], "big") + self._random.choice((-2, -1, 1, 2))
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")

    def _measure(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """A number becomes the length of what is behind it."""
        width = self._random.choice((1, 2, 4, 4))
        at = self._place(data)
        rest = len(data) - at - width
        if 0 <= rest < 1 << 8 * width:
            data[at : at + width] = rest.to_bytes(width, "big")

    def _frame(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """Frames from somewhere near the front on: the first that is not whole becomes the last, and whole."""
        at = self._random.randint(0, 4)
        while len(data) - at > 4:
            length = int.from_bytes(data[at : at + 4], "big")
            if at + 4 + length > len(data):
                data[at : at + 4] = (len(data) - at - 4).to_bytes(4, "big")
                return
            at += 4 + length

    def _word(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        """A value of a JSON object becomes another, if there is one."""
        values = list(_VALUE.finditer(data))
        if values:
            chosen = self._random.choice(values)
            data[chosen.start() : chosen.end()] = self._random.choice(WORDS)


_VALUE = re.compile(rb'(?<=[:,\[])\s*("[^"]*"|[-+.\w]+)')
_CHANGES: tuple[Callable[[Mutator, bytearray, Sequence[bytes]], None], ...] = (
    Mutator._flip,
    Mutator._set,
    Mutator._insert,
    Mutator._delete,
    Mutator._double,
    Mutator._cut_off,
    Mutator._splice,
    Mutator._borrow,
    Mutator._edge,
    Mutator._edge,
    Mutator._count,
    Mutator._measure,
    Mutator._frame,
    Mutator._frame,
    Mutator._word,
    Mutator._word,
)
