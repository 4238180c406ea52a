"""A silent uplink is late within a few times what its acknowledgements take, and one on which anything comes is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.path_silence import LEAST_NS, PATIENCE, Sample, late

MS = 1_000_000
RTT = 20 * MS
BUSY = Sample(oldest_ns=25 * MS, heard_ns=1 * MS, rtt_ns=RTT, rttvar_ns=2 * MS)
IDLE = Sample(oldest_ns=None, heard_ns=60_000 * MS, rtt_ns=RTT, rttvar_ns=2 * MS)
ALLOWED = LEAST_NS + 4 * MS
CUT = BUSY._replace(oldest_ns=ALLOWED + 40 * MS, heard_ns=ALLOWED + 6 * MS)
"""Cut off for long enough, under load."""


def test_all_connections_of_a_path_that_has_been_cut_off_are_late_the_idle_ones_too() -> None:
    assert late([CUT, IDLE]) == [True, True]


@pytest.mark.parametrize("path", [[], [IDLE], [BUSY], [BUSY, IDLE], [BUSY, CUT]], ids=str)
def test_a_path_on_which_something_comes_or_nothing_is_outstanding_is_not_late(path: list[Sample]) -> None:
    assert late(path) == [False] * len(path)


def test_what_was_just_sent_on_an_idle_path_has_a_round_trip_to_be_answered_in() -> None:
    for oldest, is_late in ((RTT, False), (RTT + LEAST_NS, False), (RTT + LEAST_NS + 5 * MS, True)):
        assert late([IDLE._replace(oldest_ns=oldest)]) == [is_late]


def test_a_path_with_a_long_or_changing_round_trip_has_more_time() -> None:
    assert late([CUT._replace(rttvar_ns=10 * MS)]) == [False]
    assert late([CUT._replace(rtt_ns=600 * MS)]) == [False]
    assert late([CUT._replace(rtt_ns=600 * MS, oldest_ns=1000 * MS, heard_ns=310 * MS)]) == [True]


def test_a_connection_that_alone_hears_nothing_is_late_after_more_time() -> None:
    stuck = BUSY._replace(oldest_ns=1000 * MS, heard_ns=PATIENCE * ALLOWED + MS)
    assert late([stuck, BUSY]) == [True, False]
    assert late([stuck._replace(heard_ns=PATIENCE * ALLOWED - MS), BUSY]) == [False, False]


SAMPLES = st.builds(
    Sample, st.none() | st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**9), st.integers(0, 10**9)
)


@given(st.lists(SAMPLES, max_size=5))
def test_a_connection_is_late_by_itself_or_with_all_of_its_path(path: list[Sample]) -> None:
    found = late(path)
    assert len(found) == len(path)
    for sample, is_late in zip(path, found, strict=True):
        if is_late and not all(found):
            assert sample.oldest_ns is not None
            assert sample.heard_ns > PATIENCE * LEAST_NS
