"""Parity shards, and lost data shards from others, written from docs/fec-code.md alone. The program's code is not used.

It is not fast. A row is a Python number, and a shard is a list of p rows. An element of the field is a polynomial in y
of p bits, bit k for y^k. Multiplied by y^k, a shard is rotated by k rows. Where bit p - 1 is set, all bits are flipped:
the sum of all powers of y is zero.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

PRIMES = (11, 13, 19, 29, 37)

Rows = list[int]


def prime(n: int, m: int) -> int:
    return next(p for p in PRIMES if p >= n and (p, m) != (13, 6))


def shard_size(size: int, n: int, m: int) -> int:
    """Bytes of a shard of a block of `size` bytes."""
    unit = (prime(n, m) - 1) * 8
    return size if n == 1 else -(-size // (n * unit)) * unit


def checksum(data: bytes, n: int, m: int) -> int:
    """The checksum of the n data shards."""
    width = len(data) // (n * (prime(n, m) - 1))
    rows = (struct.unpack_from(f"<{width // 8}Q", data, at) for at in range(0, len(data), width))
    return zlib.crc32(b"".join((sum(row) % (1 << 64)).to_bytes(8, "little") for row in rows))


def parity(data: Sequence[bytes], m: int) -> list[bytes]:
    """The m parity shards of these data shards, of which there are several."""
    p = prime(len(data), m)
    width = len(data[0]) // (p - 1)
    made = []
    for j in range(m):
        total = [0] * p
        for i, shard in enumerate(data):
            total = _sum(total, _turned(_rows(shard, p), i * j))
        made.append(b"".join((row ^ total[-1]).to_bytes(width, "little") for row in total[:-1]))
    return made


def recover(shards: Mapping[int, bytes], n: int, m: int) -> bytes:
    """The n data shards, from any n shards by their numbers."""
    p = prime(n, m)
    size = len(next(iter(shards.values())))
    rows = {number: _rows(shard, p) for number, shard in shards.items()}
    lost = [i for i in range(n) if i not in shards]
    used = [number - n for number in sorted(shards) if number >= n][: len(lost)]
    left = []
    for j in used:
        total = rows[n + j]
        for i in range(n):
            if i in rows:
                total = _sum(total, _turned(rows[i], i * j))
        left.append(total)
    inverse = _inverse([[_power(i * j, p) for i in lost] for j in used], p)
    for i, factors in zip(lost, inverse, strict=True):
        total = [0] * p
        for factor, equation in zip(factors, left, strict=True):
            for k in range(p):
                if factor >> k & 1:
                    total = _sum(total, _turned(equation, k))
        rows[i] = [row ^ total[-1] for row in total]
    width = size // (p - 1)
    return b"".join(row.to_bytes(width, "little") for i in range(n) for row in rows[i][:-1])


def _rows(shard: bytes, p: int) -> Rows:
    width = len(shard) // (p - 1)
    return [int.from_bytes(shard[at : at + width], "little") for at in range(0, len(shard), width)] + [0]


def _sum(one: Rows, other: Rows) -> Rows:
    return [a ^ b for a, b in zip(one, other, strict=True)]


def _turned(rows: Rows, k: int) -> Rows:
    k %= len(rows)
    return rows[k:] + rows[:k]


# -- the field


def _power(k: int, p: int) -> int:
    return _reduced(1 << k % p, p)


def _reduced(value: int, p: int) -> int:
    return value ^ (1 << p) - 1 if value >> (p - 1) & 1 else value


def _product(a: int, b: int, p: int) -> int:
    total = 0
    for k in range(p):
        if b >> k & 1:
            total ^= a << k
    return _reduced(total & (1 << p) - 1 ^ total >> p, p)


def _reciprocal(a: int, p: int) -> int:
    """a to the power of 2^(p-1) - 2, in a field of 2^(p-1) elements."""
    result = 1
    for _ in range(p - 2):
        a = _product(a, a, p)
        result = _product(result, a, p)
    return result


def _inverse(matrix: list[list[int]], p: int) -> list[list[int]]:
    """The inverse of a matrix, by Gauss-Jordan elimination."""
    size = len(matrix)
    work = [row + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if work[i][column])
        work[column], work[pivot] = work[pivot], work[column]
        factor = _reciprocal(work[column][column], p)
        work[column] = [_product(value, factor, p) for value in work[column]]
        for i in range(size):
            if i != column and work[i][column]:
                times = work[i][column]
                work[i] = [
                    value ^ _product(times, above, p) for value, above in zip(work[i], work[column], strict=True)
                ]
    return [row[size:] for row in work]
