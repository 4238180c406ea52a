"""Fake flows: two ends that exchange real packets, cut as the kernel cuts them, past a firewall that knows windows."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.faketcp.flow import ACK_NS, STALL_NS, STAMP_MS, WINDOW, Agreed, Ends, Flow
from pipeline.faketcp.packet import ACK, FIN, RST, SYN, URG, Arrived, read
from pipeline.packet import gso
from pipeline.packet.vnet import NO_VNET, VNET_HEADER_BYTES
from tests.harness.window_tracker import U32, WindowTracker

V4 = Ends(bytes([10, 1, 0, 2]), 40000, bytes([192, 0, 2, 9]), 443)
V6 = Ends(bytes.fromhex("fd770000000000000000000000000001"), 40000, bytes(range(16)), 443)
FIRST_WINDOW = 64240
MS = 1_000_000
NOTHING = memoryview(b"")
SCALE = 7


def pair(ends: Ends = V4, stamps: bool = True, next_byte: int = U32 - 5000, scale: int = SCALE) -> tuple[Flow, Flow]:
    """A client and a server behind their handshake."""
    there = Ends(ends.remote, ends.remote_port, ends.local, ends.local_port)
    clock = U32 - 10
    client = Flow(ends, Agreed(scale, scale, stamps, clock, 64, 1448), next_byte, 77, FIRST_WINDOW, nullcontext(), 0)
    server = Flow(there, Agreed(scale, scale, stamps, 5, 64, 1448), 77, next_byte, FIRST_WINDOW, nullcontext(), 0)
    return client, server


def cut(header: bytearray, payload: bytes = b"") -> list[Arrived]:
    """The packets on the wire, as the other end reads them: with checksums that it has to verify by itself."""
    found = []
    for packet in gso.finish(bytes(header) + payload):
        assert packet[:VNET_HEADER_BYTES] == NO_VNET
        arrived = read(memoryview(packet), NOTHING, 0)
        assert arrived is not None and not arrived.is_damaged
        found.append(arrived)
    return found


def arrived(flow: Flow, **changes: int) -> Arrived:
    """A packet without payload that `flow` expects, but for the changes."""
    made = Arrived(flow.ends.key, flow.received, flow.sent, ACK, WINDOW, 1, 0, 0, 0, False)
    return made._replace(**changes)


def pass_on(sender: Flow, receiver: Flow, header: bytearray, payload: bytes = b"", now: int = 0) -> None:
    for packet in cut(header, payload):
        assert packet.key == receiver.ends.key
        assert receiver.take(packet, now) is None


@pytest.mark.parametrize("ends", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("stamps", [True, False])
@given(size=st.integers(1, 65400), segment=st.integers(536, 1460))
def test_a_super_packet_becomes_segments_that_the_other_end_accepts(
    ends: Ends, stamps: bool, size: int, segment: int
) -> None:
    client, server = pair(ends, stamps)
    payload = random.Random(size).randbytes(size)
    header = client.header(size, segment, 3 * MS)
    packets = cut(header, payload)
    assert len(packets) == -(-size // segment)
    for number, packet in enumerate(packets):
        assert packet.sequence == (U32 - 5000 + number * segment) & U32
        assert packet.end - packet.begin == min(segment, size - number * segment)
        assert packet.stamp == (2**32 - 8 if stamps else -1) & (U32 if stamps else -1)
        assert server.take(packet, 0) is None
    assert server.received == client.sent


def test_the_whole_super_packet_reads_as_one() -> None:
    """As the other end gets it, if the kernel has merged the segments."""
    client, server = pair()
    header = client.header(5000, 1400, 0)
    packet = bytes(header) + bytes(5000)
    found = read(memoryview(packet), NOTHING, 0)
    assert found is not None
    assert (found.segment_bytes, found.end - found.begin, found.is_damaged) == (1400, 5000, False)
    assert server.take(found, 0) is None and server.received == client.sent


def test_a_link_header_and_padding_are_no_part_of_the_packet() -> None:
    client, server = pair()
    client.set_link(bytes(range(14)))
    header = client.header(3, 3, 0)
    packet = bytes(header) + b"abc" + bytes(20)
    found = read(memoryview(packet), NOTHING, 14)
    assert found is not None and packet[found.begin : found.end] == b"abc"
    assert packet[VNET_HEADER_BYTES : VNET_HEADER_BYTES + 14] == bytes(range(14))
    assert found.key == server.ends.key


@given(st.binary(max_size=200), st.sampled_from([0, 14]))
def test_any_bytes_are_read_or_refused(noise: bytes, link: int) -> None:
    found = read(memoryview(noise), NOTHING, link)
    assert found is None or found.begin <= found.end <= len(noise)


@given(st.integers(0, 59), st.integers(1, 255))
def test_a_changed_byte_is_no_good_packet(at: int, change: int) -> None:
    """Not the IP header's own checksum, which the kernel verifies, nor its length, identification and hop limit."""
    client, server = pair()
    packet = bytearray(gso.finish(bytes(client.header(8, 8, 0)) + b"payload!")[0])
    if at < 12 and at != 9:
        return
    packet[VNET_HEADER_BYTES + at] ^= change
    found = read(memoryview(packet), NOTHING, 0)
    assert found is None or found.is_damaged or found.key != server.ends.key or at in (9, 10, 11)


