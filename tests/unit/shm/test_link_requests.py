"""What connections call for, packed into one word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.shm.layout import MASK64
from pipeline.shm.link_requests import NONE, LinkRequests, most, read

REQUESTS = st.builds(LinkRequests, st.integers(0, 6), st.integers(0, 2), st.integers(0, 1 << 20))


@given(REQUESTS)
def test_requests_cross_a_word_unchanged(requests: LinkRequests) -> None:
    assert read(requests.pack()) == requests


@given(st.integers(0, MASK64))
def test_a_word_of_a_worker_that_runs_amok_is_read_as_well(word: int) -> None:
    assert read(word).pack() == word


def test_of_several_workers_the_most_of_each_counts() -> None:
    words = [LinkRequests(3, 0, 1000).pack(), LinkRequests(0, 2, 0).pack(), NONE.pack()]
    assert most(words) == LinkRequests(3, 2, 1000)
    assert most([]) == NONE == read(0)
