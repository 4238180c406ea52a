"""A path record says which connection is on which uplink, and its rates within an eighth of an octave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime import link_paths
from pipeline.runtime.link_paths import ORDINALS_MAX, Paths
from pipeline.wire.uplink import UPLINKS_MAX, Uplink

NUMBERS = st.lists(st.integers(0, UPLINKS_MAX - 1), max_size=ORDINALS_MAX).map(tuple)
RATES = st.dictionaries(st.integers(0, UPLINKS_MAX - 1), st.floats(2000, 1e10), max_size=UPLINKS_MAX)


@given(NUMBERS, NUMBERS, RATES, st.frozensets(st.integers(0, UPLINKS_MAX - 1)))
def test_a_record_is_read_as_it_was_written(
    bulk: tuple[int, ...], light: tuple[int, ...], rates: dict[int, float], mains: frozenset[int]
) -> None:
    mains &= rates.keys()
    found = link_paths.unpack(Paths(bulk, light, rates, mains).pack(), len(bulk), len(light))
    assert (found.bulk, found.light, found.mains) == (bulk, light, mains)
    assert found.rates.keys() == rates.keys()
    for number, rate in rates.items():
        assert found.rates[number] == pytest.approx(rate, rel=0.05)


def test_a_path_that_carries_nothing_has_no_rate() -> None:
    found = link_paths.unpack(Paths((0, 1), (0,), {0: 0.0, 1: 5e6}, frozenset({0, 1})).pack(), 2, 1)
    assert found.rates[0] == 0.0 and found.mains == {0, 1}


def rates_word(rates: dict[int, float], mains: set[int]) -> int:
    return Paths((), (), rates, frozenset(mains)).pack()[2]


def test_a_backup_carries_once_no_main_uplink_of_any_worker_does() -> None:
    at_rest, silent = rates_word({1: 5e6, 2: 1e6}, {1}), rates_word({0: 0.0, 2: 1e6}, {0})
    assert link_paths.carriers([at_rest, silent]) == {1}
    assert link_paths.carriers([silent, silent]) == {2}
    assert link_paths.carriers([0, 0]) == set()


def test_rates_differ_if_their_records_do() -> None:
    assert not link_paths.differ({0: 2**20}, {0: 2**20 + 1000})
    assert link_paths.differ({0: 1e6}, {0: 1.2e6}) and link_paths.differ({0: 1e6}, {0: 1e6, 1: 1e6})


def test_connections_on_a_backup_come_last() -> None:
    wwan, eth = Uplink(0, "wwan0", True), Uplink(1, "eth0", False)
    assert link_paths.in_order([wwan, eth, wwan, eth, None]) == [1, 3, 4, 0, 2]