# -- acknowledgements and windows


def test_payload_is_acknowledged_after_a_while_or_a_quarter_of_a_megabyte() -> None:
    client, server = pair()
    pass_on(client, server, client.header(1000, 1000, 0), bytes(1000), now=5)
    assert not server.due(5)
    assert server.due(5 + ACK_NS)
    pass_on(server, client, server.acknowledge(5))
    assert not server.due(5 + ACK_NS)
    for _ in range(5):
        pass_on(client, server, client.header(60000, 1400, 0), bytes(60000), now=6)
    assert server.due(6)


def test_what_is_sent_takes_the_acknowledgement_along() -> None:
    client, server = pair()
    pass_on(client, server, client.header(1000, 1000, 0), bytes(1000), now=5)
    pass_on(server, client, server.header(10, 10, 6), bytes(10))
    assert client.acknowledged == client.sent
    assert not server.due(5 + ACK_NS)


def test_acknowledgements_are_not_acknowledged() -> None:
    client, server = pair()
    pass_on(client, server, client.acknowledge(0))
    pass_on(server, client, server.acknowledge(0))
    assert not server.due(10**12) and not client.due(10**12)


def test_the_first_window_is_small_and_an_acknowledgement_opens_it() -> None:
    client, server = pair()
    assert client.may_send(FIRST_WINDOW, 0)
    assert not client.may_send(FIRST_WINDOW + 1, 0)
    pass_on(server, client, server.acknowledge(0))
    assert client.may_send(WINDOW << SCALE, 0)
    client.header(1000, 1000, 0)
    assert not client.may_send(WINDOW << SCALE, 0)


def test_a_window_that_stays_full_begins_again_and_goes_on_from_the_next_acknowledgement() -> None:
    """All acknowledgements of these bytes are lost. The other end had everything."""
    client, server = pair()
    begin = client.sent
    pass_on(client, server, client.header(FIRST_WINDOW, 1400, 0), bytes(FIRST_WINDOW))
    server.acknowledge(0)
    assert not client.may_send(1, 1)
    assert not client.may_send(1, STALL_NS)
    assert client.may_send(1, STALL_NS + 1)
    assert client.sent == begin
    again = client.header(100, 100, STALL_NS + 1)
    pass_on(client, server, again, bytes(100))
    assert server.due(STALL_NS + 1)
    pass_on(server, client, server.acknowledge(STALL_NS + 1))
    assert client.sent == client.acknowledged == begin + FIRST_WINDOW & U32


def test_a_window_of_zero_is_probed() -> None:
    client, _ = pair()
    assert client.take(arrived(client, window=0), 0) is None
    assert not client.may_send(1000, 1)
    assert client.may_send(1000, 1 + STALL_NS)
    assert not client.may_send(1000, 1 + STALL_NS)


