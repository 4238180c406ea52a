"""Packets to everybody on a hub with `multicast_kbit`: to all peers but the sender, to the kernel, within a limit."""

from __future__ import annotations

import pytest

from pipeline.policy.reach import PeerFacts, Terms, compile_policies
from pipeline.shm.reach_rules import NO_POLICY
from tests.inline.harness.ends import End, Make, push, until
from tests.inline.harness.hub_ends import connected_hub, dropped, index_of, inside, packet, tls

RATE = 16_000
GROUPS = ["224.0.0.251", "239.1.2.3", "255.255.255.255", "10.0.0.255", "ff02::fb"]
Shape = dict[str, object]
SHAPES: dict[str, Shape] = {
    "plain": {},
    "fec": {"fec": "on", "connections": 3},
    "lanes": {"lanes": 2},
    "sealed": {"seals": True, "tls": tls()[0], "clients": {"seals": True, "tls": tls()[1]}},
}


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def group_packet(sender: int, group: str, number: int = 0, size: int = 100) -> bytes:
    return packet(inside(sender, version_of(group)), group, number, size)


def hub_of(make: Make, count: int, shape: str = "plain", **settings: object) -> tuple[End, ...]:
    return connected_hub(make, count, capacity=count + 1, multicast_rate=RATE, **SHAPES[shape], **settings)


def settle(*ends: End) -> None:
    until(lambda: not any(end.step() for end in ends))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_a_packet_of_a_peer_goes_to_all_others_and_to_the_kernel_and_not_back(
    make: Make, group: str, shape: str
) -> None:
    server, first, *others = ends = hub_of(make, 3, shape)
    out = group_packet(1, group)
    first.write(out)
    until(lambda: all(end.packets() == [out] for end in (server, *others)), *ends)
    assert first.packets() == [] and not dropped(server)
    assert server.counts()["tun.packets_multicast_received"] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_a_packet_of_the_hub_goes_to_all_peers(make: Make, group: str, shape: str) -> None:
    server, *clients = ends = hub_of(make, 3, shape)
    out = group_packet(0, group)
    server.write(out)
    until(lambda: all(end.packets() == [out] for end in clients), *ends)
    assert not dropped(server) and server.counts()["tun.packets_multicast_read"] == 1


@pytest.mark.parametrize("sender", [0, 1], ids=["hub", "peer"])
def test_more_peers_than_a_ring_has_slots_all_get_it(make: Make, sender: int) -> None:
    server, *clients = ends = hub_of(make, 24)
    packets = [group_packet(sender, "224.0.0.251", number) for number in range(3)]
    source = clients[0] if sender else server
    waiting = list(packets)
    until(lambda: push(source, waiting), *ends)
    until(lambda: all(end.packets() == packets for end in clients if end is not source), *ends)
    assert not dropped(server)


@pytest.mark.parametrize("sender", [0, 1], ids=["hub", "peer"])
def test_what_is_beyond_the_limit_is_dropped_and_counted_and_goes_nowhere(make: Make, sender: int) -> None:
    server, first, second = ends = hub_of(make, 2)
    packets = [group_packet(sender, "239.1.2.3", number, 1000) for number in range(100)]
    source = first if sender else server
    waiting = list(packets)
    until(lambda: push(source, waiting), *ends)
    settle(*ends)
    counter = "tun.dropped_multicast_limit" if sender else "tun.dropped_own_multicast_limit"
    got = second.packets()
    assert 30 <= len(got) <= 90 and len(got) + server.counts()[counter] == len(packets)
    assert got == [each for each in packets if each in got]
    if sender:
        assert server.packets() == got


def test_a_source_that_is_not_the_senders_own_goes_nowhere(make: Make) -> None:
    server, first, second = ends = hub_of(make, 2)
    for each in (
        packet(inside(2, 4), "224.0.0.251"),
        packet("224.0.0.251", "224.0.0.251"),
        group_packet(1, "224.0.0.1"),
    ):
        first.write(each)
    until(lambda: second.packets(), *ends)
    assert second.packets() == server.packets() == [group_packet(1, "224.0.0.1")]
    assert dropped(server) == {"tun.dropped_source_refused": 2}


def test_with_client_isolation_the_kernel_alone_gets_it(make: Make) -> None:
    server, first, second = ends = hub_of(make, 2, client_isolation=True)
    out = group_packet(1, "224.0.0.251")
    first.write(out)
    until(lambda: server.packets() == [out], *ends)
    settle(*ends)
    assert second.packets() == []


def test_rules_of_reach_hold_for_groups_and_a_refused_packet_is_not_answered(make: Make) -> None:
    server, first, second = ends = hub_of(make, 2, reach=True, clients={})
    allowed, refused, of_second = (
        group_packet(*each) for each in ((1, "239.1.2.3"), (1, "239.9.9.9"), (2, "239.9.9.9"))
    )
    found = compile_policies([PeerFacts("first", may_reach=("239.1.2.0/24",))], Terms())
    handles = {server.memory.peer_table.peer_handle(index_of(server, 1)): 0}
    handles[server.memory.peer_table.peer_handle(index_of(server, 2))] = NO_POLICY
    server.reach_memory.rules.write(True, 1, [], handles, [found["first"].rows])
    first.write(refused)
    first.write(allowed)
    until(lambda: second.packets() == [allowed], *ends)
    second.write(of_second)
    until(lambda: first.packets() == [of_second], *ends)
    assert server.counts()["tun.dropped_not_reachable"] == 1


def test_other_packets_pass_as_ever(make: Make) -> None:
    server, first, second = ends = hub_of(make, 2)
    across, up = packet(inside(1, 4), inside(2, 4)), packet(inside(1, 4), inside(0, 4))
    reserved = packet(inside(1, 4), "240.0.0.1")
    for each in (across, up, reserved):
        first.write(each)
    until(lambda: second.packets() == [across] and server.packets() == [up], *ends)
    down = packet(inside(0, 4), inside(2, 4))
    server.write(down)
    until(lambda: second.packets() == [across, down], *ends)
    assert dropped(server) == {"tun.dropped_multicast": 1}
