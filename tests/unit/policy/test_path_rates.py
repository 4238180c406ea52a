"""The shares of uplinks come close to what each of them carries, whatever they were before."""

from __future__ import annotations

import pytest

from pipeline.policy.path_rates import FAR_NS, LEAST_SHARE, UNKNOWN, PathRates, PathSample, far

TICK = 100_000_000
MBIT = 125_000.0
MS = 1_000_000


class Links:
    """Links that carry so many bytes a second, fed with what is offered by the shares that `rates` makes."""

    def __init__(self, *carry: float) -> None:
        self.carry = list(carry)
        self.rates = PathRates()
        self.now = TICK
        self._delivered = [0.0] * len(carry)
        self._waiting = [0.0] * len(carry)

    def run(self, offered: float, updates: int) -> float:
        """What is delivered in the last update, in bytes a second."""
        total = 0.0
        for _ in range(updates):
            self.now += TICK
            rates = self.rates.rates or dict.fromkeys(range(len(self.carry)), UNKNOWN)
            room = [max(0.0, 20_000 - waiting) for waiting in self._waiting]  # a full socket holds up the others
            scale = min(1.0, *((each + self.carry[n] * 0.1) / max(1.0, offered * 0.1 * self._share(rates, n))
                               for n, each in enumerate(room)))  # fmt: skip
            total = 0.0
            for number, carry in enumerate(self.carry):
                self._waiting[number] += scale * offered * 0.1 * self._share(rates, number)
                gone = min(self._waiting[number], carry * 0.1)
                self._waiting[number] -= gone
                self._delivered[number] += gone
                total += gone * 10
            self.rates.update(
                {
                    number: [PathSample(number, int(delivered), int(self._waiting[number]))]
                    for number, delivered in enumerate(self._delivered)
                },
                self.now,
            )
        return total

    @staticmethod
    def _share(rates: dict[int, float], number: int) -> float:
        return rates[number] / sum(rates.values())


@pytest.mark.parametrize("carry", [(40, 10), (10, 40), (40, 40), (100, 5), (5, 100), (20, 20, 20)], ids=str)
def test_links_under_load_are_all_used(carry: tuple[int, ...]) -> None:
    links = Links(*(each * MBIT for each in carry))
    assert links.run(10 * sum(carry) * MBIT, 60) > 0.9 * sum(carry) * MBIT


def test_a_link_that_carries_less_from_now_on_gets_less_and_one_that_carries_more_gets_more() -> None:
    links = Links(40 * MBIT, 10 * MBIT)
    links.run(500 * MBIT, 40)
    links.carry = [10 * MBIT, 40 * MBIT]
    assert links.run(500 * MBIT, 60) > 0.9 * 50 * MBIT


def test_links_that_are_not_full_keep_their_shares() -> None:
    links = Links(40 * MBIT, 10 * MBIT)
    links.run(500 * MBIT, 40)
    links.run(1 * MBIT, 5)
    before = dict(links.rates.rates)
    links.run(1 * MBIT, 100)
    assert links.rates.rates == pytest.approx(before)


def test_a_link_on_which_nothing_arrives_keeps_a_small_share_by_which_it_is_found_to_carry_again() -> None:
    links = Links(40 * MBIT, 0.0)
    links.run(500 * MBIT, 60)
    assert links.rates.rates[1] == pytest.approx(LEAST_SHARE * sum(links.rates.rates.values()), rel=0.1)
    links.carry[1] = 40 * MBIT
    assert links.run(500 * MBIT, 60) > 0.9 * 80 * MBIT


@pytest.mark.parametrize(
    ("round_trips", "expected"),
    [
        ({0: MS, 1: MS + FAR_NS}, set()),
        ({0: MS, 1: MS + FAR_NS + 1, 2: 700 * MS}, {1, 2}),
        ({0: 700 * MS, 1: 700 * MS}, set()),
        ({0: 0, 1: 700 * MS}, set()),
        ({}, set()),
    ],
    ids=["near", "far", "all far", "not measured", "none"],
)
def test_a_link_is_far_if_another_one_is_much_nearer(round_trips: dict[int, int], expected: set[int]) -> None:
    assert far(round_trips) == expected
