"""Blocks travel by UDP or behind TCP headers from end to end, whichever passes. Needs root, for packet sockets.

UDP goes through a relay that the test closes; fake TCP through the loopback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.policy.carrier import State
from pipeline.policy.carrier_order import Kind
from pipeline.shm import datagram_status
from pipeline.shm.layout import DATAGRAM_PATH
from tests.harness.factory import factory
from tests.inline.harness.datagrams import DatagramWay, share_secrets
from tests.inline.harness.ends import End, Make, number_of, push, until
from tests.inline.test_sealed import bulk, light, sealed_pair

pytestmark = [
    pytest.mark.usefixtures("patient"),
    pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root"),
]

BOTH = (Kind.UDP, Kind.FAKE_TCP)


class Joined:
    """Two ends. `udp_passes`: whether the relay delivers anything."""

    def __init__(self, make: Make, kinds: tuple[Kind, ...] = BOTH, udp_passes: bool = True) -> None:
        carrier = "auto" if len(kinds) > 1 else kinds[0].value
        self.server, self.client = sealed_pair(make, carrier=carrier, light_connections=1, kinds=kinds)
        self.udp_passes = udp_passes
        self.way = DatagramWay(self.server.port, lambda *about: int(self.udp_passes))
        share_secrets(self.server, self.client, port=self.way.port)

    @property
    def both(self) -> list[tuple[End, End]]:
        return [(self.client, self.server), (self.server, self.client)]

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        until(condition, self.server, self.client, self.way, seconds=seconds)

    def uses(self, kind: Kind) -> bool:
        """Whether both ends send by this kind."""
        for end in (self.server, self.client):
            table = end.memory.peer_table
            records = {Kind.UDP: table.datagrams_in, Kind.FAKE_TCP: table.datagrams_fake_tcp}
            states = {each: datagram_status.read(words[0], 0) for each, words in records.items()}
            is_open = [each for each in BOTH if (found := states[each]) and found.carrier.state is State.OPEN]
            if not is_open or is_open[0] is not kind or not table.datagrams_in[0][DATAGRAM_PATH]:
                return False
        return True

    def carry(self, packets: list[bytes]) -> None:
        """Both ways; all of them arrive."""
        for sender, receiver in self.both:
            waiting, before = list(packets), len(receiver.packets())
            self.until(lambda: push(sender, waiting) and len(receiver.packets()) - before >= len(packets))
            assert sorted(map(number_of, receiver.packets()[before:])) == list(map(number_of, packets))

    def frames(self) -> list[int]:
        return [end.count("tcp.frames_sent") for end in (self.server, self.client)]

    def close(self) -> None:
        self.way.close()


@pytest.fixture
def join(make: Make) -> Iterator[Callable[..., Joined]]:
    with factory(partial(Joined, make)) as made:
        yield made


@pytest.mark.parametrize("packets", [bulk, light])
def test_blocks_arrive_behind_tcp_headers_alone(
    join: Callable[..., Joined], packets: Callable[[range], list[bytes]]
) -> None:
    ends = join((Kind.FAKE_TCP,))
    ends.until(lambda: ends.uses(Kind.FAKE_TCP))
    frames = ends.frames()
    ends.carry(packets(range(60)))
    assert ends.frames() == frames
    assert ends.client.count("dgram.flows_fake_opened") == ends.server.count("dgram.flows_fake_opened") == 1


def test_while_udp_passes_there_is_no_fake_flow(join: Callable[..., Joined]) -> None:
    ends = join()
    ends.until(lambda: ends.uses(Kind.UDP))
    ends.carry(bulk(range(60)))
    assert ends.client.count("dgram.flows_fake_opened") == 0


def test_where_udp_never_passes_fake_tcp_is_used(join: Callable[..., Joined]) -> None:
    ends = join(udp_passes=False)
    ends.until(lambda: ends.uses(Kind.FAKE_TCP))
    ends.carry(bulk(range(60)))


def test_where_udp_ends_under_way_no_packet_is_lost_and_it_is_used_again_when_it_passes(
    join: Callable[..., Joined], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.policy.carrier.HOLD_NS", 0)
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 400_000_000)  # a pause of this machine is no silence
    ends = join()
    ends.until(lambda: ends.uses(Kind.UDP))
    waiting = bulk(range(200))
    ends.until(lambda: push(ends.client, waiting) or len(waiting) < 100)
    ends.udp_passes = False
    ends.until(lambda: push(ends.client, waiting) and ends.uses(Kind.FAKE_TCP))
    ends.until(lambda: {number_of(each) for each in ends.server.packets()} == set(range(200)))
    assert len(ends.server.packets()) == 200, "and none came twice"
    assert ends.client.count("dgram.paths_closed") == 1, "reports went back by fake TCP from the beginning"
    ends.udp_passes = True
    ends.until(lambda: ends.uses(Kind.UDP))
    before = ends.way.counts()
    ends.carry(bulk(range(60)))
    grown = {name: count - before[name] for name, count in ends.way.counts().items()}
    assert min(grown["to the server"], grown["to clients"]) > 300, "segments of 60 blocks"


def test_a_worker_that_is_killed_leaves_which_kind_was_used(join: Callable[..., Joined]) -> None:
    ends = join(udp_passes=False)
    ends.until(lambda: ends.uses(Kind.FAKE_TCP))
    for end in (ends.client, ends.server):
        end.kill("dgram-0")
        end.start("dgram-0")
        ends.until(lambda: ends.uses(Kind.FAKE_TCP), seconds=4.0)
        ends.carry(bulk(range(60)))
