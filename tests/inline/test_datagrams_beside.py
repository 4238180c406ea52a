"""What stands beside the dgram workers: blocks reach them and come from them, and those they give back go by TCP.

A BlockWay stands in for the dgram workers of both ends.
"""

from __future__ import annotations

import pytest

from tests.inline.harness.datagrams import BlockWay
from tests.inline.harness.ends import End, Make, carry, number_of
from tests.inline.test_sealed import FEC, bulk, light, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

DATAGRAMS = {"carrier": "auto", "light_connections": 1}
CASES = {"bulk": bulk, "light": light}


def joined(make: Make, way: BlockWay, lanes: tuple[int, int] = (1, 1), **settings: object) -> tuple[End, End]:
    server, client = sealed_pair(make, lanes, dgram=way.duties, **(DATAGRAMS | settings))
    way.connect(server, client)
    return server, client


def open_way(way: BlockWay, *ends: End) -> None:
    way.is_open = True
    for end in ends:
        end.step(*(name for name in end.workers if name.startswith("dgram")))


def frames(end: End) -> int:
    return end.count("tcp.frames_sent")


@pytest.mark.parametrize("packets", CASES)
@pytest.mark.parametrize("lanes", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("fec", [{}, FEC])
def test_while_a_path_is_open_all_blocks_take_it_and_no_connection_carries_any(
    make: Make, packets: str, lanes: tuple[int, int], fec: dict[str, object]
) -> None:
    way = BlockWay()
    server, client = joined(make, way, lanes, **fec)
    open_way(way, server, client)
    before = frames(server), frames(client)
    sent = CASES[packets](range(40))
    for sender, receiver in ((client, server), (server, client)):
        carry(sender, receiver, sent)
        assert sorted(map(number_of, receiver.packets())) == sorted(map(number_of, sent))
    assert (frames(server), frames(client)) == before
    assert way.carried >= 2
