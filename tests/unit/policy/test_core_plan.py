"""Plans of cores for machines that are not here: lanes, split workers, and which core each has."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy.core_plan import Choice, Member, Placement, Shape, busy_duties, choose, place
from pipeline.policy.machine import Device, Machine, Thread, made_of

OFF = Shape(("tcp", "tun"))
ON = Shape(("tcp", "fec", "tun"))
AUTO = Shape(("tcp", "fec", "tun"), fec_rests=True)
DATAGRAMS = Shape(("tcp", "dgram", "tun"))
DATAGRAMS_AND_FEC = Shape(("tcp", "dgram", "fec", "tun"), fec_rests=True)

FOUR = made_of(1, 1, 4)
SIXTEEN = made_of(1, 2, 8, smt=2)
SIXTY_FOUR = made_of(2, 4, 8, smt=2)
HYBRID = made_of(1, 1, 14, speeds=[5200] * 6 + [3900] * 8)  # no SMT
HYBRID_SMALL = made_of(1, 1, 12, speeds=[4700] * 4 + [3500] * 8)
CONTAINER = made_of(1, 2, 8, smt=2, quota=1.5)
CLOUD = made_of(1, 1, 2, smt=2)  # four "vCPUs"


def members(shape: Shape, choice: Choice) -> list[Member]:
    found = []
    for kind, lane in product(shape.kinds, range(choice.lanes)):
        if kind in choice.split:
            found += [Member(f"{kind}-{half}-{lane}", kind, lane, 1, f"{kind}-{lane}") for half in ("in", "out")]
        else:
            found.append(Member(f"{kind}-{lane}", kind, lane, 2, f"{kind}-{lane}"))
    return found


def planned(machine: Machine, shape: Shape, lanes: int | None = None) -> tuple[Choice, Placement]:
    choice = choose(machine, shape, lanes)
    return choice, place(machine, members(shape, choice), "auto")


def cores_of(machine: Machine, threads: list[int]) -> set[tuple[int, int]]:
    """Package and core of some threads."""
    found = {each.number: (each.package, each.core) for each in machine.threads}
    return {found[number] for number in threads}


# -- machines


@pytest.mark.parametrize(
    ("machine", "shape", "lanes", "split"),
    [
        (made_of(1, 1, 1), AUTO, 1, ()),
        (made_of(1, 1, 2), AUTO, 1, ()),
        (made_of(1, 1, 3), OFF, 1, ("tun",)),
        (CLOUD, AUTO, 1, ()),
        (FOUR, OFF, 1, ("tun",)),
        (FOUR, AUTO, 1, ("tun",)),
        (FOUR, ON, 1, ("tun",)),
        (made_of(1, 1, 6), ON, 1, ("tun", "fec")),
        (made_of(1, 1, 8), OFF, 1, ("tun",)),  # one core of eight is left to others
        (made_of(1, 1, 10), OFF, 2, ("tun",)),
        (SIXTEEN, OFF, 3, ("tun",)),
        (SIXTEEN, AUTO, 2, ("tun", "fec")),
        (SIXTEEN, ON, 2, ("tun", "fec")),
        (SIXTY_FOUR, OFF, 7, ("tun",)),
        (SIXTY_FOUR, AUTO, 4, ("tun", "fec")),
        (SIXTY_FOUR, ON, 4, ("tun", "fec")),
        (HYBRID, OFF, 1, ("tun",)),
        (HYBRID, AUTO, 1, ("tun", "fec")),
        (HYBRID_SMALL, AUTO, 1, ("tun", "fec")),
        (CONTAINER, AUTO, 1, ()),
        (CLOUD, DATAGRAMS, 1, ()),
        (FOUR, DATAGRAMS, 1, ("tun",)),
        (SIXTEEN, DATAGRAMS, 3, ("tun",)),
        (SIXTEEN, DATAGRAMS_AND_FEC, 2, ("tun", "fec")),
        (made_of(1, 2, 8, quota=8.0), OFF, 2, ("tun",)),
        (made_of(2, 2, 32, smt=2), OFF, 8, ("tun",)),  # as many as `auto` makes
    ],
)
def test_lanes_and_processes_of_a_machine(machine: Machine, shape: Shape, lanes: int, split: tuple[str, ...]) -> None:
    choice = choose(machine, shape)
    assert (choice.lanes, choice.split) == (lanes, split), choice.reasons


def test_four_cores_without_fec_have_one_busy_duty_each() -> None:
    _, placement = planned(FOUR, OFF)
    assert placement.threads == {"tcp-0": [0, 1], "tun-in-0": [2], "tun-out-0": [3]}


def test_four_cores_with_fec_have_one_process_each() -> None:
    _, placement = planned(FOUR, AUTO)
    assert placement.threads == {"tcp-0": [0], "tun-in-0": [1], "tun-out-0": [2], "fec-0": [3]}


def test_a_dgram_worker_has_the_core_that_the_second_duty_of_the_tcp_worker_would_have() -> None:
    choice = Choice(1, (), ())
    for shape, twice in ((OFF, {"tcp-0"}), (DATAGRAMS, set())):
        threads = place(made_of(1, 1, 5), members(shape, choice), "auto").threads
        assert {name for name, its in threads.items() if len(its) > 1} == twice


def test_sixteen_cores_with_smt_have_a_lane_at_each_cache_and_siblings_stay_together() -> None:
    _, placement = planned(SIXTEEN, AUTO)
    assert placement.threads == {
        "tcp-0": [0, 1, 16, 17], "tun-in-0": [2, 18], "tun-out-0": [3, 19], "fec-in-0": [4, 20], "fec-out-0": [5, 21],
        "tcp-1": [8, 9, 24, 25], "tun-in-1": [10, 26], "tun-out-1": [11, 27], "fec-in-1": [12, 28],
        "fec-out-1": [13, 29],
    }  # fmt: skip
    assert placement.reasons == ("each process has a core, with all threads of it; 4 core(s) left",)


def test_sixty_four_cores_on_two_nodes_have_all_lanes_on_one() -> None:
    choice, placement = planned(SIXTY_FOUR, ON)
    node_of = {each.number: each.node for each in SIXTY_FOUR.threads}
    assert {node_of[thread] for threads in placement.threads.values() for thread in threads} == {0}
    assert choice.reasons[0] == "4 lanes: 32 core(s) on node 0, which has most room; a lane has 6 busy duties"


def test_the_node_of_the_network_device_is_preferred() -> None:
    machine = made_of(2, 4, 8, smt=2, devices=(Device("eth0", node=1), Device("lo", node=-1)))
    _, placement = planned(machine, ON)
    node_of = {each.number: each.node for each in machine.threads}
    assert {node_of[thread] for threads in placement.threads.values() for thread in threads} == {1}


def test_workers_are_not_split_over_two_nodes() -> None:
    machine = made_of(2, 1, 4)
    choice, placement = planned(machine, ON)
    assert choice.split == ("tun",)
    assert {machine.threads[thread].node for threads in placement.threads.values() for thread in threads} == {0}


def test_more_lanes_than_one_node_holds_use_the_other_one_if_they_are_configured() -> None:
    choice, placement = planned(SIXTY_FOUR, ON, lanes=10)
    assert choice.lanes == 10 and choice.reasons[0] == "10 lanes: as configured"
    assert len(placement.threads) == 50
    node_of = {each.number: each.node for each in SIXTY_FOUR.threads}
    for lane in range(10):
        own = [thread for name, threads in placement.threads.items() if name.endswith(f"-{lane}") for thread in threads]
        assert len({node_of[thread] for thread in own}) == 1


def test_busy_duties_are_on_fast_cores_and_the_rest_on_slow_ones() -> None:
    _, placement = planned(HYBRID, OFF)
    assert placement.threads == {"tcp-0": [0, 1], "tun-in-0": [2], "tun-out-0": [3]}
    choice, placement = planned(HYBRID_SMALL, AUTO)
    assert placement.threads == {
        "tcp-0": [0, 1], "tun-in-0": [2], "tun-out-0": [3], "fec-in-0": [4], "fec-out-0": [5],
    }  # fmt: skip
    assert "8 slower core(s) carry no lane: its flows would be slow" in choice.reasons


def test_under_a_quota_there_is_one_lane_of_few_processes_and_nobody_is_pinned() -> None:
    choice, placement = planned(CONTAINER, AUTO)
    assert choice.reasons == (
        "1 lane: a quota of 1.5 CPUs; a lane has 5 busy duties",
        "the duties of a worker share a process: 1 core(s) for each lane",
    )
    assert placement.threads == {}
    assert placement.reasons == ("no worker is pinned by itself: a quota of 1.5 CPUs says how much, not where",)


def test_a_quota_of_all_that_there_is_is_none() -> None:
    machine = made_of(1, 1, 4, quota=4.0)
    assert planned(machine, OFF) == planned(FOUR, OFF)


def test_only_cores_of_the_affinity_mask_count() -> None:
    machine = made_of(1, 2, 8, smt=2, usable=(8, 9, 10, 11))
    choice, placement = planned(machine, OFF)
    assert choice.lanes == 1
    assert placement.threads == {"tcp-0": [8, 9], "tun-in-0": [10], "tun-out-0": [11]}


def test_two_threads_of_one_core_are_one_core() -> None:
    machine = made_of(1, 1, 4, smt=2, usable=(0, 4))
    assert planned(machine, OFF) == (
        Choice(
            1,
            (),
            (
                "1 lane: 1 core(s); a lane has 4 busy duties",
                "the duties of a worker share a process: 1 core(s) for each lane",
            ),
        ),
        Placement({}, ("no worker is pinned by itself: 1 core(s) for 2 process(es)",)),
    )


def test_where_each_core_has_a_cache_of_its_own_lanes_are_counted_over_all() -> None:
    machine = made_of(1, 10, 1)  # as some virtual machines say
    choice, placement = planned(machine, OFF)
    assert choice.lanes == 2
    assert sorted([t for threads in placement.threads.values() for t in threads]) == list(range(8))


def test_caches_of_four_cores_hold_a_lane_without_fec_each() -> None:
    machine = made_of(1, 4, 4)
    choice, placement = planned(machine, OFF)
    assert choice.lanes == 3
    cache_of = {each.number: each.cache for each in machine.threads}
    for lane in range(3):
        own = [thread for name, threads in placement.threads.items() if name.endswith(f"-{lane}") for thread in threads]
        assert {cache_of[thread] for thread in own} == {lane}


@pytest.mark.parametrize(
    ("machine", "shape", "lanes", "why"),
    [
        (made_of(1, 2, 8, shared_bytes=64 << 20), OFF._replace(lane_shared_bytes=20 << 20), 1, "--shm-size"),
        (made_of(1, 2, 8, memory_bytes=2 << 30), OFF, 2, "memory"),
        (made_of(1, 2, 8, memory_bytes=64 << 20), OFF, 1, "memory"),
        (SIXTEEN, OFF._replace(lanes_most=1), 1, "no use for more"),
        (made_of(1, 1, 64), OFF, 8, "at most 8"),
    ],
)
def test_fewer_lanes_where_more_would_not_fit(machine: Machine, shape: Shape, lanes: int, why: str) -> None:
    choice = choose(machine, shape)
    assert choice.lanes == lanes
    assert any(why in reason for reason in choice.reasons)


# -- what is configured


def test_configured_cores_are_used_and_other_workers_get_other_cores() -> None:
    workers = members(OFF, Choice(1, (), ()))
    assert place(FOUR, workers, {"tun-0": [0, 1]}).threads == {"tun-0": [0, 1], "tcp-0": [2, 3]}
    assert place(FOUR, workers, {"tun-0": [0, 1, 2]}).threads == {"tun-0": [0, 1, 2], "tcp-0": [3]}
    assert place(made_of(1, 1, 2), workers, {"tun-0": [0, 1]}).threads == {"tun-0": [0, 1]}
    assert place(FOUR, workers, {"tun-0": [1], "tcp-0": [1]}).threads == {"tun-0": [1], "tcp-0": [1]}


def test_the_name_of_a_whole_worker_stands_for_both_of_its_halves_unless_one_is_named() -> None:
    workers = members(OFF, Choice(1, ("tun",), ()))
    assert place(FOUR, workers, {"tun-0": [3]}).threads == {"tun-in-0": [3], "tun-out-0": [3], "tcp-0": [0, 1]}
    assert place(FOUR, workers, {"tun-0": [3], "tun-in-0": [2]}).threads == {
        "tun-in-0": [2],
        "tun-out-0": [3],
        "tcp-0": [0, 1],
    }


def test_a_worker_with_an_empty_list_is_not_pinned_and_takes_no_core() -> None:
    assert place(made_of(1, 1, 1), members(OFF, Choice(1, (), ())), {"tun-0": []}).threads == {"tcp-0": [0]}


def test_none_means_none() -> None:
    assert place(FOUR, members(OFF, Choice(1, (), ())), "none").threads == {}


# -- any machine

MACHINES = st.builds(
    lambda nodes, caches, cores, smt, fast, quota: made_of(
        nodes, caches, cores, smt, speeds=[200] * fast + [100] * (nodes * caches * cores - fast), quota=quota
    ),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 2),
    st.integers(0, 8),
    st.one_of(st.none(), st.floats(0.1, 100)),
)


@settings(max_examples=300)
@given(
    MACHINES, st.sampled_from([OFF, ON, AUTO, DATAGRAMS, DATAGRAMS_AND_FEC]), st.one_of(st.none(), st.integers(1, 12))
)
def test_no_two_processes_share_a_core_and_all_or_none_are_pinned(
    machine: Machine, shape: Shape, lanes: int | None
) -> None:
    choice, placement = planned(machine, shape, lanes)
    workers = members(shape, choice)
    assert choice.lanes >= 1 and choice.reasons and placement.reasons
    assert set(placement.threads) in (set(), {each.name for each in workers})
    seen: set[tuple[int, int]] = set()
    for threads in placement.threads.values():
        own = cores_of(machine, threads)
        assert not own & seen
        seen |= own


@settings(max_examples=300)
@given(MACHINES, st.sampled_from([OFF, ON, AUTO, DATAGRAMS, DATAGRAMS_AND_FEC]))
def test_where_several_lanes_are_made_each_busy_duty_has_a_core_of_one_cache(machine: Machine, shape: Shape) -> None:
    choice, placement = planned(machine, shape)
    if choice.lanes == 1 or not placement.threads:
        return
    cache_of = {each.number: each.cache for each in machine.threads}
    sizes = [len(group) for group in _by_cache(machine).values()]
    for lane in range(choice.lanes):
        own = [thread for name, threads in placement.threads.items() if name.endswith(f"-{lane}") for thread in threads]
        assert len(cores_of(machine, own)) >= busy_duties(shape)
        if min(sizes) >= busy_duties(shape) + 1:
            assert len({cache_of[thread] for thread in own}) == 1


def _by_cache(machine: Machine) -> dict[int, list[Thread]]:
    found: dict[int, list[Thread]] = {}
    for core in machine.cores:
        if core.is_fast:
            found.setdefault(core.cache, []).append(core.threads[0])
    return found
