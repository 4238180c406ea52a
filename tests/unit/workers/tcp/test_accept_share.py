"""The turns of tcp workers to accept: the one with the fewest connections takes those that wait."""

from __future__ import annotations

import pytest

from tests.harness.run import Run
from workers.tcp.accept_share import LOOK_AGAIN_NS, PATIENCE_NS, AcceptShare

NOW = 1_000_000_000_000
WORKERS = 3


@pytest.fixture
def shares(run: Run) -> list[AcceptShare]:
    return [AcceptShare(run.attach(f"tcp-{number}")) for number in range(WORKERS)]


def note(shares: list[AcceptShare], *counts: int) -> None:
    for share, count in zip(shares, counts, strict=True):
        share.note(count)


def turns(shares: list[AcceptShare], now: int = NOW) -> list[bool]:
    return [share.is_ours(now) for share in shares]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0), [True, True, True]),
        ((1, 0, 0), [False, True, True]),
        ((1, 1, 0), [False, False, True]),
        ((7, 3, 5), [False, True, False]),
    ],
)
def test_a_worker_takes_those_that_wait_unless_another_one_has_fewer(
    shares: list[AcceptShare], counts: tuple[int, ...], expected: list[bool]
) -> None:
    note(shares, *counts)
    assert turns(shares) == expected


def test_a_successor_begins_with_none(run: Run, shares: list[AcceptShare]) -> None:
    note(shares, 0, 5, 5)
    successor = AcceptShare(run.attach("tcp-1"))
    assert successor.is_ours(NOW)


def test_connections_that_another_worker_leaves_standing_are_taken_after_a_moment(shares: list[AcceptShare]) -> None:
    note(shares, 1, 0, 1)
    share = shares[0]
    after = [number * LOOK_AGAIN_NS for number in range(2 * PATIENCE_NS // LOOK_AGAIN_NS)]
    assert [share.is_ours(NOW + passed) for passed in after] == [passed >= PATIENCE_NS for passed in after]


def test_while_the_other_worker_hangs_the_next_ones_need_not_wait_again(shares: list[AcceptShare]) -> None:
    note(shares, 1, 0, 1)
    share = shares[0]
    share.is_ours(NOW)
    assert share.is_ours(NOW + PATIENCE_NS)
    note(shares, 2, 0, 1)
    assert share.is_ours(NOW + PATIENCE_NS + LOOK_AGAIN_NS)


def test_a_turn_of_long_ago_says_nothing_about_the_next_connection(shares: list[AcceptShare]) -> None:
    note(shares, 1, 0, 1)
    share = shares[0]
    assert not share.is_ours(NOW)
    assert not share.is_ours(NOW + 100 * PATIENCE_NS)
    assert not share.is_ours(NOW + 100 * PATIENCE_NS + PATIENCE_NS - 1)


def test_the_only_worker_never_waits() -> None:
    run = Run(lanes=1)
    try:
        share = AcceptShare(run.attach("tcp-0"))
        share.note(1000)
        assert share.is_ours(NOW)
    finally:
        run.close()
