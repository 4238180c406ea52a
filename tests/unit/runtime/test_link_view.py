"""The ways to a peer as the tcp workers tell them: which worker, which connections, how much parity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.link_view import ConnectionRef, LinkView
from tests.harness.run import Run

LANE, PEER, OTHER = 1, 2, 3


@pytest.fixture
def run() -> Iterator[Run]:
    made = Run()
    yield made
    made.close()


@pytest.fixture
def ways(run: Run) -> LinkView:
    """Of the tun worker of the lane in the middle."""
    return LinkView(run.attach(f"tun-{LANE}"))


def counts(run: Run, *established: int | tuple[int, int], peer: int = PEER) -> None:
    """Connections of each tcp worker to a peer, or those and how many of them are for light flows."""
    for lane, count in enumerate(established):
        run.say(lane, peer, *(count if isinstance(count, tuple) else (count,)))


@pytest.mark.parametrize(
    ("established", "own"), [((0, 0, 0), LANE), ((0, 1, 0), LANE), ((5, 1, 5), LANE), ((5, 0, 5), 0), ((0, 0, 5), 2)]
)
def test_plain_blocks_go_by_the_own_lanes_worker_or_by_another_while_only_others_have_connections(
    run: Run, ways: LinkView, established: tuple[int, ...], own: int
) -> None:
    counts(run, *established)
    assert ways.own(PEER) == own


@pytest.mark.parametrize(
    ("established", "own", "light"),
    [
        (((2, 0), (2, 0), (2, 0)), 1, 1),  # nobody has any for light flows
        (((2, 1), (2, 1), (2, 1)), 1, 1),
        (((2, 0), (2, 0), (2, 1)), 1, 2),
        (((2, 1), (2, 0), (2, 1)), 1, 0),
        (((0, 0), (0, 0), (1, 1)), 2, 2),
    ],
)
def test_light_blocks_go_by_the_worker_of_the_plain_ones_unless_others_alone_have_connections_for_them(
    run: Run, ways: LinkView, established: tuple[tuple[int, int], ...], own: int, light: int
) -> None:
    counts(run, *established)
    assert ways.own(PEER) == own
    assert ways.own_light(PEER, own) == light


def test_what_a_peer_accepts_is_known_once_it_has_a_connection(run: Run, ways: LinkView) -> None:
    run.say(0, PEER, established=0, offloads=7)
    assert ways.offloads(PEER) is None
    run.say(2, PEER, established=1, offloads=0)
    assert ways.offloads(PEER) == 0
    run.say(2, PEER, established=1, offloads=5)
    assert ways.offloads(PEER) == 5
    assert ways.offloads(OTHER) is None


def test_the_worker_in_the_most_need_says_how_much_parity_there_is(run: Run, ways: LinkView) -> None:
    assert ways.parity(PEER) == 0
    run.say(1, PEER, established=1, decodes=1, parity=3)
    run.say(0, PEER, established=1, decodes=1, parity=1)
    run.say(2, PEER, established=2, decodes=1, parity=2)
    assert ways.parity(PEER) == 3
    run.say(1, PEER, established=0, decodes=1, parity=3)
    assert ways.parity(PEER) == 2


def test_who_does_not_take_shards_on_every_connection_gets_none(run: Run, ways: LinkView) -> None:
    run.say(0, PEER, established=1, decodes=1, parity=3)
    run.say(1, PEER, established=1, decodes=0, parity=3)
    assert ways.parity(PEER) == 0


@pytest.mark.parametrize(
    ("established", "bulk", "light"),
    [
        (((0, 0), (0, 0), (0, 0)), (), ()),
        (((2, 0), (0, 0), (1, 0)), ((0, 0), (0, 1), (2, 0)), ((0, 0), (0, 1), (2, 0))),
        (((2, 1), (1, 1), (1, 0)), ((0, 0), (2, 0)), ((0, 0), (1, 0))),
        (((1, 1), (0, 0), (2, 2)), ((0, 0), (2, 0), (2, 1)), ((0, 0), (2, 0), (2, 1))),
    ],
)
def test_connections_are_for_bulk_or_for_light_flows_and_for_both_if_there_are_none_of_a_kind(
    run: Run,
    ways: LinkView,
    established: tuple[tuple[int, int], ...],
    bulk: tuple[ConnectionRef, ...],
    light: tuple[ConnectionRef, ...],
) -> None:
    counts(run, *established)
    assert ways.for_bulk(PEER) == bulk
    assert ways.for_light(PEER) == light


def test_connections_that_come_and_go_are_seen_at_once(run: Run, ways: LinkView) -> None:
    for count in (1, 2, 0, 1):
        counts(run, 0, count, 0)
        assert ways.for_bulk(PEER) == tuple((1, ordinal) for ordinal in range(count))
        assert ways.for_bulk(PEER) is ways.for_bulk(PEER)  # made once, not for each block


LINES = st.lists(st.tuples(*[st.integers(0, 5)] * 5), min_size=3, max_size=3)


@given(LINES, LINES)
def test_one_peers_connections_are_no_way_to_another(ours: list[tuple], theirs: list[tuple]) -> None:
    run = Run()
    try:
        ways = LinkView(run.attach(f"tun-{LANE}"))

        def told(lines: list[tuple], peer: int) -> None:
            for lane, (bulk, light, offloads, decodes, parity) in enumerate(lines):
                run.say(lane, peer, bulk + light, light, offloads, decodes, parity)

        def seen(peer: int) -> tuple:
            own = ways.own(peer)
            return (
                own,
                ways.own_light(peer, own),
                ways.offloads(peer),
                ways.parity(peer),
                ways.for_bulk(peer),
                ways.for_light(peer),
            )

        told(ours, PEER)
        before = seen(PEER)
        told(theirs, OTHER)
        told(theirs, PEER - 1)
        assert seen(PEER) == before
        told(theirs, PEER)
        assert seen(PEER) == seen(OTHER) == seen(PEER - 1)
    finally:
        run.close()
