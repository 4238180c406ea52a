"""Advice about the host: what is worse is raised, what is as good or better is left alone."""

from __future__ import annotations

import pytest

from pipeline.policy.core_plan import Placement
from pipeline.policy.machine import Device, Machine, made_of
from pipeline.tuning import advice
from pipeline.tuning.advice import advise, hints, mask_of

GOOD = {
    advice.RECEIVE: "4096\t131072\t67108864",
    advice.SEND: "4096\t16384\t33554432",
    advice.AVAILABLE: "reno cubic bbr",
    advice.PROBING: "2",
    advice.IDLE_RESTART: "0",
    advice.BACKLOG: "5000",
    advice.LISTEN_QUEUE: "65535",
}
PLAIN = {
    advice.RECEIVE: "4096\t131072\t6291456",
    advice.SEND: "4096\t16384\t4194304",
    advice.AVAILABLE: "reno cubic bbr",
    advice.PROBING: "0",
    advice.IDLE_RESTART: "1",
    advice.BACKLOG: "1000",
    advice.LISTEN_QUEUE: "128",
}
NOBODY_PINNED = Placement({}, ())
ONE_QUEUE = Device("eth0", rps=("0",), xps=("",))


def machine(cores: int = 8, memory: int = 16 << 30, smt: int = 1, **known: object) -> Machine:
    return made_of(1, 1, cores, smt, **{"memory_bytes": memory, "settings": PLAIN, **known})


def wanted(found: list[advice.Advice]) -> dict[str, str]:
    return {each.name: each.wanted for each in found}


def test_a_plain_server_gets_all_of_it() -> None:
    assert wanted(advise(machine(), NOBODY_PINNED, is_server=True)) == {
        "net.ipv4.tcp_rmem": "4096\t131072\t33554432",
        "net.ipv4.tcp_wmem": "4096\t16384\t33554432",
        "net.ipv4.tcp_mtu_probing": "1",
        "net.ipv4.tcp_slow_start_after_idle": "0",
        "net.core.somaxconn": "4096",
    }


def test_what_is_better_already_is_left_alone() -> None:
    assert advise(machine(settings=GOOD), NOBODY_PINNED, is_server=True) == []


def test_what_the_kernel_does_not_show_is_not_advised() -> None:
    assert advise(machine(settings={}), NOBODY_PINNED, is_server=True) == []


def test_a_client_needs_no_queue_of_connections_and_a_small_machine_no_large_buffers() -> None:
    found = wanted(advise(machine(memory=1 << 30), NOBODY_PINNED, is_server=False))
    assert "net.core.somaxconn" not in found
    assert found["net.ipv4.tcp_rmem"] == "4096\t131072\t8388608"


@pytest.mark.parametrize(
    ("congestion", "available", "hint"),
    [
        ("auto", "reno cubic bbr", ""),
        ("auto", "reno cubic", "bbr is not loaded"),
        ("auto", "", ""),  # the kernel does not tell
        ("cubic", "reno cubic", ""),
        ("vegas", "reno cubic bbr", "vegas is not loaded"),
        ("", "reno cubic bbr", "where the path loses packets, bulk gets a sixth"),
    ],
)
def test_a_congestion_control_that_is_not_there_or_that_does_not_follow_the_path_is_a_hint(
    congestion: str, available: str, hint: str
) -> None:
    found = [
        each
        for each in hints(machine(settings=PLAIN | {advice.AVAILABLE: available}), congestion, 1000)
        if "loaded" in each or "congestion" in each
    ]
    assert len(found) == bool(hint)
    assert all(hint in each for each in found)


# -- masks


def test_a_device_with_one_queue_gets_the_cores_that_no_worker_has() -> None:
    found = wanted(advise(machine(devices=(ONE_QUEUE,)), Placement({"tcp-0": [0, 1], "tun-0": [2]}, ()), True))
    assert found["eth0/queues/rx-0/rps_cpus"] == "f8"
    assert found["net.core.netdev_max_backlog"] == "4096"


def test_siblings_of_cores_that_workers_have_are_not_among_them() -> None:
    found = wanted(advise(machine(4, smt=2, devices=(ONE_QUEUE,)), Placement({"tcp-0": [0, 4]}, ()), True))
    assert found["eth0/queues/rx-0/rps_cpus"] == "ee"


@pytest.mark.parametrize(
    "device",
    [
        Device("eth0", receive_queues=8, rps=("00",) * 8),  # as many queues as are of use
        Device("eth0", rps=("ff",)),  # somebody has chosen
        Device("eth0", receive_queues=2, rps=("0", "3")),
        Device("eth0", rps=("",)),  # it cannot be set
        Device("eth0"),
    ],
    ids=["enough-queues", "chosen", "partly-chosen", "not-settable", "unknown"],
)
def test_a_device_that_needs_no_steering_is_left_alone(device: Device) -> None:
    assert not any("rps" in name for name in wanted(advise(machine(devices=(device,)), NOBODY_PINNED, True)))


@pytest.mark.parametrize("known", [{"cores": 2}, {"quota": 1.5}])
def test_few_cores_and_a_quota_are_no_place_to_steer_to(known: dict) -> None:
    assert not any(
        "rps" in name for name in wanted(advise(machine(devices=(ONE_QUEUE,), **known), NOBODY_PINNED, True))
    )


def test_cores_near_to_the_device_are_chosen() -> None:
    two_nodes = made_of(2, 1, 4, devices=(Device("eth0", node=1, rps=("00",), xps=()),), settings={})
    assert wanted(advise(two_nodes, NOBODY_PINNED, True)) == {"eth0/queues/rx-0/rps_cpus": "f0"}


def test_transmit_queues_that_nobody_has_given_out_are_given_out() -> None:
    device = Device("eth0", receive_queues=4, rps=("0",) * 4, transmit_queues=4, xps=("00",) * 4)
    assert wanted(advise(machine(settings={}, devices=(device,)), NOBODY_PINNED, True)) == {
        f"eth0/queues/tx-{queue}/xps_cpus": mask for queue, mask in enumerate(("11", "22", "44", "88"))
    }


@pytest.mark.parametrize(
    ("numbers", "before", "text"),
    [
        ([0], "0", "1"),
        ([0, 1], "00", "03"),
        ([40], "00000000,00000000", "00000100,00000000"),
        ([32], "0,00000000", "1,00000000"),
        ([63, 0], "00000000", "80000000,00000001"),  # more threads than the mask has shown
    ],
)
def test_masks_are_written_as_the_kernel_writes_them(numbers: list[int], before: str, text: str) -> None:
    assert advice._like(mask_of(numbers), before) == text
    assert int(text.replace(",", ""), 16) == mask_of(numbers)
