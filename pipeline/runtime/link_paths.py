"""The paths of a link: which connection of a tcp worker is on which uplink of the client, and what each path carries.

A client with several uplinks says on which one each connection is (pipeline.wire.uplink). The tcp workers publish it in
the path records of the peer table, by the ordinals of their connections:

    PATH_BULK, PATH_LIGHT    PATH_BITS for each connection: the number of its uplink
    PATH_RATES               RATE_BITS for each uplink: the measured rate in eighths of an octave, and IS_MAIN

A peer without uplinks has no path record, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log2
from typing import NamedTuple

from pipeline.wire.uplink import UPLINKS_MAX, Uplink

PATH_BITS = 2  # of the number of an uplink
PATH_MASK = (1 << PATH_BITS) - 1
ORDINALS_MAX = 64 // PATH_BITS
RATE_BITS = 16
IS_MAIN = 0x100  # above the rate
_RATE_MASK = 0xFF
_STEPS = 8  # an octave
_LEAST = 1024.0  # bytes a second that the rate 1 stands for

assert UPLINKS_MAX <= 1 << PATH_BITS and UPLINKS_MAX * RATE_BITS <= 64


class Paths(NamedTuple):
    """The path record of one peer and tcp worker. `rates`: bytes a second of each uplink; 0: it carries nothing."""

    bulk: tuple[int, ...]  # numbers of uplinks, by ordinal
    light: tuple[int, ...]
    rates: Mapping[int, float]
    mains: frozenset[int]

    def pack(self) -> tuple[int, int, int]:
        """PATH_BULK, PATH_LIGHT, PATH_RATES."""
        rates = 0
        for number, rate in self.rates.items():
            rates |= (_step(rate) | IS_MAIN * (number in self.mains)) << RATE_BITS * number
        return _pack_numbers(self.bulk), _pack_numbers(self.light), rates


def unpack(words: Sequence[int], bulk: int, light: int) -> Paths:
    """The record in these words, of a tcp worker that has so many connections for bulk, and for light flows."""
    packed = [words[2] >> RATE_BITS * number & (1 << RATE_BITS) - 1 for number in range(UPLINKS_MAX)]
    return Paths(
        tuple(words[0] >> PATH_BITS * (ordinal % ORDINALS_MAX) & PATH_MASK for ordinal in range(bulk)),
        tuple(words[1] >> PATH_BITS * (ordinal % ORDINALS_MAX) & PATH_MASK for ordinal in range(light)),
        {number: _rate(each & _RATE_MASK) for number, each in enumerate(packed) if each},
        frozenset(number for number, each in enumerate(packed) if each & IS_MAIN),
    )


def carriers(words: Iterable[int]) -> set[int]:
    """The uplinks that carry packets, by the words PATH_RATES of all tcp workers: main ones, else backups."""
    packed = [(number, word >> RATE_BITS * number) for word in words for number in range(UPLINKS_MAX)]
    working = [(number, each & IS_MAIN) for number, each in packed if each & _RATE_MASK]
    return {number for number, is_main in working if is_main} or {number for number, _ in working}


def differ(rates: Mapping[int, float], others: Mapping[int, float]) -> bool:
    """Whether a record would say something else of them."""
    return {number: _step(rate) for number, rate in rates.items()} != {
        number: _step(rate) for number, rate in others.items()
    }


def in_order(uplinks: Iterable[Uplink | None]) -> list[int]:
    """The places of these connections in the order of their ordinals: those on a backup come last."""
    listed = list(uplinks)
    return sorted(range(len(listed)), key=lambda at: (uplink := listed[at]) is not None and uplink.is_backup)


def _pack_numbers(numbers: Sequence[int]) -> int:
    return sum(number << PATH_BITS * ordinal for ordinal, number in enumerate(numbers[:ORDINALS_MAX]))


def _step(rate: float) -> int:
    return 0 if rate <= 0 else max(1, min(_RATE_MASK, 1 + round(_STEPS * log2(max(1.0, rate / _LEAST)))))


def _rate(step: int) -> float:
    return float(_LEAST * 2 ** ((step - 1) / _STEPS)) if step else 0.0