@pytest.mark.parametrize("seed", range(30))
def test_a_firewall_that_follows_windows_lets_all_of_it_pass(seed: int) -> None:
    """Losses before and behind it, reordering, windows that fill up, and numbers that wrap around."""
    source = random.Random(seed)
    scale = source.choice([0, 2, 7])
    flows = pair(scale=scale)
    watch = WindowTracker((flows[0].sent, FIRST_WINDOW, scale), (flows[1].sent, FIRST_WINDOW, scale))
    under_way: list[list[tuple[int, Arrived]]] = [[], []]
    loss = source.choice([0.0, 0.02, 0.3])
    now, delivered = 0, 0
    for _ in range(3000):
        now += source.choice([10_000, MS, 30 * MS])
        side = source.randrange(2)
        flow = flows[side]
        size = source.choice([0, 1, 1400, 14000])
        header = None
        if size and flow.may_send(size, now):
            header = flow.header(size, 1400, now)
        elif flow.due(now):
            header, size = flow.acknowledge(now), 0
        elif source.random() < 0.05:
            header, size = flow.keepalive(now), 0
        for packet in cut(header, bytes(size)) if header else ():
            if source.random() >= loss:
                assert watch.allows(
                    side, packet.sequence, packet.acknowledged, packet.window, packet.end - packet.begin
                )
                if source.random() >= loss:
                    under_way[side].append((now + source.randrange(20 * MS), packet))
        for to, queue in ((1, under_way[0]), (0, under_way[1])):
            for due in sorted((each for each in queue if each[0] <= now), key=lambda each: each[0]):
                queue.remove(due)
                assert flows[to].take(due[1], now) is None
                delivered += due[1].end - due[1].begin
    assert delivered > 200_000 * (1 + scale)


def test_timestamps_count_milliseconds_and_answer_the_newest() -> None:
    client, server = pair(next_byte=5)
    pass_on(client, server, client.header(10, 10, 50 * MS), bytes(10))
    header = server.acknowledge(0)
    assert int.from_bytes(header[-4:], "big") == (U32 - 10 + 50) & U32
    assert int.from_bytes(header[-8:-4], "big") == 5


@pytest.mark.parametrize(("stamp", "after_ms", "is_good"), [
    (1000, 0, True), (1000 + STAMP_MS, 0, True), (1000 + STAMP_MS + 1, 0, False), (1000 + STAMP_MS + 500, 500, True),
    ((1000 - STAMP_MS) & U32, 0, True), ((999 - STAMP_MS) & U32, 0, False), (1 << 31, 0, False), (-1, 0, False),
])  # fmt: skip
def test_a_timestamp_has_to_be_of_this_moment(stamp: int, after_ms: int, is_good: bool) -> None:
    client, _ = pair()
    assert client.take(arrived(client, stamp=1000), 5) is None
    assert (client.take(arrived(client, stamp=stamp), 5 + after_ms * MS) is None) is is_good


def test_without_timestamps_none_is_expected() -> None:
    client, _ = pair(stamps=False)
    for _ in range(2):
        assert client.take(arrived(client, stamp=-1), 5) is None


def test_the_numbers_of_a_packet_that_could_not_be_sent_are_free_again() -> None:
    client, _ = pair()
    begin = client.sent
    header = client.header(1000, 1000, 0)
    client.take_back(header, 1000)
    assert client.sent == begin
    later = client.header(500, 500, 0), client.header(10, 10, 0)
    client.take_back(later[0], 500)
    assert client.sent == begin + 510


def test_the_numbers_that_two_duties_draw_at_once_do_not_overlap() -> None:
    ends = Ends(V4.local, 1, V4.remote, 2)
    flow = Flow(ends, Agreed(0, 0, False, 5, 64, 1460), 0, 0, 0, threading.Lock(), 0)

    def draw(size: int) -> list[tuple[int, int]]:
        headers = [flow.header(size, size, 0) for _ in range(3000)]
        return [(int.from_bytes(each[-16:-12], "big"), size) for each in headers]

    with ThreadPoolExecutor() as duties:
        drawn = sorted(each for part in duties.map(draw, (1000, 7, 1)) for each in part)
    assert all(at + size == later for (at, size), (later, _) in itertools.pairwise(drawn))


