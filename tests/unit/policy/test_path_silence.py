"""A silent uplink is late within a few times what its acknowledgements take, and one on which anything comes is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.path_silence import (
    GAP_FIRST_NS,
    GAPS,
    LEAST_NS,
    OVERDUE_NS,
    PATIENCE,
    PathSilence,
    Sample,
)

MS = 1_000_000
RTT = 20 * MS
BUSY = Sample(oldest_ns=25 * MS, heard_ns=1 * MS, rtt_ns=RTT, rttvar_ns=2 * MS, least_rtt_ns=RTT)
IDLE = BUSY._replace(oldest_ns=None, heard_ns=60_000 * MS)
ALLOWED = LEAST_NS + 4 * MS
CUT = BUSY._replace(oldest_ns=60 * MS, heard_ns=ALLOWED + MS)
"""Cut off for a little longer than is allowed under load."""


@pytest.fixture
def loaded() -> PathSilence:
    """A path that has had load for a while."""
    silence = PathSilence()
    for _ in range(1000):
        assert silence.late([BUSY]) == [False]
    return silence


def test_all_connections_of_a_path_that_has_been_cut_off_are_late_the_idle_ones_too(loaded: PathSilence) -> None:
    assert loaded.late([CUT, IDLE]) == [True, True]


@pytest.mark.parametrize("path", [[], [IDLE], [BUSY], [BUSY, IDLE], [BUSY, CUT]], ids=str)
def test_a_path_on_which_something_comes_or_nothing_is_outstanding_is_not_late(
    loaded: PathSilence, path: list[Sample]
) -> None:
    assert loaded.late(path) == [False] * len(path)


def test_a_fresh_path_has_more_time() -> None:
    assert PathSilence().late([CUT]) == [False]
    longer = int(GAPS * GAP_FIRST_NS) + 5 * MS
    assert PathSilence().late([CUT._replace(oldest_ns=longer + RTT, heard_ns=longer)]) == [True]


def test_what_was_just_sent_has_a_round_trip_to_be_answered_in(loaded: PathSilence) -> None:
    for oldest, is_late in ((RTT, False), (RTT + ALLOWED, False), (RTT + ALLOWED + MS, True)):
        assert loaded.late([IDLE._replace(oldest_ns=oldest)]) == [is_late]


def test_a_path_whose_acknowledgements_stay_away_now_and_then_has_more_time(loaded: PathSilence) -> None:
    delayed = CUT._replace(oldest_ns=RTT + 14 * MS, heard_ns=14 * MS)  # as by delayed acknowledgements
    for _ in range(20):
        assert loaded.late([delayed]) == [False]
        assert loaded.late([BUSY]) == [False]
    assert loaded.late([CUT]) == [False]
    longer = int(GAPS * 14 * MS) + 5 * MS
    assert loaded.late([CUT._replace(oldest_ns=longer + RTT, heard_ns=longer)]) == [True]


def test_a_path_with_a_long_or_changing_round_trip_has_more_time(loaded: PathSilence) -> None:
    assert loaded.late([CUT._replace(rttvar_ns=10 * MS)]) == [False]
    long = CUT._replace(rtt_ns=600 * MS, least_rtt_ns=600 * MS)
    assert loaded.late([long]) == [False]
    assert loaded.late([long._replace(oldest_ns=1000 * MS, heard_ns=310 * MS)]) == [True]


def test_a_connection_that_alone_hears_nothing_is_late_after_more_time(loaded: PathSilence) -> None:
    stuck = BUSY._replace(oldest_ns=240 * MS, heard_ns=PATIENCE * ALLOWED + MS)
    assert loaded.late([stuck._replace(heard_ns=PATIENCE * ALLOWED - MS), BUSY]) == [False, False]
    assert loaded.late([stuck, BUSY]) == [True, False]


def test_a_connection_that_holds_something_for_long_is_late_although_it_hears_something(loaded: PathSilence) -> None:
    for oldest, is_late in ((OVERDUE_NS + 2 * RTT, False), (OVERDUE_NS + 2 * RTT + 1, True)):
        assert loaded.late([BUSY._replace(oldest_ns=oldest), BUSY]) == [is_late, False]


SAMPLES = st.builds(
    Sample,
    st.none() | st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)


@given(st.lists(st.lists(SAMPLES, max_size=5), max_size=10))
def test_a_connection_is_late_by_itself_or_with_all_of_its_path(looks: list[list[Sample]]) -> None:
    silence = PathSilence()
    for path in looks:
        found = silence.late(path)
        assert len(found) == len(path)
        for sample, is_late in zip(path, found, strict=True):
            if is_late and not all(found):
                assert sample.oldest_ns is not None
                assert sample.heard_ns > PATIENCE * LEAST_NS or sample.oldest_ns > OVERDUE_NS
