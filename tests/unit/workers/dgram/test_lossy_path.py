"""A sender and a receiver over an emulated link, in virtual time: what bulk and light flows get while a path loses.

Each link has 50 Mbit/s and a round trip of 40 ms, if nothing else is said.
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.harness.virtual_way import BULK, LIGHT, VirtualWay
from tools.lab.link_model import LinkSpec

MIDDLE = partial(LinkSpec, delay_ms=20, rate_mbit=50)
LARGE, SMALL = 30_000, 2500  # bytes of blocks


@pytest.mark.parametrize("size", [LARGE, SMALL])
@pytest.mark.parametrize(
    ("link", "least"),
    [
        (MIDDLE(), 44),
        (MIDDLE(loss_percent=2), 41),
        (MIDDLE(loss_percent=2, burst=4), 37),
        (MIDDLE(loss_percent=10), 32),
        (MIDDLE(loss_percent=10, burst=4), 26),
        (MIDDLE(loss_percent=20), 23),
        (MIDDLE(reorder_percent=10, reorder_ms=10), 40),
    ],
    ids=["none", "2", "2 in bursts", "10", "10 in bursts", "20", "other order"],
)
def test_bulk_that_fills_a_lossy_path_gets_most_of_its_rate(link: LinkSpec, least: float, size: int) -> None:
    way = VirtualWay(link)
    way.run(6, size=size)
    assert way.mbit() >= least
    assert way.count("blocks_expired") + way.count("blocks_overtaken") <= 0.01 * way.count("blocks_sent")


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_bulk_that_leaves_the_path_room_is_not_late(size: int) -> None:
    way = VirtualWay(MIDDLE(loss_percent=2))
    way.run(2, size=size)
    way.run(2, size=size, rate=1_000_000)
    way.delays[BULK].clear()
    way.run(6, size=size, rate=1_000_000)
    assert way.delay_ms(0.99) < 40, "a repeat would come later than that"


@pytest.mark.parametrize("loss", [2, 10])
def test_light_blocks_arrive_beside_bulk(loss: float) -> None:
    way = VirtualWay(MIDDLE(loss_percent=loss))
    way.run(3, size=LARGE)
    way.run(10, size=LARGE, pings=50)
    assert len(way.delays[LIGHT]) >= 497
    assert way.delay_ms(0.5, LIGHT) < 25 and way.delay_ms(0.99, LIGHT) < 45


def test_the_first_losses_of_a_path_take_no_light_block() -> None:
    way = VirtualWay(MIDDLE(loss_percent=5))
    way.run(2, size=LARGE, rate=1, pings=50)
    assert len(way.delays[LIGHT]) >= 98


def test_a_short_queue_costs_little() -> None:
    way = VirtualWay(LinkSpec(delay_ms=10, rate_mbit=20, queue_packets=20))
    way.run(6, size=LARGE)
    more = way.count("parity_sent") + way.count("segments_repeated")
    assert way.mbit() >= 15 and more <= 0.06 * way.count("segments_sent")
