"""Classes of packets: flows are told apart, and each flow is light as long as it sends little."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.flow_classifier import (
    BURST_BYTES,
    FLOWS_MAX,
    LIGHT_PACKET_BYTES,
    OVERDRAFT_BYTES,
    PAUSE_NS,
    RATE_BYTES_PER_S,
    FlowClassifier,
)
from pipeline.packet.vnet import VNET_HEADER_BYTES

SECOND = 1_000_000_000
TCP, UDP, ICMP = 6, 17, 1


def packet4(source: int = 1, port: int = 1000, protocol: int = UDP, other: bytes = b"") -> memoryview:
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 60, 7, 0, 64, protocol, 0, source, 0x0A000001)
    return memoryview(bytes(VNET_HEADER_BYTES) + head + struct.pack(">HH", port, 53) + other + bytes(40))


def packet6(source: int = 1, port: int = 1000, protocol: int = UDP) -> memoryview:
    head = struct.pack(">IHBB", 6 << 28, 20, protocol, 64) + source.to_bytes(16, "big") + bytes(15) + b"\1"
    return memoryview(bytes(VNET_HEADER_BYTES) + head + struct.pack(">HH", port, 53) + bytes(40))


def light(table: FlowClassifier, packet: memoryview, length: int = 200, now: int = SECOND) -> bool:
    return table.classify_light(packet, 0, length, now)


@pytest.mark.parametrize("packet", [packet4(), packet6(), packet4(protocol=ICMP), packet6(protocol=58)])
def test_a_flow_of_fifty_packets_a_second_is_light_for_ever(packet: memoryview) -> None:
    table = FlowClassifier(lambda: True)
    assert all(light(table, packet, 200, SECOND + i * SECOND // 50) for i in range(500))


def test_a_flow_that_goes_on_above_its_rate_becomes_bulk_and_stays_it() -> None:
    table = FlowClassifier(lambda: True)
    found = [light(table, packet4(), LIGHT_PACKET_BYTES, SECOND + i // 2 * PAUSE_NS) for i in range(100)]
    assert found == sorted(found, reverse=True)
    assert BURST_BYTES // LIGHT_PACKET_BYTES <= found.count(True) <= 3 * BURST_BYTES // LIGHT_PACKET_BYTES


def test_a_flow_stays_light_while_packets_of_light_flows_wait_in_their_ring() -> None:
    table = FlowClassifier(lambda: False)
    for i in range(40):
        assert light(table, packet4(), LIGHT_PACKET_BYTES, SECOND + i // 2 * PAUSE_NS)


def test_a_burst_is_not_torn_apart() -> None:
    table = FlowClassifier(lambda: True)
    assert all(light(table, packet4(), 1400, SECOND + i * 10_000) for i in range(OVERDRAFT_BYTES // 1400))
    assert not light(table, packet4(), 1400, SECOND + SECOND // 10)


def test_a_burst_without_end_is_bulk_at_some_time() -> None:
    table = FlowClassifier(lambda: True)
    found = [light(table, packet4(), 1400, SECOND + i * 10_000) for i in range(1000)]
    assert found == sorted(found, reverse=True)
    assert found.count(True) * 1400 <= BURST_BYTES + OVERDRAFT_BYTES + 1400


def test_a_bulk_flow_is_light_again_only_after_half_a_second_of_quiet() -> None:
    table = FlowClassifier(lambda: True)
    assert not light(table, packet4(), 65_000)
    assert not light(table, packet4(), 100, SECOND + SECOND // 2)
    assert not light(table, packet4(), 100, 2 * SECOND)  # that one began the half second anew
    assert light(table, packet4(), 100, 2 * SECOND + 6 * SECOND // 10)


def test_a_packet_behind_a_super_packet_of_its_flow_does_not_overtake_it() -> None:
    table = FlowClassifier(lambda: True)
    assert light(table, packet4(), 60)
    assert not light(table, packet4(), LIGHT_PACKET_BYTES + 1)
    assert not light(table, packet4(), 60)


@pytest.mark.parametrize("other", [packet4(port=1001), packet4(source=2), packet4(protocol=ICMP), packet6()])
def test_a_bulk_flow_takes_nothing_from_another_one(other: memoryview) -> None:
    table = FlowClassifier(lambda: True)
    for _ in range(100):
        light(table, packet4(protocol=TCP), 60_000)
    assert light(table, other)


def test_a_field_that_changes_within_a_flow_does_not_make_it_another_flow() -> None:
    table = FlowClassifier(lambda: True)
    echoes = [packet4(protocol=ICMP, port=number, other=bytes([number])) for number in range(200)]
    assert not all(light(table, echo, 1400) for echo in echoes)


def test_more_flows_than_are_kept_cost_no_memory() -> None:
    table = FlowClassifier(lambda: True)
    for source in range(3 * FLOWS_MAX):
        assert light(table, packet4(source=source))
    assert len(table._flows) <= FLOWS_MAX


@given(st.lists(st.tuples(st.integers(20, 65_535), st.integers(0, SECOND)), max_size=200))
def test_light_packets_never_exceed_burst_and_rate(packets: list[tuple[int, int]]) -> None:
    table = FlowClassifier(lambda: True)
    now = SECOND
    passed = 0
    for length, pause in packets:
        now += pause
        if light(table, packet4(), length, now):
            assert length <= LIGHT_PACKET_BYTES
            passed += length
    assert passed <= BURST_BYTES + OVERDRAFT_BYTES + (now - SECOND) * RATE_BYTES_PER_S / SECOND + 1