# -- keepalive, end, and packets of others


def test_a_keepalive_is_answered_at_once() -> None:
    client, server = pair()
    pass_on(client, server, client.keepalive(0))
    assert server.due(0)
    assert client.asked_ns == 0
    pass_on(client, server, client.keepalive(7))
    assert client.asked_ns == 7
    pass_on(server, client, server.acknowledge(8), now=8)
    assert client.asked_ns == 0 and not client.due(10**12)


def test_each_end_can_finish_and_the_other_acknowledges_it() -> None:
    client, server = pair()
    pass_on(client, server, client.finish(0))
    assert server.has_ended and server.due(0)
    pass_on(server, client, server.finish(0))
    assert client.has_ended and client.acknowledged == client.sent


HOSTILE = [
    ("dgram.dropped_segment_flags", {"flags": SYN}),
    ("dgram.dropped_segment_flags", {"flags": SYN | ACK}),
    ("dgram.dropped_segment_flags", {"flags": 0}),
    ("dgram.dropped_segment_flags", {"flags": ACK | URG}),
    ("dgram.dropped_segment_flags", {"flags": FIN}),
    ("dgram.dropped_segment_outside", {"flags": RST, "sequence": 76 + (1 << 21)}),
    ("dgram.dropped_segment_outside", {"flags": RST | ACK, "sequence": 78}),
    ("dgram.dropped_segment_outside", {"sequence": 77 + (WINDOW << SCALE) + 1}),
    ("dgram.dropped_segment_outside", {"sequence": 77 - (WINDOW << SCALE) - 1 & U32}),
    ("dgram.dropped_segment_outside", {"acknowledged": U32 - 5000 + 1}),
    ("dgram.dropped_segment_outside", {"acknowledged": U32 - 5001 - FIRST_WINDOW}),
    ("dgram.dropped_segment_damaged", {"is_damaged": True}),
]


@pytest.mark.parametrize(("counter", "changes"), HOSTILE)
def test_a_packet_that_cannot_be_of_the_flow_costs_a_counter(counter: str, changes: dict[str, int]) -> None:
    client, _ = pair()
    before = (client.sent, client.received, client.acknowledged, client.window)
    assert client.take(arrived(client, **changes), 9) == ID[counter]
    assert (client.sent, client.received, client.acknowledged, client.window) == before
    assert not (client.due(10**12) or client.was_reset or client.has_ended)


def test_a_reset_that_may_be_real_is_noted_and_changes_nothing_else() -> None:
    client, server = pair()
    assert client.take(arrived(client, flags=RST, sequence=client.received), 9) == ID["dgram.flows_fake_ended"]
    assert client.was_reset
    pass_on(server, client, server.header(10, 10, 0), bytes(10))


def test_a_reset_of_the_kernel_has_the_number_of_the_handshake_however_much_has_come_since() -> None:
    client, server = pair()
    first = client.received
    for _ in range(40):
        pass_on(server, client, server.header(60_000, 1400, 0), bytes(60_000))
        pass_on(client, server, client.acknowledge(0))
    assert client.take(arrived(client, flags=RST, sequence=first + 1), 9) == ID["dgram.dropped_segment_outside"]
    assert not client.was_reset
    assert client.take(arrived(client, flags=RST, sequence=first), 9) == ID["dgram.flows_fake_ended"]
    assert client.was_reset


@given(st.lists(st.tuples(st.integers(0, U32), st.integers(0, U32), st.integers(0, 255), st.integers(0, 65535))))
def test_forged_numbers_never_take_the_window_away(packets: list[tuple[int, int, int, int]]) -> None:
    """Somebody knows addresses and ports, and guesses at the rest."""
    client, server = pair()
    pass_on(server, client, server.acknowledge(0))
    for sequence, acknowledged, flags, window in packets:
        client.take(Arrived(client.ends.key, sequence, acknowledged, flags, window, 1, 0, 0, 0, False), 1)
    assert client.sent == client.acknowledged == U32 - 5000
    assert client.received == 77 or (client.received - 77 & U32) <= WINDOW << SCALE
