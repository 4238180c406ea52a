"""Blocks travel in datagrams from end to end: sealed by tun workers, cut, lost, sent again, put together, and opened.

Between the ends is a relay that loses what the test says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.shm.layout import DATAGRAM_PATH
from tests.harness.factory import factory
from tests.inline.harness.datagrams import DatagramWay, share_secrets
from tests.inline.harness.ends import End, Make, ipv6, number_of, push, until
from tests.inline.test_sealed import bulk, light, sealed_pair

pytestmark = pytest.mark.usefixtures("patient")

CASES = {"bulk": bulk, "light": light}
Fate = Callable[[int, bool, bytes], int]


def losing(share: float, seed: int = 1) -> Fate:
    draw = random.Random(seed).random
    return lambda number, to_server, datagram: int(draw() >= share)


def paths_open(*ends: End) -> bool:
    tables = (end.memory.peer_table.datagrams_in for end in ends)
    return all(any(words[DATAGRAM_PATH] for words in table) for table in tables)


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
        ends.carry(sender, receiver, bulk(range(600)))
        assert list(map(number_of, receiver.packets())) == list(range(600))
    repaired = [
        end.count(f"dgram.{name}")
        for end in (ends.server, ends.client)
        for name in ("segments_repeated", "parity_sent")
    ]
    assert any(repaired)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_light_packets_arrive_in_spite_of_losses(join: Callable[..., Joined], share: float) -> None:
    ends = join(losing(share))
    ends.carry(ends.client, ends.server, bulk(range(300)))  # so that the losses are known
    arrived = len(ends.server.packets())
    for number in range(100):
        push(ends.client, [ipv6(number, 100)])  # of another flow
        ends.until(lambda: True)
    ends.until(lambda: len(ends.server.packets()) >= arrived + 97)
    numbers = list(map(number_of, ends.server.packets()[arrived:]))
    assert len(set(numbers)) == len(numbers), "copies are opened once"
    assert ends.client.count("dgram.copies_sent") > 0


@pytest.mark.parametrize("lanes", [(2, 1), (1, 2), (2, 2)])
def test_lanes_of_both_ends_need_not_be_as_many(join: Callable[..., Joined], lanes: tuple[int, int]) -> None:
    ends = join(lanes=lanes)
    for sender, receiver in ends.both:
        ends.carry(sender, receiver, bulk(range(200)))
        assert list(map(number_of, receiver.packets())) == list(range(200))


def test_what_a_path_that_goes_dark_has_not_brought_comes_by_tcp_and_nothing_twice(
    join: Callable[..., Joined],
) -> None:
    ends = join()
    sender, receiver = ends.client, ends.server
    ends.carry(sender, receiver, bulk(range(50)))
    ends.way.fate = lambda *about: 0
    ends.carry(sender, receiver, bulk(range(50, 400)))
    numbers = list(map(number_of, receiver.packets()))
    assert sorted(numbers) == list(range(400))
    assert sender.count("dgram.blocks_returned") > 0 and sender.count("tcp.frames_sent") > 0
    ends.way.fate = lambda *about: 1
    frames = ends.frames()[1]
    ends.until(lambda: paths_open(ends.client), seconds=30)
    ends.carry(sender, receiver, bulk(range(400, 450)))
    assert ends.frames()[1] - frames < 5, str((frames, ends.frames(), ends.client.counts(), ends.server.counts()))


def test_with_the_carrier_udp_nothing_goes_by_tcp(join: Callable[..., Joined]) -> None:
    ends = join(carrier="udp", hold=0.2)
    sender, receiver = ends.client, ends.server
    ends.carry(sender, receiver, bulk(range(50)))
    ends.way.fate = lambda *about: 0
    frames = ends.frames()
    push(sender, bulk(range(50, 60)))
    ends.until(lambda: sender.count("dgram.dropped_no_path"), seconds=30)
    assert ends.frames() == frames and sender.count("dgram.blocks_returned") == 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_dies_costs_what_it_had_taken_and_no_more(join: Callable[..., Joined], which: int) -> None:
    ends = join()
    sender, receiver = ends.client, ends.server
    waiting = bulk(range(1000))
    ends.until(lambda: push(sender, waiting) or len(receiver.packets()) >= 200)
    for end in ((sender, receiver)[which],):
        end.kill("dgram-0")
        end.start("dgram-0")
    ends.until(lambda: push(sender, waiting), seconds=30)
    ends.until(lambda: 999 in map(number_of, receiver.packets()[-3:]), seconds=30)
    assert len(set(map(number_of, receiver.packets()))) > 850
