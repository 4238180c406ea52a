"""The first copy of a block goes on, and no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fec.copy_window import STRAYS_MOST, STREAMS_MAX, WINDOW, CopyWindows
from pipeline.shm.layout import PEER_INDEX_BITS

PEER, STREAM = 1 << PEER_INDEX_BITS | 3, 0x181
NUMBERS = 1 << 32


@given(st.integers(0, NUMBERS - 1), st.lists(st.integers(0, 200), max_size=300))
def test_each_block_goes_on_once_in_any_order(begin: int, offsets: list[int]) -> None:
    windows = CopyWindows()
    passed = [each for each in offsets if windows.is_first(PEER, STREAM, (begin + each) % NUMBERS)]
    assert len(passed) == len(set(passed))
    assert set(passed) == set(offsets)


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=100))
def test_what_is_too_old_does_not_go_on_again(numbers: list[int]) -> None:
    windows = CopyWindows()
    passed = set()
    for number in numbers:
        if windows.is_first(PEER, STREAM, number):
            assert number not in passed
            passed.add(number)


def test_streams_sessions_and_peers_have_windows_of_their_own() -> None:
    windows = CopyWindows()
    assert windows.is_first(PEER, STREAM, 7)
    assert windows.is_first(PEER, STREAM + 2, 7)
    assert windows.is_first(PEER + 1, STREAM, 7)
    assert not windows.is_first(PEER, STREAM, 7)
    assert windows.is_first(PEER + (1 << PEER_INDEX_BITS), STREAM, 7)  # a newer session


def test_a_number_far_ahead_that_was_wrong_does_not_end_the_stream() -> None:
    windows = CopyWindows()
    assert windows.is_first(PEER, STREAM, 5_000_000)
    passed = [number for number in range(100) if windows.is_first(PEER, STREAM, number)]
    assert passed == list(range(STRAYS_MOST, 100))


def test_late_copies_of_a_connection_that_stood_still_do_not_begin_a_stream_anew() -> None:
    windows = CopyWindows()
    for number in range(3 * WINDOW):
        assert windows.is_first(PEER, STREAM, number)
        assert number < WINDOW or not windows.is_first(PEER, STREAM, number - WINDOW)


def test_a_peer_that_uses_many_streams_takes_no_more_memory() -> None:
    windows = CopyWindows()
    for stream in range(10 * STREAMS_MAX):
        windows.is_first(PEER, stream, 0)
    (windows_of_peer,) = [each for _, each in windows._peers.values()]
    assert len(windows_of_peer) == STREAMS_MAX
