"""UDP packets that arrive together leave for the kernel as super-packets, where our device takes them."""

from __future__ import annotations

import errno
import os
from ipaddress import ip_address
from typing import Any

import pytest

from pipeline.packet import gso
from pipeline.packet.vnet import GSO_UDP_L4, NEEDS_CSUM
from pipeline.runtime.tun import TSO, TUN_F_CSUM, USO
from tests.harness.udp import udp
from tests.inline.harness.ends import End, Make, pair, until
from tests.inline.harness.hub_ends import connected_hub, dropped, inside, tls
from workers.tun import writer

COUNT, SIZE = 20, 200
TAKES = TSO | USO


def datagrams(sender: int = 1, receiver: str = inside(0, 4), version: int = 4) -> list[bytes]:
    ends = ip_address(inside(sender, version)).packed + ip_address(receiver).packed
    return [udp(number.to_bytes(2, "big") * (SIZE // 2), version, ends=ends) for number in range(COUNT)]


def finished(packets: list[bytes]) -> list[bytes]:
    """As a kernel delivers them; those of IPv4 without the id, which it counts up, and the checksum over it."""
    made = [each for packet in packets for each in gso.finish(packet)]
    return [each if each[10] >> 4 == 6 else each[:14] + each[16:20] + each[22:] for each in made]


def in_one_block(sender: End, packets: list[bytes]) -> None:
    before = sender.count("tun.blocks_light_filled")
    for each in packets:
        sender.write(each)
    until(lambda: sender.count("tun.blocks_light_filled") > before, sender)
    assert sender.count("tun.blocks_light_filled") == before + 1


def hub(make: Make, **settings: Any) -> tuple[End, ...]:
    return connected_hub(make, 2, slots=8, offloads_accepted=TAKES, **settings)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "sealed"])
def test_packets_of_a_flow_are_one_write_and_counted_each(make: Make, is_sealed: bool, version: int) -> None:
    serving, dialling = tls()
    server, client = connected_hub(
        make,
        1,
        capacity=1,
        slots=8,
        offloads_accepted=TAKES,
        **({"seals": True, "tls": serving, "clients": {"seals": True, "tls": dialling}} if is_sealed else {}),
    )
    sent = datagrams(1, inside(0, version), version)
    in_one_block(client, sent)
    until(lambda: server.count("tun.packets_written") == COUNT, server, client)
    (found,) = server.packets()
    assert found[:2] == bytes([NEEDS_CSUM, GSO_UDP_L4])
    assert finished([found]) == finished(sent)
    assert server.count("tun.bytes_written") == client.count("tun.bytes_read")
    assert not dropped(server)


@pytest.mark.parametrize("accepted", [0, TUN_F_CSUM, TSO])
def test_a_device_that_takes_no_super_packets_of_udp_gets_each_packet(make: Make, accepted: int) -> None:
    server, client = pair(make, slots=8, offloads_accepted=accepted)
    in_one_block(client, datagrams())
    until(lambda: len(server.packets()) == COUNT, server, client)
    assert finished(server.packets()) == finished(datagrams())


def test_a_hub_merges_packets_of_a_client_for_its_kernel(make: Make) -> None:
    server, first, _ = hub(make)
    in_one_block(first, datagrams(1, "192.0.2.1"))
    until(lambda: server.count("tun.packets_written") == COUNT, server, first)
    assert len(server.packets()) == 1
    assert finished(server.packets()) == finished(datagrams(1, "192.0.2.1"))


@pytest.mark.parametrize(
    ("packets", "counter"),
    [
        (datagrams(2), "tun.dropped_source_refused"),
        (datagrams(1, "224.0.0.1"), "tun.dropped_multicast"),
        (datagrams(1, inside(1, 4)), "tun.dropped_own_destination"),
    ],
    ids=["of another source", "multicast", "for the sender"],
)
def test_packets_that_a_hub_drops_are_counted_each(make: Make, packets: list[bytes], counter: str) -> None:
    server, first, _ = hub(make)
    in_one_block(first, packets)
    until(lambda: dropped(server), server, first)
    assert dropped(server) == {counter: COUNT}
    assert server.packets() == []


def test_packets_for_another_client_are_forwarded_each(make: Make) -> None:
    server, first, second = hub(make)
    in_one_block(first, datagrams(1, inside(2, 4)))
    until(lambda: second.count("tun.packets_written") == COUNT, server, first, second)
    assert server.count("tun.packets_forwarded") == COUNT
    assert server.packets() == []
    assert finished(second.packets()) == finished(datagrams(1, inside(2, 4)))


def test_a_kernel_that_refuses_super_packets_of_udp_gets_each_packet_from_then_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def refuse(fd: int, pieces: list[bytes]) -> int:
        refused.append(len(pieces) - 1)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(writer, "writev", refuse)
    server, client = pair(make, slots=8, offloads_accepted=TAKES)
    for turn in range(1, 3):
        in_one_block(client, datagrams())
        until(lambda: len(server.packets()) == COUNT * turn, server, client)
    assert finished(server.packets()) == finished(datagrams() * 2)
    assert refused == [COUNT]
    assert not dropped(server)


def test_packets_for_a_link_that_is_down_are_counted_each(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_down(fd: int, content: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    server, client = pair(make, slots=8, offloads_accepted=TAKES)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "writev", is_down)
        patch.setattr(writer, "write", is_down)
        in_one_block(client, datagrams())
        until(lambda: dropped(server), server, client)
    assert dropped(server) == {"tun.dropped_link_down": COUNT}
    in_one_block(client, datagrams())
    until(lambda: server.count("tun.packets_written") == COUNT, server, client)
    assert len(server.packets()) == 1
