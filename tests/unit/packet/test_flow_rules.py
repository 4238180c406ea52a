"""Rules that choose the class of a packet: by mark and by port, for both versions of IP."""

from __future__ import annotations

import struct

import pytest

from pipeline.packet.flow_rules import (
    BULK,
    LIGHT,
    NO_RULE,
    VOICE,
    FlowRules,
)
from pipeline.packet.vnet import VNET_HEADER_BYTES

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


def test_voice_comes_before_light() -> None:
    rules = FlowRules(["EF", "udp/1-9"], ["udp/5"], ["46", "udp/5"])
    assert rules.look(packet(4, tos=46 << 2), 0) == rules.look(packet(4, ports=(5, 900)), 0) == VOICE
    assert rules.look(packet(4, ports=(6, 900)), 0) == LIGHT


@VERSIONS
def test_the_usual_marks_count_where_no_rule_names_them(version: int) -> None:
    usual, ruled = FlowRules(by_dscp=True), FlowRules(["VA"], ["EF"], ["CS1"], by_dscp=True)
    found = {mark: tuple(each.look(packet(version, tos=mark << 2), 0) for each in (usual, ruled)) for mark in range(64)}
    voice, bulk = {46: BULK, 44: LIGHT, 40: VOICE}, {8: VOICE, 1: BULK}
    assert {mark: pair for mark, pair in found.items() if pair != (NO_RULE, NO_RULE)} == {
        **{mark: (VOICE, other) for mark, other in voice.items()},
        **{mark: (BULK, other) for mark, other in bulk.items()},
    }


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
