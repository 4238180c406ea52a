"""Blocks travel in datagrams from end to end: sealed by tun workers, cut, lost, sent again, put together, and opened.

Between the ends is a relay that loses what the test says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.harness.factory import factory
from tests.inline.harness.datagrams import DatagramWay, share_secrets
from tests.inline.harness.ends import End, Make, number_of, push, until
from tests.inline.test_sealed import bulk, light, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

CASES = {"bulk": bulk, "light": light}
Fate = Callable[[int, bool, bytes], int]


def losing(share: float, seed: int = 1) -> Fate:
    draw = random.Random(seed).random
    return lambda number, to_server, datagram: int(draw() >= share)


def paths_open(*ends: End) -> bool:
    return all(any(any(words) for words in end.memory.peer_table.datagrams_in) for end in ends)


class Joined:
    """Two ends whose blocks travel in datagrams, with a relay between them."""

    def __init__(
        self, make: Make, fate: Fate = lambda *about: 1, carrier: str = "auto", waits: bool = True, **settings: object
    ) -> None:
        self.server, self.client = sealed_pair(make, carrier=carrier, light_connections=1, **settings)
        self.way = DatagramWay(self.server.port, fate)
        share_secrets(self.server, self.client, port=self.way.port)
        if waits:
            self.until(lambda: paths_open(self.server, self.client))

    @property
    def both(self) -> list[tuple[End, End]]:
        return [(self.client, self.server), (self.server, self.client)]

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        until(condition, self.server, self.client, self.way, seconds=seconds)

    def carry(self, sender: End, receiver: End, packets: list[bytes], seconds: float = 20.0) -> None:
        waiting = list(packets)
        expected = len(receiver.packets()) + len(packets)
        self.until(lambda: push(sender, waiting) and len(receiver.packets()) >= expected, seconds)

    def frames(self) -> list[int]:
        return [end.count("tcp.frames_sent") for end in (self.server, self.client)]

    def close(self) -> None:
        self.way.close()


@pytest.fixture
def join(make: Make) -> Iterator[Callable[..., Joined]]:
    with factory(partial(Joined, make)) as made:
        yield made


@pytest.mark.parametrize("packets", CASES)
def test_blocks_arrive_by_datagrams_alone(join: Callable[..., Joined], packets: str) -> None:
    ends = join()
    frames = ends.frames()
    for sender, receiver in ends.both:
        ends.carry(sender, receiver, CASES[packets](range(60)))
        assert list(map(number_of, receiver.packets())) == list(range(60))
        assert sender.count("dgram.blocks_sent") > 0
    assert ends.frames() == frames


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_bulk_arrives_whole_and_in_order_whatever_is_lost(join: Callable[..., Joined], share: float) -> None:
    ends = join(losing(share))
    for sender, receiver in ends.both:
        ends.carry(sender, receiver, bulk(range(2000)))
        assert list(map(number_of, receiver.packets())) == list(range(2000))
    repaired = [
        end.count(f"dgram.{name}")
        for end in (ends.server, ends.client)
        for name in ("segments_repeated", "parity_sent")
    ]
    assert any(repaired)
