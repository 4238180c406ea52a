"""The domain of the erasure code: every minor of its matrix is invertible, so every loss of m shards is recovered."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from pipeline.errors import LocalError
from pipeline.fec import codec, field, shard

DOMAIN = [(p, 6 if p in shard.PRIMES_OF_SIX else 5) for p in shard.PRIMES]


def vanishing_minors(p: int, order: int, parities: tuple[int, ...]) -> int:
    """How many minors of this order of the matrix y^(i*j), j in `parities`, 0 <= i < p, are zero in the field.

    Counting all shards from another one on multiplies a minor by a power of y, so the first of its shards is 0. A minor
    is the sum over all permutations of one power of y each: its coefficients are the bits of a word. It is zero if
    they are all equal.
    """
    shards = np.array([(0, *others) for others in combinations(range(1, p), order - 1)], np.uint8)
    turns = [[(shards[:, row].astype(np.uint16) * j % p).astype(np.uint8) for j in parities] for row in range(order)]
    power = np.array([1 << k % p for k in range(order * p)], np.uint64)
    total = np.zeros(len(shards), np.uint64)
    for rows in permutations(range(order)):
        turn = turns[rows[0]][0].copy()
        for column in range(1, order):
            turn += turns[rows[column]][column]
        total ^= power[turn]
    return int(np.count_nonzero((total == 0) | (total == (1 << p) - 1)))


def choices_of_parities(most: int) -> list[tuple[int, tuple[int, ...]]]:
    """Each order with each choice of as many parities. The first is 0: others differ by a power of y in each row."""
    return [(order, (0, *others)) for order in range(1, most + 1) for others in combinations(range(1, most), order - 1)]


@pytest.mark.parametrize("p", shard.PRIMES)
def test_2_is_a_primitive_root_so_that_there_is_a_field(p: int) -> None:
    assert all(p % divisor for divisor in range(2, p))
    assert {pow(2, k, p) for k in range(p - 1)} == set(range(1, p))


@pytest.mark.parametrize(("p", "m"), DOMAIN)
def test_every_minor_is_invertible(p: int, m: int) -> None:
    assert {parities: vanishing_minors(p, order, parities) for order, parities in choices_of_parities(m)} == {
        parities: 0 for _, parities in choices_of_parities(m)
    }


def test_13_rows_do_not_carry_6_parity_shards() -> None:
    assert sum(vanishing_minors(13, order, parities) for order, parities in choices_of_parities(6)) > 0


def test_every_shape_that_passes_has_a_p_of_the_domain() -> None:
    for n in range(-1, 60):
        for m in range(-1, 12):
            try:
                codec.check(n, m)
            except LocalError:
                assert not (2 <= n <= shard.DATA_SHARDS_MAX and 1 <= m <= shard.PARITY_SHARDS_MAX)
            else:
                assert any(p == shard.prime(n, m) and n <= p and m <= most for p, most in DOMAIN)


@pytest.mark.parametrize("p", shard.PRIMES)
def test_an_element_times_its_inverse_is_one(p: int) -> None:
    random = np.random.default_rng(p)
    for a in [1, 2, 3, 1 << p - 1, (1 << p) - 2, *map(int, random.integers(1, (1 << p) - 1, 200))]:
        assert field.multiply(p, a, field.inverse(p, a)) == 1


def test_a_solution_uses_the_lowest_parity_and_the_plain_sum_for_one_shard() -> None:
    found = field.solution(11, 10, 3, 0b1_1_1_1111110101)
    assert (found.used, {found.by_sum, *(step.shard for step in found.steps)}) == ((0, 1), {1, 3})
    found = field.solution(11, 10, 3, 0b1_1_0_1111110101)
    assert (found.used, found.by_sum, [step.shard for step in found.steps]) == ((1, 2), -1, [1, 3])
    assert field.solution(11, 10, 3, 0b0_1_0_1111110101) is None
