"""Flows and lanes: a flow finds its lane and keeps it, although the kernel moves it to where its answers come from.

The kernel of each end is a Kernel here, with the rule of tun_select_queue and tun_flow_update (drivers/net/tun.c): a
packet goes to the queue through which the last packet of its flow has come, and before that to one of its hash.
"""

from __future__ import annotations

import struct
from collections import Counter

import pytest

from pipeline.packet.flow_classifier import LIGHT_PACKET_BYTES
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.link_view import LinkView
from pipeline.shm.layout import LINK_ESTABLISHED, LINK_REQUESTS
from pipeline.shm.link_requests import MASK
from tests.inline.harness.ends import End, Make, pair, until
from tests.inline.harness.hub_ends import BULK_BYTES, connected_hub, inside
from tests.inline.test_sealed import sealed_pair
from workers.tcp import accept_share
from workers.tun.light_packer import LightPacker

pytestmark = pytest.mark.usefixtures("patient")

LIGHT_BYTES = 100
ROUNDS = 6
STATE = LinkView.state
FEC = {"connections": 4, "light_connections": 3}


def datagram(flow: int, number: int, size: int, source: str = "10.0.0.1", destination: str = "10.0.0.2") -> bytes:
    """A UDP packet of a flow, behind an empty virtio-net header. Both directions of a flow have its number."""
    ends = bytes(map(int, f"{source}.{destination}".split(".")))
    head = struct.pack(">BBHIBBH8s", 0x45, 0, size, 0, 64, 17, 0, ends)
    return (bytes(10) + head + struct.pack(">HHHHQ", 1000 + flow, 1000 + flow, size - 20, 0, number)).ljust(10 + size)


def flow_of(packet: bytes) -> int:
    return int.from_bytes(packet[30:32], "big") - 1000


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[38:46], "big")


