"""A hub whose packets alternate between its peers: a burst makes one block for each peer, not one for each packet."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.topology import LIGHT_SLOT_BYTES
from pipeline.shm.layout import SLOT_BODY_AT
from tests.inline.harness.ends import BLOCK, Dial, End, Make, block_of, hello, until
from tests.inline.harness.hub_ends import Hosts, between, connected_hub, dropped, run_duty, tls

LIGHT_BYTES, BULK_BYTES = 100, 4200
MODES = ("plain", "sealed")


def hub_of(make: Make, mode: str, clients: int = 3, **settings: Any) -> tuple[End, ...]:
    """A server and its clients."""
    if mode == "plain":
        return connected_hub(make, clients, slots=8, **settings)
    serving, dialling = tls()
    return connected_hub(
        make, clients, slots=8, seals=True, tls=serving, clients={"tls": dialling, "seals": True}, **settings
    )


def to_each(clients: int, packets: int, size: int) -> dict[int, list[bytes]]:
    """So many packets for each client, by its number."""
    return {client: between(0, client, range(packets), size=size) for client in range(1, clients + 1)}


def read_in_one_burst(server: End, sent: dict[int, list[bytes]]) -> None:
    """The server's TUN has the packets, for each client in turn."""
    for turn in zip(*sent.values(), strict=True):
        for each in turn:
            server.write(each)
    run_duty(server, "tun-0", "outbound")
    assert server.count("tun.packets_read") == sum(map(len, sent.values()))


def arrive(sent: dict[int, list[bytes]], server: End, clients: tuple[End, ...]) -> None:
    """Each client gets its packets, once and in order, and no other."""
    until(lambda: all(len(client.packets()) >= len(sent[at]) for at, client in enumerate(clients, 1)), server, *clients)
    for number, client in enumerate(clients, 1):
        assert client.packets() == sent[number]
    assert not dropped(server)


@pytest.mark.parametrize("mode", MODES)
def test_light_packets_for_peers_in_turn_make_one_block_for_each_peer(make: Make, mode: str) -> None:
    server, *clients = hub_of(make, mode)
    sent = to_each(3, 20, LIGHT_BYTES)
    read_in_one_burst(server, sent)
    assert server.count("tun.packets_light_read") == 60
    assert server.count("tun.blocks_light_filled") == 3
    arrive(sent, server, tuple(clients))


@pytest.mark.parametrize("mode", MODES)
def test_bulk_packets_for_peers_in_turn_make_one_block_for_each_peer(make: Make, mode: str) -> None:
    server, *clients = hub_of(make, mode)
    sent = to_each(3, 10, BULK_BYTES)
    read_in_one_burst(server, sent)
    assert server.count("tun.packets_light_read") == 0
    assert server.count("tun.blocks_filled") == 3
    arrive(sent, server, tuple(clients))


def test_packets_of_one_peer_for_two_others_in_turn_make_one_block_for_each(hosts: Hosts, dial: Dial) -> None:
    server, first, second = hosts(slots=8)
    sender = dial(server, hello(client=3))
    for_first, for_second = between(3, 1, range(20)), between(3, 2, range(20))
    sender.send(block_of(*(each for pair in zip(for_first, for_second, strict=True) for each in pair)))
    until(lambda: first.packets() == for_first and second.packets() == for_second, server)
    assert first.kinds().count(BLOCK) == second.kinds().count(BLOCK) == 1
    assert not dropped(server)


@pytest.mark.parametrize("mode", MODES)
def test_a_light_block_that_is_full_leaves_after_those_begun_before_it(make: Make, mode: str) -> None:
    server, *clients = hub_of(make, mode, clients=2)
    sent = to_each(2, 150, LIGHT_BYTES)
    read_in_one_burst(server, sent)
    assert server.count("tun.packets_light_read") == 300
    fit = (LIGHT_SLOT_BYTES - SLOT_BODY_AT) // (VNET_HEADER_BYTES + LIGHT_BYTES)
    assert server.count("tun.blocks_light_filled") == 2 * math.ceil(150 / fit)
    arrive(sent, server, tuple(clients))


@pytest.mark.parametrize("mode", MODES)
def test_light_packets_for_more_peers_than_there_are_slots_go_with_bulk(
    make: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime.topology.LIGHT_SLOTS", 2)
    server, *clients = hub_of(make, mode)
    sent = to_each(3, 20, LIGHT_BYTES)
    read_in_one_burst(server, sent)
    assert (server.count("tun.blocks_light_filled"), server.count("tun.packets_light_read")) == (2, 40)
    assert server.count("tun.blocks_filled") == 1
    arrive(sent, server, tuple(clients))


@pytest.mark.parametrize("mode", MODES)
def test_each_light_block_of_a_burst_has_a_copy_of_its_own(make: Make, mode: str) -> None:
    server, *clients = hub_of(make, mode, fec="auto", connections=2, light_connections=2)
    sent = to_each(3, 5, LIGHT_BYTES)
    read_in_one_burst(server, sent)
    assert server.count("tun.copies_added") == server.count("tun.blocks_light_filled") == 3
    arrive(sent, server, tuple(clients))
