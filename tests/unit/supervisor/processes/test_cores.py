"""Which worker runs on which core: one core each if there are enough, physical cores first; else none is pinned."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.supervisor.processes import cores

ONE_LANE = [("tcp-0", 0), ("tun-0", 0)]
TWO_LANES = [("tcp-0", 0), ("tcp-1", 1), ("fec-0", 0), ("fec-1", 1), ("tun-0", 0), ("tun-1", 1)]


def complaints(workers: list[tuple[str, int]], affinity: dict, available: list[int]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cores.assign(workers, affinity, available)
    return [str(problem) for problem in caught.value.problems]


def test_with_a_core_for_each_worker_each_has_one_and_a_lane_has_neighbours() -> None:
    assert cores.assign(TWO_LANES, "auto", [0, 2, 4, 1, 3, 5]) == {
        "fec-0": [0],
        "tcp-0": [2],
        "tun-0": [4],
        "fec-1": [1],
        "tcp-1": [3],
        "tun-1": [5],
    }


def test_with_more_cores_than_workers_the_first_ones_are_taken() -> None:
    assert cores.assign(ONE_LANE, "auto", [4, 5, 6, 7]) == {"tcp-0": [4], "tun-0": [5]}


def test_with_fewer_cores_than_workers_no_worker_is_pinned() -> None:
    assert cores.assign(TWO_LANES, "auto", [0, 1, 2, 3, 4]) == {}
    assert cores.assign(ONE_LANE, "auto", []) == {}


def test_none_means_none() -> None:
    assert cores.assign(ONE_LANE, "none", [0, 1, 2, 3]) == {}


def test_configured_cores_are_used_and_other_workers_get_other_cores() -> None:
    assert cores.assign(ONE_LANE, {"tun-0": [0, 1]}, [0, 1, 2, 3]) == {"tun-0": [0, 1], "tcp-0": [2]}


def test_configured_cores_are_used_when_no_core_is_left_for_other_workers() -> None:
    assert cores.assign(ONE_LANE, {"tun-0": [0, 1]}, [0, 1]) == {"tun-0": [0, 1]}


def test_two_workers_may_be_put_on_one_core() -> None:
    assert cores.assign(ONE_LANE, {"tun-0": [1], "tcp-0": [1]}, [0, 1]) == {"tun-0": [1], "tcp-0": [1]}


def test_a_worker_with_an_empty_list_is_not_pinned_and_takes_no_core() -> None:
    assert cores.assign(ONE_LANE, {"tun-0": []}, [0]) == {"tcp-0": [0]}


def test_an_unknown_worker_is_named_with_the_known_ones() -> None:
    assert complaints(ONE_LANE, {"tun-1": [0]}, [0, 1]) == ['affinity: given "tun-1", expected one of tcp-0, tun-0']


def test_an_unknown_core_is_named_with_the_known_ones() -> None:
    assert complaints(ONE_LANE, {"tun-0": [0, 9]}, [1, 0]) == ["affinity.tun-0: given core 9, expected one of 0, 1"]


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(complaints(ONE_LANE, {"tun-0": [9], "tcp-0": [8], "fec-0": [0]}, [0, 1])) == 3


@given(st.integers(1, 4), st.booleans(), st.lists(st.integers(0, 63), unique=True, max_size=20))
def test_no_worker_shares_a_core_that_was_chosen_for_it(lanes: int, fec: bool, available: list[int]) -> None:
    kinds = ("tcp", "fec", "tun") if fec else ("tcp", "tun")
    workers = [(f"{kind}-{lane}", lane) for kind in kinds for lane in range(lanes)]
    chosen = cores.assign(workers, "auto", available)
    assert set(chosen) == ({name for name, _ in workers} if len(available) >= len(workers) else set())
    flat = [core for each in chosen.values() for core in each]
    assert len(set(flat)) == len(flat) == len(chosen)
    assert flat == [] or sorted(flat) == sorted(available[: len(flat)])


# -- which cores there are


def machine(root: Path, physical: dict[int, tuple[int, int]]) -> Path:
    """The topology files of a machine: (package, core) of each logical core."""
    for core, (package, number) in physical.items():
        directory = root / f"cpu{core}" / "topology"
        directory.mkdir(parents=True)
        (directory / "physical_package_id").write_text(f"{package}\n")
        (directory / "core_id").write_text(f"{number}\n")
    return root


def test_the_cores_of_this_process_are_available_and_no_others() -> None:
    usable = cores.available()
    assert sorted(usable) == sorted(psutil.Process().cpu_affinity())
    assert len(set(usable)) == len(usable)


def test_siblings_of_a_core_come_after_the_first_threads_of_all(tmp_path: Path, monkeypatch) -> None:
    ours = sorted(psutil.Process().cpu_affinity())
    pairs = {core: (0, number // 2) for number, core in enumerate(ours)}
    monkeypatch.setattr(cores, "SYS_CPU", machine(tmp_path, pairs))
    assert cores.available() == ours[0::2] + ours[1::2]


def test_equal_core_numbers_in_two_packages_are_two_cores(tmp_path: Path, monkeypatch) -> None:
    ours = sorted(psutil.Process().cpu_affinity())
    monkeypatch.setattr(cores, "SYS_CPU", machine(tmp_path, {core: (core, 0) for core in ours}))
    assert cores.available() == ours


def test_without_a_topology_every_core_counts_as_a_physical_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cores, "SYS_CPU", tmp_path)
    assert cores.available() == sorted(psutil.Process().cpu_affinity())
