"""The link view: which tcp worker, which connections, how much parity."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.link_paths import Paths
from pipeline.runtime.link_view import ConnectionRef, LinkView
from pipeline.shm.layout import (
    DATAGRAM_BULK_BY_TCP,
    DATAGRAM_PATH,
    DATAGRAM_RECEIVED_BYTES,
    DATAGRAM_WAITS,
    LINK_RECEIVED_BYTES,
    PEER_INDEX_BITS,
    RECORD_WORDS,
)
from tests.harness.run import Run

LANE, PEER, OTHER = 1, 2, 3


@pytest.fixture
def link_view(run: Run) -> LinkView:
    """The link view of the tun worker of the lane in the middle."""
    return LinkView(run.attach(f"tun-{LANE}"))


def counts(run: Run, *established: int | tuple[int, int], peer: int = PEER) -> None:
    """Connections of each tcp worker to a peer, or those and how many of them are for light flows."""
    for lane, count in enumerate(established):
        run.write_link(lane, peer, *(count if isinstance(count, tuple) else (count,)))


@pytest.mark.parametrize(
    ("established", "own"), [((0, 0, 0), LANE), ((0, 1, 0), LANE), ((5, 1, 5), LANE), ((5, 0, 5), 0), ((0, 0, 5), 2)]
)
def test_plain_blocks_are_for_the_lanes_own_worker_or_for_another_while_only_others_have_connections(
    run: Run, link_view: LinkView, established: tuple[int, ...], own: int
) -> None:
    counts(run, *established)
    assert link_view.state(PEER).bulk_consumer == own


@pytest.mark.parametrize(
    ("established", "own", "light"),
    [
        (((2, 0), (2, 0), (2, 0)), 1, 1),  # no worker has connections for light flows
        (((2, 1), (2, 1), (2, 1)), 1, 1),
        (((2, 0), (2, 0), (2, 1)), 1, 2),
        (((2, 1), (2, 0), (2, 1)), 1, 0),
        (((0, 0), (0, 0), (1, 1)), 2, 2),
    ],
)
def test_light_blocks_are_for_the_worker_of_plain_blocks_unless_others_alone_have_connections_for_them(
    run: Run, link_view: LinkView, established: tuple[tuple[int, int], ...], own: int, light: int
) -> None:
    counts(run, *established)
    assert link_view.state(PEER).bulk_consumer == own
    assert link_view.state(PEER).light_consumer == light


@pytest.mark.parametrize(
    ("of_lanes", "expected"),
    [
        (([0], [1], [2]), 1),  # the own worker has one of this lane
        (([1], [1], [1]), 1),
        (([1], [0], [2]), 0),
        (([0], [2], [1, 2]), 2),
        (([0], [2], [2]), 1),  # nobody has: the own worker
        (([0], [], [2]), 0),
    ],
)
def test_blocks_of_a_lane_go_to_a_worker_with_a_connection_of_that_lane(
    run: Run, link_view: LinkView, of_lanes: tuple[list[int], ...], expected: int
) -> None:
    for worker, lanes in enumerate(of_lanes):
        run.write_link(worker, PEER, len(lanes), of_lanes=lanes)
    assert link_view.state(PEER).bulk_consumer == expected


def test_light_blocks_of_a_lane_go_to_a_worker_with_a_light_connection_of_that_lane(
    run: Run, link_view: LinkView
) -> None:
    run.write_link(0, PEER, 2, light=1, of_lanes=[0], light_of_lanes=[2])
    run.write_link(1, PEER, 2, light=1, of_lanes=[1], light_of_lanes=[0])
    run.write_link(2, PEER, 2, light=1, of_lanes=[2], light_of_lanes=[LANE])
    assert link_view.state(PEER).bulk_consumer == 1
    assert link_view.state(PEER).light_consumer == 2
    run.write_link(2, PEER, 2, light=1, of_lanes=[2], light_of_lanes=[0])
    assert link_view.state(PEER).light_consumer == 1


def test_the_offloads_of_a_peer_are_known_once_it_has_a_connection(run: Run, link_view: LinkView) -> None:
    run.write_link(0, PEER, established=0, offloads=7)
    assert link_view.state(PEER).offloads is None
    run.write_link(2, PEER, established=1, offloads=0)
    assert link_view.state(PEER).offloads == 0
    run.write_link(2, PEER, established=1, offloads=5)
    assert link_view.state(PEER).offloads == 5
    assert link_view.state(OTHER).offloads is None


def test_parity_is_that_of_the_worker_that_needs_most(run: Run, link_view: LinkView) -> None:
    assert link_view.state(PEER).parity == 0
    run.write_link(1, PEER, established=1, decodes=1, parity=3)
    run.write_link(0, PEER, established=1, decodes=1, parity=1)
    run.write_link(2, PEER, established=2, decodes=1, parity=2)
    assert link_view.state(PEER).parity == 3
    run.write_link(1, PEER, established=0, decodes=1, parity=3)
    assert link_view.state(PEER).parity == 2


def test_a_peer_that_does_not_accept_shards_on_every_connection_gets_none(run: Run, link_view: LinkView) -> None:
    run.write_link(0, PEER, established=1, decodes=1, parity=3)
    run.write_link(1, PEER, established=1, decodes=0, parity=3)
    assert link_view.state(PEER).parity == 0


def test_copies_are_those_of_the_worker_that_needs_most_and_a_peer_may_accept_none(
    run: Run, link_view: LinkView
) -> None:
    assert link_view.state(PEER).copies == -1
    for lane, copies in enumerate((0, 2, 1)):
        run.write_link(lane, PEER, established=1, decodes=1, parity=3, copies=copies, spacing_us=5000 - lane)
    assert link_view.state(PEER).copies == 2
    assert run.memory.peer_table.spacing_ns(PEER) == 5_000_000
    run.write_link(1, PEER, established=0, decodes=1)
    assert link_view.state(PEER).copies == 1
    run.write_link(0, PEER, established=1, decodes=0)
    assert link_view.state(PEER).copies == -1


@pytest.mark.parametrize(
    ("established", "consumer", "expected"),
    [
        (((0, 0), (8, 3), (0, 0)), 1, ((1, 0), (1, 1), (1, 2))),
        (((2, 1), (2, 1), (2, 1)), 1, ((1, 0), (2, 0), (0, 0))),
        (((2, 0), (0, 0), (0, 0)), 0, ((0, 0), (0, 1))),
        (((2, 1), (0, 0), (2, 2)), 0, ((0, 0), (2, 0), (2, 1))),
    ],
)
def test_copies_begin_with_the_connection_that_a_block_without_copies_takes(
    run: Run,
    link_view: LinkView,
    established: tuple[tuple[int, int], ...],
    consumer: int,
    expected: tuple[ConnectionRef, ...],
) -> None:
    counts(run, *established)
    link = link_view.state(PEER)
    assert link.light_consumer == consumer
    assert link.copy_connections == expected
    assert link.has_light == any(light for _, light in established)


def test_a_lane_without_a_light_connection_of_its_own_uses_a_foreign_one(run: Run, link_view: LinkView) -> None:
    run.write_link(0, PEER, 2, of_lanes=[LANE])
    assert not link_view.state(PEER).is_foreign  # there are no light connections at all
    run.write_link(2, PEER, 2, light=2, light_of_lanes=[0, 2])
    assert link_view.state(PEER).is_foreign
    run.write_link(1, PEER, 1, light=1, light_of_lanes=[LANE])
    assert not link_view.state(PEER).is_foreign


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
    link_view: LinkView,
    established: tuple[tuple[int, int], ...],
    bulk: tuple[ConnectionRef, ...],
    light: tuple[ConnectionRef, ...],
) -> None:
    counts(run, *established)
    assert link_view.state(PEER).bulk_connections == bulk
    assert link_view.state(PEER).light_connections == light


def test_connections_that_come_and_go_are_seen_at_once(run: Run, link_view: LinkView) -> None:
    for count in (1, 2, 0, 1):
        counts(run, 0, count, 0)
        assert link_view.state(PEER).bulk_connections == tuple((1, ordinal) for ordinal in range(count))
        assert link_view.state(PEER) is link_view.state(PEER)  # made once, not for each block


ETH, WWAN = 0, 1


def write_paths(
    run: Run, lane: int, bulk: list[int], light: list[int], rates: dict[int, float], mains: set[int], version: int = 1
) -> None:
    """The connections of a tcp worker to the peer, on these uplinks."""
    record = Paths(tuple(bulk), tuple(light), rates, frozenset(mains)).pack()
    at = PEER * RECORD_WORDS
    run.memory.peer_table.paths[lane][at : at + 3] = array("Q", record)
    run.write_link(lane, PEER, len(bulk) + len(light), light=len(light), decodes=version << 1 | 1)


def test_bulk_of_a_peer_with_uplinks_is_coded_and_shared_out_by_their_rates(run: Run, link_view: LinkView) -> None:
    write_paths(run, LANE, [ETH, WWAN, ETH], [ETH, WWAN], {ETH: 8e6, WWAN: 1e6}, {ETH, WWAN})
    link = link_view.state(PEER)
    assert link.is_coded and link.has_paths and not link.parity
    assert link.bulk_connections == ((LANE, 0), (LANE, 1), (LANE, 2))
    assert link.shares == pytest.approx((4 / 9, 1 / 9, 4 / 9), rel=0.1)
    write_paths(run, LANE, [ETH, WWAN, ETH], [ETH, WWAN], {ETH: 1e6, WWAN: 1e6}, {ETH, WWAN}, version=2)
    assert link_view.state(PEER).shares == pytest.approx((1 / 4, 1 / 2, 1 / 4), rel=0.1)


def test_light_packets_of_a_peer_with_uplinks_go_on_two_of_them(run: Run, link_view: LinkView) -> None:
    write_paths(run, LANE, [ETH, WWAN], [ETH, ETH, WWAN], {ETH: 8e6, WWAN: 1e6}, {ETH, WWAN})
    link = link_view.state(PEER)
    assert link.copy_connections == ((LANE, 0), (LANE, 2), (LANE, 1)) and link.is_paired


def test_a_backup_gets_nothing_until_no_main_uplink_carries_anything(run: Run, link_view: LinkView) -> None:
    write_paths(run, LANE, [ETH, WWAN], [ETH, WWAN], {ETH: 1e6, WWAN: 8e6}, {ETH})
    link = link_view.state(PEER)
    assert (link.bulk_connections, link.shares) == (((LANE, 0),), (1.0,))
    assert link.copy_connections == ((LANE, 0),) and not link.is_paired
    write_paths(run, LANE, [ETH, WWAN], [ETH, WWAN], {ETH: 0.0, WWAN: 8e6}, {ETH}, version=2)
    link = link_view.state(PEER)
    assert link.shares == (0.0, 1.0) and (LANE, 1) in link.copy_connections
    write_paths(run, LANE, [WWAN], [WWAN], {WWAN: 8e6}, set(), version=3)
    assert link_view.state(PEER).shares == (1.0,)


def test_the_uplinks_of_a_peer_may_be_with_several_tcp_workers(run: Run, link_view: LinkView) -> None:
    write_paths(run, 0, [ETH, ETH], [ETH], {ETH: 8e6}, {ETH})
    write_paths(run, 2, [WWAN], [WWAN], {WWAN: 2e6}, {WWAN})
    link = link_view.state(PEER)
    assert link.bulk_connections == ((0, 0), (0, 1), (2, 0))
    assert link.shares == pytest.approx((0.4, 0.4, 0.2), rel=0.1)
    assert set(link.copy_connections) == {(0, 0), (2, 0)} and link.is_paired


def test_a_peer_that_accepts_no_shards_has_no_paths(run: Run, link_view: LinkView) -> None:
    write_paths(run, 0, [ETH, WWAN], [], {ETH: 8e6, WWAN: 8e6}, {ETH, WWAN})
    run.write_link(2, PEER, 1, decodes=0)
    assert not link_view.state(PEER).is_coded and not link_view.state(PEER).has_paths


RECORDS = st.lists(st.tuples(*[st.integers(0, 5)] * 5), min_size=3, max_size=3)


@given(RECORDS, RECORDS)
def test_connections_of_one_peer_are_none_of_another(ours: list[tuple], theirs: list[tuple]) -> None:
    run = Run()
    try:
        link_view = LinkView(run.attach(f"tun-{LANE}"))

        def write_links(records: list[tuple], peer: int) -> None:
            for lane, (bulk, light, offloads, decodes, parity) in enumerate(records):
                run.write_link(lane, peer, bulk + light, light, offloads, decodes, parity)

        write_links(ours, PEER)
        before = link_view.state(PEER)
        write_links(theirs, OTHER)
        write_links(theirs, PEER - 1)
        assert link_view.state(PEER) == before
        write_links(theirs, PEER)
        assert link_view.state(PEER) == link_view.state(OTHER) == link_view.state(PEER - 1)
    finally:
        run.close()


@given(RECORDS, RECORDS, st.booleans())
def test_a_state_that_was_seen_before_is_as_true_as_one_that_was_not(
    before: list[tuple], after: list[tuple], only_bytes: bool
) -> None:
    run = Run()
    try:
        attachment = run.attach(f"tun-{LANE}")
        link_view = LinkView(attachment)
        for records in (before, before if only_bytes else after):
            for lane, (bulk, light, offloads, decodes, parity) in enumerate(records):
                run.write_link(lane, PEER, bulk + light, light, offloads, decodes, parity, copies=light)
                run.memory.peer_table.links[lane][PEER * RECORD_WORDS + LINK_RECEIVED_BYTES] += 1
            seen = link_view.state(PEER)
            assert seen == LinkView(attachment).state(PEER)
        if only_bytes:  # which are counted in the record, and are no news
            run.memory.peer_table.links[0][PEER * RECORD_WORDS + LINK_RECEIVED_BYTES] += 1
            assert link_view.state(PEER) is seen
    finally:
        run.close()


# -- datagrams

HANDLE, HANDLE_BEFORE = (session << PEER_INDEX_BITS | PEER for session in (9, 8))
WAITS = HANDLE | DATAGRAM_WAITS


@pytest.fixture
def datagram_run() -> Iterator[Run]:
    with closing(Run(carrier="auto")) as made:
        made.memory.peer_table.write_record(HANDLE, 0)
        for lane in range(3):
            made.write_link(lane, PEER, 2, light=1, offloads=5, decodes=1, parity=3, copies=2)
        yield made


def paths(run: Run, *handles: int) -> None:
    """The paths that the dgram workers of these lanes have to the peer."""
    for lane, handle in enumerate(handles):
        run.memory.peer_table.datagrams_in[lane][PEER * RECORD_WORDS + DATAGRAM_PATH] = handle


@pytest.mark.parametrize(
    ("handles", "lane"),
    [
        ((HANDLE, HANDLE, HANDLE), LANE),
        ((HANDLE, 0, HANDLE), 0),
        ((0, 0, HANDLE), 2),
        ((HANDLE_BEFORE, HANDLE_BEFORE, HANDLE), 2),
        ((WAITS, HANDLE, WAITS), 1),
        ((WAITS, WAITS, WAITS), LANE),
        ((0, WAITS, HANDLE_BEFORE | DATAGRAM_WAITS), 1),
    ],
)
def test_while_a_dgram_worker_has_a_path_to_the_peer_or_waits_for_one_it_is_the_consumer_and_nothing_is_coded_or_copied(
    datagram_run: Run, handles: tuple[int, ...], lane: int
) -> None:
    paths(datagram_run, *handles)
    state = LinkView(datagram_run.attach(f"tun-{LANE}")).state(PEER)
    assert state.bulk_consumer == state.light_consumer == 3 + lane
    assert (state.parity, state.copies, state.is_coded) == (0, -1, False)
    assert state.offloads == 5


@pytest.mark.parametrize(
    "handles", [(0, 0, 0), (HANDLE_BEFORE,) * 3, (HANDLE + 1,) * 3, (HANDLE_BEFORE | DATAGRAM_WAITS,) * 3]
)
def test_without_a_path_to_this_session_of_the_peer_the_connections_are_all_there_is(
    datagram_run: Run, handles: tuple[int, ...]
) -> None:
    attachment = datagram_run.attach(f"tun-{LANE}")
    paths(datagram_run, *handles)
    state = LinkView(attachment).state(PEER)
    of_tcp = LinkView(attachment, datagrams=False).state(PEER)
    assert state._replace(record=b"") == of_tcp._replace(record=b"")
    assert (state.bulk_consumer, state.parity, state.copies) == (LANE, 3, 2)


def test_a_path_that_opens_or_closes_and_a_session_that_ends_are_seen_at_once(datagram_run: Run) -> None:
    table = datagram_run.memory.peer_table
    view, of_tcp = (LinkView(datagram_run.attach(f"tun-{LANE}"), datagrams) for datagrams in (True, False))
    consumers = []
    for change in (
        lambda: None,
        lambda: paths(datagram_run, 0, HANDLE, 0),
        lambda: table.write_record(HANDLE_BEFORE, 0),
        lambda: table.write_record(HANDLE, 0),
        lambda: paths(datagram_run, 0, 0, 0),
    ):
        change()
        consumers.append(view.state(PEER).bulk_consumer)
        assert of_tcp.state(PEER).bulk_consumer == LANE
    assert consumers == [LANE, 3 + LANE, LANE, 3 + LANE, LANE]


def test_where_bulk_goes_by_tcp_it_is_coded_as_ever_and_light_blocks_stay_with_datagrams(datagram_run: Run) -> None:
    paths(datagram_run, HANDLE, HANDLE, HANDLE)
    view, of_tcp = (LinkView(datagram_run.attach(f"tun-{LANE}"), datagrams) for datagrams in (True, False))
    words = datagram_run.memory.peer_table.datagrams_out
    for lane, handle, is_by_tcp in ((LANE + 1, HANDLE, False), (LANE, HANDLE_BEFORE, False), (LANE, HANDLE, True)):
        words[lane][PEER * RECORD_WORDS + DATAGRAM_BULK_BY_TCP] = handle
        state, tcp = view.state(PEER), of_tcp.state(PEER)
        assert state.light_consumer == 3 + LANE and state.copies == -1
        assert state.bulk_consumer == (tcp.bulk_consumer if is_by_tcp else 3 + LANE)
        assert (state.parity, state.is_coded) == ((tcp.parity, tcp.is_coded) if is_by_tcp else (0, False))
    words[LANE][PEER * RECORD_WORDS + DATAGRAM_BULK_BY_TCP] = 0
    assert view.state(PEER).bulk_consumer == 3 + LANE


def test_bytes_in_datagrams_are_no_news(datagram_run: Run) -> None:
    paths(datagram_run, 0, HANDLE, 0)
    view = LinkView(datagram_run.attach(f"tun-{LANE}"))
    seen = view.state(PEER)
    datagram_run.memory.peer_table.datagrams_in[LANE][PEER * RECORD_WORDS + DATAGRAM_RECEIVED_BYTES] += 1
    assert view.state(PEER) is seen


def test_no_peer_has_a_path_before_its_first_session(datagram_run: Run) -> None:
    assert LinkView(datagram_run.attach(f"tun-{LANE}")).state(OTHER).bulk_consumer == LANE