class Kernel:
    """Of one end. `lanes`: by flow, the lanes in which its packets have left, without repetitions."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.count = len(end.outside)
        self.steered: dict[int, int] = {}
        self.lanes: dict[int, list[int]] = {}
        self.arrived: dict[int, list[int]] = {}  # by flow, the numbers of its packets in their order
        self._taken = [0] * self.count

    def send(self, flow: int, packet: bytes) -> None:
        lane = self.steered.get(flow, flow % self.count)
        lanes = self.lanes.setdefault(flow, [])
        if not lanes or lanes[-1] != lane:
            lanes.append(lane)
        self.end.write(packet, lane)

    def take(self) -> bool:
        """Note what has arrived, and through which queue."""
        for lane, queue in enumerate(self.end.received):
            for packet in queue[self._taken[lane] :]:
                self.steered[flow_of(packet)] = lane
                self.arrived.setdefault(flow_of(packet), []).append(number_of(packet))
            self._taken[lane] = len(queue)
        return True


def converse(client: End, server: End, flows: range, sizes: tuple[int, int]) -> list[Kernel]:
    """Each flow asks and is answered ROUNDS times. `sizes`: of a question, and of an answer."""
    kernels = [Kernel(client), Kernel(server)]
    go_on(kernels, flows, sizes, range(ROUNDS))
    return kernels


def go_on(kernels: list[Kernel], flows: range, sizes: tuple[int, int], rounds: range) -> None:
    for number in rounds:
        for kernel, other, size in zip(kernels, reversed(kernels), sizes, strict=True):
            for flow in flows:
                kernel.send(flow, datagram(flow, number, size))
            until(
                lambda: other.take() and all(len(other.arrived.get(flow, ())) == number + 1 for flow in flows),
                *(each.end for each in kernels),
            )


SIZES = {
    "both light": (LIGHT_BYTES, LIGHT_BYTES),
    "an upload": (BULK_BYTES, LIGHT_BYTES),
    "a download": (LIGHT_BYTES, BULK_BYTES),
    "both bulk": (BULK_BYTES, BULK_BYTES),
}


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("lanes", [(2, 2), (3, 2), (2, 3), (1, 3), (3, 3)], ids=lambda lanes: f"{lanes[0]}-{lanes[1]}")
def test_a_flow_finds_its_lane_with_its_first_answer_and_keeps_it(
    make: Make, lanes: tuple[int, int], sealed: bool
) -> None:
    settings = FEC | {"fec": "auto"}
    server, client = sealed_pair(make, lanes, **settings) if sealed else pair(make, lanes, **settings)
    kernels = [Kernel(client), Kernel(server)]
    for number, (name, sizes) in enumerate(SIZES.items()):
        flows = range(6 * number, 6 * number + 6)
        go_on(kernels, flows, sizes, range(ROUNDS))
        for kernel in kernels:
            for flow in flows:
                assert len(kernel.lanes[flow]) <= 3, f"{name}: flow {flow} wanders: {kernel.lanes[flow]}"
                assert kernel.arrived[flow] == list(range(ROUNDS))


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("lanes", [(2, 2), (3, 3), (2, 3), (3, 2)], ids=lambda lanes: f"{lanes[0]}-{lanes[1]}")
def test_many_flows_use_as_many_lanes_as_both_ends_have(make: Make, lanes: tuple[int, int], sealed: bool) -> None:
    server, client = sealed_pair(make, lanes, **FEC) if sealed else pair(make, lanes, **FEC)
    for kernel in converse(client, server, range(12), (LIGHT_BYTES, BULK_BYTES)):
        used = Counter(steered[-1] for steered in kernel.lanes.values())
        assert len(used) == min(lanes), f"flows by lane: {used}"
        assert max(used.values()) <= 12 / min(lanes) + 2


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("lanes", [(2, 2), (3, 2), (2, 3)], ids=lambda lanes: f"{lanes[0]}-{lanes[1]}")
def test_flows_keep_their_lanes_when_parity_begins_and_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, lanes: tuple[int, int], sealed: bool
) -> None:
    settings = FEC | {"fec": "auto"}
    server, client = sealed_pair(make, lanes, **settings) if sealed else pair(make, lanes, **settings)
    flows, sizes = range(6), (BULK_BYTES, LIGHT_BYTES)
    kernels = converse(client, server, flows, sizes)
    lanes_before = [dict(kernel.steered) for kernel in kernels]
    for phase, parity in enumerate((3, 0, 1), 1):
        call_for(monkeypatch, parity=parity)
        go_on(kernels, flows, sizes, range(phase * ROUNDS, (phase + 1) * ROUNDS))
        assert client.count("fec.blocks_coded") > 0
        assert [kernel.steered for kernel in kernels] == lanes_before


def call_for(monkeypatch: pytest.MonkeyPatch, **requests: int) -> None:
    """Let all links call for so much parity, or so many copies, whatever their monitors find."""
    monkeypatch.setattr(LinkView, "state", lambda view, peer: STATE(view, peer)._replace(**requests))


def copied(sender: End) -> int:
    return sender.count("tun.copies_added")


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("lanes", [(1, 1), (2, 2), (3, 2), (2, 3), (3, 3)], ids=lambda lanes: f"{lanes[0]}-{lanes[1]}")
def test_copies_meet_in_the_lane_of_their_flow_whatever_connections_they_take(
    make: Make, monkeypatch: pytest.MonkeyPatch, lanes: tuple[int, int], sealed: bool
) -> None:
    settings = FEC | {"fec": "auto"}
    server, client = sealed_pair(make, lanes, **settings) if sealed else pair(make, lanes, **settings)
    flows = range(6)
    kernels = converse(client, server, flows, (LIGHT_BYTES, LIGHT_BYTES))
    lanes_before = [dict(kernel.steered) for kernel in kernels]
    call_for(monkeypatch, copies=2)
    go_on(kernels, flows, (LIGHT_BYTES, LIGHT_BYTES), range(ROUNDS, 3 * ROUNDS))
    assert [kernel.steered for kernel in kernels] == lanes_before
    for sender, receiver in ((client, server), (server, client)):
        assert copied(sender) > ROUNDS
        until(lambda: receiver.count("tun.copies_unneeded") == copied(sender), server, client)
    for kernel in kernels:
        kernel.take()
        assert kernel.arrived == {flow: list(range(3 * ROUNDS)) for flow in flows}


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
def test_each_block_of_a_long_burst_has_all_its_copies_so_that_none_is_overtaken(
    make: Make, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    settings = FEC | {"fec": "auto"}
    server, client = sealed_pair(make, (1, 1), **settings) if sealed else pair(make, (1, 1), **settings)
    call_for(monkeypatch, copies=2)
    blocks, copies = client.count("tun.blocks_light_filled"), copied(client)
    for number in range(90):
        client.write(datagram(0, number, LIGHT_PACKET_BYTES - VNET_HEADER_BYTES if number == 40 else 1000))
    until(lambda: len(server.packets()) == 90, server, client)
    assert [number_of(packet) for packet in server.packets()] == list(range(90))
    blocks, copies = client.count("tun.blocks_light_filled") - blocks, copied(client) - copies
    assert 0 < blocks < 45
    assert copies == 2 * blocks


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "sealed"])
@pytest.mark.parametrize("light", [2, 3])
def test_a_light_flow_keeps_its_lane_where_there_are_fewer_light_connections_than_lanes_and_some_blocks_have_copies(
    make: Make, monkeypatch: pytest.MonkeyPatch, light: int, sealed: bool
) -> None:
    settings = {"connections": 4, "light_connections": light, "fec": "auto"}
    server, client = sealed_pair(make, (4, 4), **settings) if sealed else pair(make, (4, 4), **settings)
    turn = iter(range(1 << 30))
    monkeypatch.setattr(LightPacker, "_copies", lambda self, block, called: next(turn) % 3 == 0)
    flows = range(8)
    kernels = converse(client, server, flows, (LIGHT_BYTES, LIGHT_BYTES))
    for kernel in kernels:
        assert kernel.lanes == {flow: [flow % 4] for flow in flows}
        assert kernel.arrived == {flow: list(range(ROUNDS)) for flow in flows}
    assert copied(client) > 0


@pytest.mark.parametrize("fec", ["off", "on"])
def test_clients_with_one_lane_are_spread_over_the_lanes_of_their_hub(make: Make, fec: str) -> None:
    connections = {"connections": 4, "light_connections": 2} if fec == "on" else {}
    server, *clients = connected_hub(make, 4, lanes=2, fec=fec, clients=connections)
    if fec == "on":
        until(
            lambda: all(any(words[LINK_REQUESTS] & MASK for words in end.memory.peer_table.links) for end in clients),
            *clients,
        )
    for number, client in enumerate(clients, 1):
        client.write(datagram(number, 0, BULK_BYTES, inside(number, 4), inside(0, 4)))
    until(lambda: len(server.packets()) == 4, server, *clients)
    assert [len(queue) for queue in server.received] == [2, 2]


@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize(("ours", "theirs"), [(2, 2), (2, 3), (3, 2), (1, 2)])
def test_answers_of_a_hub_come_back_through_the_lane_of_the_question(
    make: Make, ours: int, theirs: int, fec: str
) -> None:
    settings = {"lanes": theirs, "connections": max(theirs, 3), "light_connections": 2 if fec == "on" else 0}
    server, *clients = connected_hub(make, 2, lanes=ours, fec=fec, clients=settings)
    ends = server, *clients
    if fec == "on":
        until(
            lambda: all(any(words[LINK_REQUESTS] & MASK for words in end.memory.peer_table.links) for end in ends),
            *ends,
        )
    for number, client in enumerate(clients, 1):
        for lane in range(min(ours, theirs)):
            client.write(datagram(lane, lane, BULK_BYTES, inside(number, 4), inside(0, 4)), lane)
            until(lambda: len(server.packets()) == 1, *ends)
            (came,) = [number for number, queue in enumerate(server.received) if queue]
            server.write(datagram(lane, lane, BULK_BYTES, inside(0, 4), inside(number, 4)), came)
            until(lambda: len(client.packets()) == 1, *ends)
            assert [number for number, queue in enumerate(client.received) if queue] == [lane]
            for end in ends:
                for queue in end.received:
                    queue.clear()


@pytest.mark.parametrize("count", [8, 32])
@pytest.mark.parametrize("lanes", [2, 3])
def test_connections_are_accepted_alike_by_all_tcp_workers(
    make: Make, monkeypatch: pytest.MonkeyPatch, count: int, lanes: int
) -> None:
    monkeypatch.setattr(accept_share, "PATIENCE_NS", 1 << 62)  # however slow this machine is, no worker hangs
    server = make("server", lanes=lanes)
    client = make("client", port=server.port, connections=count, client_id=1, session=1)
    until(lambda: server.established() == client.established() == count, server, client)
    here = [words[LINK_ESTABLISHED] for words in server.memory.peer_table.links]
    assert sum(here) == count
    assert max(here) - min(here) <= 2


def test_a_worker_whose_connections_have_ended_gets_the_next_ones(make: Make) -> None:
    server = make("server", lanes=2)
    client = make("client", port=server.port, connections=8, client_id=1, session=1)
    until(lambda: server.established() == client.established() == 8, server, client)
    server.kill("tcp-1")
    server.start("tcp-1")
    until(lambda: server.established() == client.established() == 8, server, client)
    here = [words[LINK_ESTABLISHED] for words in server.memory.peer_table.links]
    assert max(here) - min(here) <= 2
