"""Rules for light and bulk: by mark and by port, for both versions of IP, and within a limit."""

from __future__ import annotations

import struct

import pytest

from pipeline.packet.flow_classifier import LIGHT_PACKET_BYTES, FlowClassifier
from pipeline.packet.flow_rules import (
    BULK,
    LIGHT,
    NO_RULE,
    RULED_BURST_BYTES,
    RULED_RATE,
    FlowRules,
    RuledClassifier,
    classifier,
)
from pipeline.packet.vnet import VNET_HEADER_BYTES

SECOND = 1_000_000_000
TCP, UDP, ICMP = 6, 17, 1
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def packet(version: int, protocol: int = UDP, ports: tuple[int, int] = (40_000, 53), tos: int = 0, more: int = 0):
    """A packet behind its virtio-net header. `more`: the field of a fragment."""
    if version == 4:
        head = struct.pack(">BBHHHBBHII", 0x45, tos, 60, 7, more, 64, protocol, 0, 1, 2)
    else:
        head = struct.pack(">IHBB", 6 << 28 | tos << 20, 20, protocol, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"
    return memoryview(bytes(VNET_HEADER_BYTES) + head + struct.pack(">HH", *ports) + bytes(4000))


@VERSIONS
@pytest.mark.parametrize("ecn", range(4))
def test_a_mark_counts_whatever_the_bits_of_ecn_are(version: int, ecn: int) -> None:
    rules = FlowRules(["EF"], ["8"])
    assert rules.look(packet(version, tos=46 << 2 | ecn), 0) == LIGHT
    assert rules.look(packet(version, tos=8 << 2 | ecn), 0) == BULK
    assert rules.look(packet(version, tos=ecn), 0) == NO_RULE


@VERSIONS
def test_a_port_counts_at_either_end_and_for_its_protocol_alone(version: int) -> None:
    rules = FlowRules(["udp/5060", "TCP/8000-8002"], [])
    for ports in ((5060, 9), (9, 5060)):
        assert rules.look(packet(version, UDP, ports), 0) == LIGHT
        assert rules.look(packet(version, TCP, ports), 0) == NO_RULE
    found = [rules.look(packet(version, TCP, (port, 9)), 0) for port in (7999, 8000, 8002, 8003)]
    assert found == [NO_RULE, LIGHT, LIGHT, NO_RULE]
    assert rules.look(packet(version, ICMP, (5060, 5060)), 0) == NO_RULE


@VERSIONS
def test_a_mark_comes_before_a_port_and_light_before_bulk(version: int) -> None:
    rules = FlowRules(["udp/53", "udp/54"], ["CS1", "udp/53"])
    assert rules.look(packet(version, tos=8 << 2, ports=(54, 9)), 0) == BULK
    assert rules.look(packet(version, ports=(53, 9)), 0) == LIGHT


def test_a_later_fragment_and_a_packet_with_options_have_no_ports() -> None:
    rules = FlowRules(["udp/53"], [])
    assert rules.look(packet(4, more=0x2000), 0) == LIGHT  # the first fragment
    assert rules.look(packet(4, more=1), 0) == rules.look(packet(4, more=0x100), 0) == NO_RULE
    options = bytearray(packet(4))
    options[VNET_HEADER_BYTES] = 0x46
    assert rules.look(memoryview(bytes(options)), 0) == NO_RULE


@pytest.mark.parametrize(
    "rule",
    ["", "EFF", "0", "CS0", "64", "udp", "udp/", "udp/70000", "sctp/1", "tcp/9-8", "tcp/1-70000", "tcp/x", " "],
)
def test_anything_else_is_no_rule(rule: str) -> None:
    with pytest.raises(ValueError, match="a mark such as"):
        FlowRules([rule], [])


def test_without_rules_there_is_no_look_at_any() -> None:
    assert type(classifier([], [], bool, bool)) is FlowClassifier
    assert type(classifier([], ["LE"], bool, bool)) is RuledClassifier


def test_ruled_bulk_is_never_light_and_ruled_light_is_so_up_to_a_rate() -> None:
    table = classifier(["EF"], ["LE"], lambda: True, bool)
    assert not any(table.classify_light(packet(4, tos=1 << 2), 0, 100, at * SECOND) for at in range(1, 9))
    step = SECOND // 10_000
    light = sum(
        1000 for at in range(20_000) if table.classify_light(packet(4, tos=46 << 2), 0, 1000, SECOND + at * step)
    )
    assert 2 * RULED_RATE <= light <= 2 * RULED_RATE + 3 * RULED_BURST_BYTES


def test_a_long_packet_is_never_light() -> None:
    table = classifier(["EF"], [], lambda: True, bool)
    assert not table.classify_light(packet(4, tos=46 << 2), 0, LIGHT_PACKET_BYTES + 1, SECOND)


def test_a_full_light_ring_changes_nothing_for_ruled_flows() -> None:
    table = classifier(["EF"], [], lambda: True, bool)
    assert table.classify_light(packet(4, tos=46 << 2), 0, 100, SECOND)
    table.demote_last()
    assert table.classify_light(packet(4, tos=46 << 2), 0, 100, SECOND)
