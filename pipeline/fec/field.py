"""The algebra of `pipeline.fec.codec`: how lost shards follow from parity, computed once for each pattern of losses.

To turn p rows by one is to multiply by y. So p rows are a polynomial in y with y^p = 1. A polynomial is an int here:
bit k is the coefficient of y^k. Equal rows count as zero, so this is F2[y] modulo 1 + y + ... + y^(p-1), which is a
field because 2 is a primitive root modulo p. Each element has two forms, one the complement of the other.

Parity j is the sum over i of y^(i*j) times shard i. Subtract the shards that are present: then as many of these
equations as shards are lost give the lost ones. The matrix is nearly Vandermonde's. So each row of its inverse is
written as one factor times simpler terms, in which most bits cancel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

PATTERNS_KEPT = 1024
"""Solutions that are kept; 10 + 3 has 175 patterns in which more than one data shard is lost."""


class Step(NamedTuple):
    """How one lost shard is computed: sum the sources, then sum the turns of that sum which `factor` lists.

    Parity j turned by k has number j * p + k. The sum of the sources turned by k has number m * p + k. Without sources,
    `factor` lists numbers of parities.
    """

    shard: int
    sources: tuple[int, ...]
    factor: tuple[int, ...]


class Solution(NamedTuple):
    """How the lost data shards of one pattern follow from parity."""

    used: tuple[int, ...]  # the lowest parity shards that are present, as many as data shards are lost
    turned: tuple[int, ...]  # the used parity shards that are needed in other turns than 0
    steps: tuple[Step, ...]
    by_sum: int  # the lost shard that is parity 0 minus all other shards; -1 if parity 0 is lost


@lru_cache(PATTERNS_KEPT)
def solution(p: int, n: int, m: int, present: int) -> Solution | None:
    """The solution for a pattern; bit i of `present` is shard i, data first. None if fewer than n are there."""
    lost = [i for i in range(n) if not present >> i & 1]
    used = [j for j in range(m) if present >> (n + j) & 1][: len(lost)]
    if len(used) < len(lost):
        return None
    rows = inverse_matrix(p, [[1 << i * j % p for i in lost] for j in used])
    steps = [_step(p, m, shard, used, row) for shard, row in zip(lost, rows, strict=True)]
    by_sum = -1
    if used and used[0] == 0:
        costly = max(steps, key=_terms)
        by_sum = costly.shard
        steps.remove(costly)
    turned = {number // p for _, sources, factor in steps for number in sources or factor if number % p}
    return Solution(tuple(used), tuple(sorted(turned)), tuple(steps), by_sum)


def multiply(p: int, a: int, b: int) -> int:
    """The product, in its form with fewer bits."""
    product = 0
    while b:
        low = b & -b
        shifted = a * low
        product ^= shifted & (1 << p) - 1 ^ shifted >> p
        b ^= low
    return fewer(p, product)


def fewer(p: int, a: int) -> int:
    """The form of `a` with at most (p - 1) / 2 bits; 0 only for the element zero."""
    return a ^ (1 << p) - 1 if a.bit_count() > p // 2 else a


def inverse(p: int, a: int) -> int:
    """1 / a by Euclid's algorithm, for any element but zero."""
    modulus = (1 << p) - 1
    if a.bit_length() == p:
        a ^= modulus
    high, low = modulus, a
    of_high, of_low = 0, 1
    while low != 1:
        shift = high.bit_length() - low.bit_length()
        if shift < 0:
            high, low, of_high, of_low = low, high, of_low, of_high
        else:
            high ^= low << shift
            of_high ^= of_low << shift
    return fewer(p, of_low & modulus ^ of_low >> p)


def inverse_matrix(p: int, matrix: list[list[int]]) -> list[list[int]]:
    """The inverse by Gauss and Jordan. No pivot is zero: in the code's domain no minor of its matrix is."""
    size = len(matrix)
    work = [row + [int(i == k) for k in range(size)] for i, row in enumerate(matrix)]
    for column, row in enumerate(work):
        scale = inverse(p, row[column])
        row[:] = [multiply(p, scale, value) for value in row]
        for other in work:
            if other is not row:
                by = other[column]
                other[:] = [a ^ multiply(p, by, b) for a, b in zip(other, row, strict=True)]
    return [row[size:] for row in work]


def _step(p: int, m: int, shard: int, used: list[int], row: list[int]) -> Step:
    """The step for a row of the inverse. Its factor is the element that leaves the fewest terms."""
    if len(row) == 1:
        return Step(shard, (), _numbers(p, used[0], row[0]))
    steps = []
    for factor in row:
        scale = inverse(p, factor)
        sources = [
            number for j, value in zip(used, row, strict=True) for number in _numbers(p, j, multiply(p, scale, value))
        ]
        steps.append(Step(shard, tuple(sources), _numbers(p, m, factor)))
    return min(steps, key=_terms)


def _terms(step: Step) -> int:
    return len(step.sources) + len(step.factor)


def _numbers(p: int, j: int, a: int) -> tuple[int, ...]:
    """The numbers of the turns of parity j whose sum is `a` times parity j."""
    return tuple(j * p + k for k in range(p) if fewer(p, a) >> k & 1)
