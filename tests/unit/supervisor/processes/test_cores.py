"""Which worker of a configuration runs on which core; what it names must exist. The plan: policy/test_core_plan."""

from __future__ import annotations

import pytest

from pipeline.config import parse
from pipeline.errors import ConfigError
from pipeline.policy.machine import Machine, made_of
from pipeline.runtime import topology
from pipeline.runtime.plan import WorkerPlan
from pipeline.supervisor.processes import cores

FOUR = made_of(1, 1, 4)


def assign(
    affinity: object, machine: Machine = FOUR, has_datagrams: bool = True, **settings: object
) -> dict[str, list[int]]:
    config = parse({"mode": "server", "fec": "off", "affinity": affinity, **settings}, machine=machine)
    shape = topology.shape_of(config.compat, config.fec, has_datagrams and config.carrier != "tcp")
    found = topology.list_workers(shape, config.lanes, config.split_workers)
    workers = [
        WorkerPlan(name, kind, lane, page, dict.fromkeys(duties, "/bell"))
        for page, (name, kind, lane, duties) in enumerate(found)
    ]
    return cores.assign(config, workers, machine).threads


def complaints(affinity: object, **settings: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        assign(affinity, **settings)
    return [str(problem) for problem in caught.value.problems]


def test_the_plan_of_the_machine_is_followed() -> None:
    assert assign("auto") == {"tcp-0": [0, 1], "tun-in-0": [2], "tun-out-0": [3]}
    assert assign("auto", split_workers=[]) == {"tcp-0": [0, 1], "tun-0": [2]}
    assert assign("none") == {}
    assert assign("auto", carrier="auto") == {"dgram-0": [0], "tcp-0": [1], "tun-in-0": [2], "tun-out-0": [3]}


def test_configured_cores_are_used_and_other_workers_get_other_cores() -> None:
    assert assign({"tun-0": [0, 1]}) == {"tun-in-0": [0, 1], "tun-out-0": [0, 1], "tcp-0": [2, 3]}
    assert assign({"tun-in-0": [3]}) == {"tun-in-0": [3], "tcp-0": [0, 1], "tun-out-0": [2]}


def test_dgram_workers_may_be_named_although_no_udp_port_could_be_had() -> None:
    given = {"dgram-0": [3], "tun-0": [0, 1]}
    assert assign(given, carrier="auto")["dgram-0"] == [3]
    without = {"tun-in-0": [0, 1], "tun-out-0": [0, 1], "tcp-0": [2, 3]}
    assert assign(given, carrier="auto", has_datagrams=False) == without == assign({"tun-0": [0, 1]})
    (complaint,) = complaints({"dgram-1": [3]}, carrier="auto", split_workers=[])
    assert "dgram-1" in complaint


def test_an_unknown_worker_is_named_with_the_known_ones() -> None:
    (complaint,) = complaints({"tun-1": [0]}, split_workers=[])
    assert complaint.startswith('affinity: given "tun-1", expected')


def test_an_unknown_core_is_named_with_the_known_ones() -> None:
    assert complaints({"tun-0": [0, 9]}) == ["affinity.tun-0: given core 9, expected one of 0, 1, 2, 3"]


def test_cores_outside_the_affinity_mask_are_unknown() -> None:
    machine = made_of(1, 1, 4, usable=(2, 3))
    assert complaints({"tcp-0": [1]}, machine=machine) == ["affinity.tcp-0: given core 1, expected one of 2, 3"]


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(complaints({"tun-0": [9], "tcp-0": [8]})) == 2
