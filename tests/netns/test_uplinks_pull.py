"""A client with several uplinks, under load, while its cables are pulled and plugged: no packet is lost.

Packets are numbered, bytes of TCP connections are compared, both ways at once. "end": the kernel says that the carrier
has gone. "middle": all packets vanish, and nobody says so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import established
from tests.netns.harness.numbered import Numbered
from tests.netns.harness.uplinks import (
    ALL,
    BULK_BYTES,
    EITHER_END,
    FAR,
    NEAR,
    PACKETS,
    go_on,
    load,
    two_cables,
    wait_until_carrying,
    wait_until_still,
)
from tests.support import eventually
from tools.lab.cables import DOWN, UP, Where
from tools.lab.link_emulator import Direction


@EITHER_END
@pytest.mark.parametrize("encryption", ["none", "tls"])
def test_each_cable_pulled_in_turn_costs_no_packet_and_carries_again(
    tmp_path: Path, where: Where, encryption: str
) -> None:
    with two_cables(tmp_path, encryption=encryption) as (lab, instances), load(instances) as running:
        for cable in lab.cables:
            wait_until_carrying(*lab.cables)
            cable.pull(where)
            go_on(*running)
            cable.plug()
        wait_until_carrying(*lab.cables)


@pytest.mark.slow
@EITHER_END
def test_a_stream_of_bulk_packets_alone_loses_none_when_a_cable_is_pulled(tmp_path: Path, where: Where) -> None:
    with two_cables(tmp_path) as (lab, (server, client)), Numbered(client, server, rate=500, size=1200) as packets:
        packets.wait_for(2 * PACKETS)
        for cable in lab.cables:
            cable.pull(where)
            packets.wait_for(4 * PACKETS)
            cable.plug()
            eventually(lambda: established(client) == ALL, 20.0, "all connections")
        packets.all_arrive()


@pytest.mark.slow
@pytest.mark.parametrize("way", [UP, DOWN], ids=["up", "down"])
def test_a_cable_that_carries_one_way_alone_costs_no_packet(tmp_path: Path, way: Direction) -> None:
    with two_cables(tmp_path) as (lab, instances), load(instances) as running:
        wait_until_carrying(*lab.cables)
        lab.cables[0].link.blackout(True, way)
        go_on(*running)
        go_on(*running)
        lab.cables[0].plug()
        wait_until_carrying(*lab.cables)


@pytest.mark.slow
def test_a_cable_that_is_away_until_its_connections_have_timed_out_costs_no_packet(tmp_path: Path) -> None:
    with two_cables(tmp_path) as (lab, instances), load(instances) as running:
        wait_until_carrying(*lab.cables)
        lab.cables[0].pull("middle")
        for instance in instances:
            eventually(
                lambda: instance.counter("tcp.connections_lost"),  # by our own timeout, or by the kernel's
                20.0,
                f"a connection of {instance.name} has ended for want of an answer",
            )
        go_on(*running)
        lab.cables[0].plug()
        wait_until_carrying(*lab.cables)


@pytest.mark.slow
@EITHER_END
def test_a_cable_that_flaps_costs_no_packet(tmp_path: Path, where: Where) -> None:
    with two_cables(tmp_path) as (lab, instances), load(instances) as running:
        wait_until_carrying(*lab.cables)
        for _ in range(5):
            lab.cables[1].pull(where)
            running[0].wait_for(20)
            lab.cables[1].plug()
            running[0].wait_for(20)
        wait_until_carrying(*lab.cables)


@pytest.mark.slow
@EITHER_END
def test_when_both_are_pulled_and_either_is_plugged_again_connections_inside_go_on(
    tmp_path: Path, where: Where
) -> None:
    with two_cables(tmp_path) as (lab, (server, client)), Flow(client, server) as up, Flow(server, client) as down:
        for first, second in (lab.cables, reversed(lab.cables)):
            wait_until_carrying(*lab.cables)
            for cable in lab.cables:
                cable.pull(where)
            wait_until_still(up, down)
            first.plug()
            for flow in (up, down):
                flow.wait_for(BULK_BYTES, 30.0)
            second.plug()
        wait_until_carrying(*lab.cables)


@pytest.mark.slow
@EITHER_END
def test_of_three_cables_two_may_be_pulled(tmp_path: Path, where: Where) -> None:
    with two_cables(tmp_path, NEAR, FAR, NEAR) as (lab, instances), load(instances) as running:
        wait_until_carrying(*lab.cables)
        lab.cables[0].pull(where)
        running[0].wait_for(PACKETS)
        lab.cables[2].pull(where)
        go_on(*running)
        lab.cables[0].plug()
        lab.cables[2].plug()
        wait_until_carrying(*lab.cables)
