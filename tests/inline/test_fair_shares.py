"""Peers of a hub that send what costs most: they get their share of the work, and the others theirs.

All is counted in work that was done, never in time: a charge is what a frame costs (pipeline.wire.charge).
"""

from __future__ import annotations

import struct

import pytest

from pipeline.policy.ring_shares import CHARGE_MOST
from pipeline.shm.layout import RECORD_WORDS, TRANSIT_CHARGE
from pipeline.shm.slot import read_header
from pipeline.transport.connection import BARE_FRAMES_BURST
from pipeline.wire import charge, framing
from tests.inline.harness.ends import (
    KEEPALIVE,
    Dial,
    End,
    Make,
    block_of,
    ended,
    frame,
    hello,
    step_for,
    until,
)
from tests.inline.harness.hub_ends import (
    ACCEPTS_SHARDS,
    RUN,
    between,
    index_of,
    inside,
    run_duty,
    super_packet,
)
from tests.inline.test_rates import limit, received_from
from workers.tcp.frame_reader import SLOT_CHARGE
from workers.tcp.peer_turns import QUANTUM
from workers.tun.forwarder import SEGMENTS_MOST
from workers.tun.writer import SLOTS_AT_ONCE

SMALL_SOCKETS = {"send_buffer_bytes": 200_000, "receive_buffer_bytes": 200_000}
FULL = block_of(*between(2, 0, range(80), size=1400))
HOSTILE = {
    "runs": frame(RUN, struct.pack(">IIBBBBII", 2, 7, 1, 0, 0, 1, 8, 0) + bytes(8)) * 500,
    "bare packets": frame(framing.DATA, bytes(28)) * 500,
    "small packets": block_of(*between(3, 0, range(512), size=30)),
    "full blocks": block_of(*between(1, 0, range(80), size=1400)),
}


def charge_of_a_frame(stretch: bytes) -> float:
    """The mean charge, bytes included, of the frames of a stretch."""
    _, _, frames, _, _, charged = framing.scan(memoryview(stretch), 0, len(stretch), framing.LENGTH_LIMIT)
    return (len(stretch) + charged) / frames


class Flood:
    """Connections of one client whose sockets are kept full of a stretch of frames."""

    def __init__(self, server: End, dial: Dial, client: int, connections: int, stretch: bytes) -> None:
        self.peers = [
            dial(server, hello(client=client, index=index, connections=connections, features=ACCEPTS_SHARDS))
            for index in range(connections)
        ]
        self._stretch = stretch * (1 + 100_000 // len(stretch))
        self._unsent = [b""] * connections

    def push(self) -> None:
        for number, peer in enumerate(self.peers):
            unsent = self._unsent[number] or self._stretch
            try:
                self._unsent[number] = unsent[peer.socket.send(unsent) :]
            except BlockingIOError:
                self._unsent[number] = unsent


def slot_owners(server: End) -> list[int]:
    """The peer indexes of the slots that wait in the inbound ring, the oldest first."""
    port = server.workers["tun-0"].duty("inbound")._ports[-1]
    return [read_header(port.slot(ahead))[3] & 0xFFF for ahead in range(port.ready())]


# -- turns


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("connections", [1, 12])
def test_a_peer_gets_its_share_of_the_work_beside_any_flood(
    make: Make, dial: Dial, kind: str, connections: int
) -> None:
    server = make("server", capacity=4, slots=16, fec="on", **SMALL_SOCKETS)
    victim = Flood(server, dial, 2, 4, FULL)
    hostile = Flood(server, dial, 1, connections, HOSTILE[kind])
    frames, received = server.count("tcp.frames_received"), received_from(server, 2)

    def enough() -> bool:
        hostile.push()
        victim.push()
        server.received[0].clear()
        return received_from(server, 2) - received > 60 * len(FULL)

    until(enough, server, seconds=30)
    mine = (received_from(server, 2) - received) // len(FULL)
    others = server.count("tcp.frames_received") - frames - mine
    work, other_work = mine * charge_of_a_frame(FULL), others * charge_of_a_frame(HOSTILE[kind])
    assert work > 0.4 * (work + other_work)


def test_a_peer_in_debt_gets_no_turn_while_another_waits_for_room(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=16, **SMALL_SOCKETS)
    victim = Flood(server, dial, 2, 4, FULL)
    hostile = Flood(server, dial, 1, 1, HOSTILE["small packets"])
    debt = index_of(server, 1) * RECORD_WORDS + TRANSIT_CHARGE
    server.memory.peer_table.transit_numbers[0][debt] += 50 * QUANTUM
    before = received_from(server, 1)
    for _ in range(200):  # of the tcp worker alone: the ring stands still
        victim.push()
        hostile.push()
        run_duty(server, "tcp-0", "inbound")
    assert slot_owners(server).count(index_of(server, 2)) > 4
    assert received_from(server, 1) == before

    def has_its_turn() -> bool:
        victim.push()
        hostile.push()
        server.received[0].clear()
        return received_from(server, 1) > before

    until(has_its_turn, server, seconds=30)


def test_a_peer_need_not_wait_until_another_has_room_for_its_turn(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=32, **SMALL_SOCKETS)
    victim = Flood(server, dial, 2, 4, FULL)
    hostile = Flood(server, dial, 1, 1, block_of(*between(1, 0, range(1), size=1000)))
    turns = server.workers["tcp-0"].duty("inbound").connections.peers[index_of(server, 1)].turns
    turns._recent_charges, turns._recent_slots = CHARGE_MOST, 1  # so one slot of it is half of the ring
    turns.surcharge = CHARGE_MOST
    for _ in range(50):  # of the tcp worker alone: the ring stands still
        hostile.push()
        victim.push()
        run_duty(server, "tcp-0", "inbound")
    assert turns.credit > 0
    assert slot_owners(server).count(index_of(server, 1)) == 1
    assert slot_owners(server).count(index_of(server, 2)) * charge_of_a_frame(FULL) > 2 * QUANTUM


def test_many_connections_make_no_turn_of_a_peer_longer(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=64)
    flood = Flood(server, dial, 1, 8, HOSTILE["bare packets"])
    dial(server, hello(client=2))
    for _ in range(20):
        flood.push()
    inbound = server.workers["tcp-0"].duty("inbound")
    mine = inbound.connections.peers[index_of(server, 1)].established
    before = {connection: connection.receive.byte_count for connection in mine}
    run_duty(server, "tcp-0", "inbound")
    assert sum(connection.receive.byte_count > before[connection] for connection in mine) == 1
    assert server.count("tcp.share_waits") == server.count("tcp.ring_full_waits") == 0


def test_a_peers_own_connections_have_their_turns_as_well(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=16, **SMALL_SOCKETS)
    first = Flood(server, dial, 1, 3, FULL)
    second = Flood(server, dial, 2, 1, FULL)
    inbound = server.workers["tcp-0"].duty("inbound")
    mine = inbound.connections.peers[index_of(server, 1)].established

    def all_have_been_read() -> bool:
        first.push()
        second.push()
        server.received[0].clear()
        return min(connection.receive.byte_count for connection in mine) > 5 * len(FULL)

    until(all_have_been_read, server, seconds=30)
    most, least = (pick(connection.receive.byte_count for connection in mine) for pick in (max, min))
    assert most < 2 * least


# -- shares of the rings


def test_a_flood_fills_half_of_a_ring_that_stands_still_and_another_peer_finds_room(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=32)
    quiet = dial(server, hello(client=2))
    hostile = Flood(server, dial, 1, 4, block_of(*between(1, 0, range(2), size=40_000)))
    for _ in range(200):
        hostile.push()
        run_duty(server, "tcp-0", "inbound")
    assert 1 <= slot_owners(server).count(index_of(server, 1)) <= 16 + 1  # one receive may fill two
    waits = server.count("tcp.share_waits")
    run_duty(server, "tcp-0", "inbound")
    assert server.count("tcp.share_waits") == waits + 1
    quiet.send(block_of(*between(2, 0, range(1))))
    until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or index_of(server, 2) in slot_owners(server))
    assert server.count("tcp.share_waits") > 0
    assert server.count("tcp.ring_full_waits") == 0


@pytest.mark.parametrize("kind", ["runs", "bare packets"])
def test_tiny_frames_are_dealt_out_in_slots_of_little_work(make: Make, dial: Dial, kind: str) -> None:
    server = make("server", capacity=4, slots=32, fec="on")
    dial(server, hello(client=2))
    hostile = Flood(server, dial, 1, 1, HOSTILE[kind])
    for _ in range(50):
        hostile.push()
        run_duty(server, "tcp-0", "inbound")
    port = server.workers["tun-0"].duty("inbound")._ports[-1]
    assert port.ready() > 2
    for ahead in range(port.ready()):
        slot = port.slot(ahead)
        start, length, _, _ = read_header(slot)
        found = framing.scan(slot, start, start + length, framing.LENGTH_LIMIT)
        assert found[0] == start + length  # whole frames
        assert found[-1] < SLOT_CHARGE + charge.FRAME + charge.RUN


def test_one_peer_alone_has_the_whole_ring(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, slots=16)
    alone = Flood(server, dial, 1, 2, block_of(*between(1, 0, range(2), size=40_000)))
    for _ in range(200):
        alone.push()
        run_duty(server, "tcp-0", "inbound")
    assert len(slot_owners(server)) == 16
    assert server.count("tcp.share_waits") == 0


def test_a_flood_between_two_peers_leaves_room_in_the_transit_ring_for_a_third(make: Make, dial: Dial) -> None:
    server = make("server", capacity=8, slots=16)
    hostile, quiet, reader = (dial(server, hello(client=client)) for client in (1, 2, 3))

    def inbound() -> bool:  # the outbound duty of tcp-0 stands still
        run_duty(server, "tcp-0", "inbound")
        return bool(server.step("tun-0")) or True

    waiting = b"".join(block_of(each) for each in between(1, 3, range(40), size=60_000))
    sent = 0

    def transit_is_full() -> bool:
        nonlocal sent
        try:
            sent += hostile.socket.send(waiting[sent : sent + 200_000])
        except BlockingIOError:
            pass
        inbound()
        return server.count("tun.dropped_transit_full") > 0

    until(transit_is_full)
    before = server.count("tun.packets_forwarded")
    (packet,) = between(2, 3, range(1))
    quiet.send(block_of(packet))
    until(lambda: inbound() and server.count("tun.packets_forwarded") > before)
    until(lambda: packet in reader.packets(), server)


# -- what only costs


@pytest.mark.parametrize("data", [bytes(4), frame(KEEPALIVE)], ids=["empty", "keepalives"])
def test_a_flood_of_frames_without_contents_ends_its_connection_and_no_other(
    make: Make, dial: Dial, data: bytes
) -> None:
    server = make("server", capacity=4)
    other = dial(server, hello(client=1, index=1, connections=2))
    hostile = dial(server, hello(client=1, connections=2))
    hostile.send(data * (2 * BARE_FRAMES_BURST))
    ended(hostile, server)
    assert server.count("tcp.closed_bare_frames") == 1
    other.send(data * 10 + block_of(*between(1, 0, range(1))))
    until(lambda: server.packets() == between(1, 0, range(1)), server)
    assert not other.ended


def test_frames_without_contents_alone_go_no_further_than_the_tcp_worker(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4)
    peer = dial(server, hello(client=1))
    peer.send(frame(KEEPALIVE) * 3 + bytes(8))
    until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or server.count("tcp.frames_received") == 5)
    assert slot_owners(server) == []
    packet = between(1, 0, range(1))
    peer.send(frame(KEEPALIVE) + block_of(*packet))
    until(lambda: server.packets() == packet, server)


# -- work in one step, and what it is charged


def test_the_tun_writer_stops_after_some_slots_of_each_ring(make: Make, dial: Dial) -> None:
    server = make("server", slots=64)
    peer = dial(server, hello(client=1))
    for number in range(2 * SLOTS_AT_ONCE):
        peer.send(block_of(*between(1, 0, range(number, number + 1))))
        until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or len(slot_owners(server)) == number + 1)
    run_duty(server, "tun-0", "inbound")
    assert server.count("tun.packets_written") == SLOTS_AT_ONCE
    run_duty(server, "tun-0", "inbound")
    assert server.count("tun.packets_written") == 2 * SLOTS_AT_ONCE


def test_the_fec_decoder_stops_after_some_slots_of_each_ring(make: Make, dial: Dial) -> None:
    server = make("server", slots=64, fec="on")
    peer = dial(server, hello(client=1, features=ACCEPTS_SHARDS))
    for number in range(SLOTS_AT_ONCE + 2):
        peer.send(HOSTILE["runs"][: len(HOSTILE["runs"]) // 500])
        until(lambda: (run_duty(server, "tcp-0", "inbound") and False) or len(slot_owners(server)) == number + 1)
    run_duty(server, "fec-0", "inbound")
    assert server.count("fec.runs_received") == SLOTS_AT_ONCE


def late_charges(server: End, client: int) -> int:
    return server.memory.peer_table.transit_numbers[0][index_of(server, client) * RECORD_WORDS + TRANSIT_CHARGE]


def test_segments_that_are_cut_here_are_charged_to_their_sender_and_bounded(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, offloads=0xFF, offloads_accepted=0xFF)
    sender, _sink = dial(server, hello(client=1)), dial(server, hello(client=2))
    sender.send(block_of(*[super_packet(inside(1, 4), inside(2, 4), segments=100, segment=10)] * 10))
    until(lambda: server.count("tun.dropped_segments_many"), server)
    cut = server.count("tun.packets_forwarded") + server.count("tun.dropped_transit_full")
    assert SEGMENTS_MOST <= cut < SEGMENTS_MOST + 100
    assert server.count("tun.dropped_segments_many") == 10 - cut // 100
    assert late_charges(server, 1) >= charge.SEGMENT * cut
    assert late_charges(server, 2) == 0


def test_packets_in_coded_blocks_are_charged_to_their_sender_once_they_can_be_seen(make: Make, dial: Dial) -> None:
    server = make("server", capacity=4, fec="on")
    peer = dial(server, hello(client=1, features=ACCEPTS_SHARDS))
    block = block_of(*between(1, 0, range(50)))
    peer.send(frame(RUN, struct.pack(">IIBBBBII", 2, 0, 1, 0, 0, 1, len(block), 0) + block))
    until(lambda: len(server.packets()) == 50, server)
    assert late_charges(server, 1) == charge.FRAME + 50 * charge.PACKET


def counted_from(server: End, client: int) -> int:
    """What counts against the rate of a client."""
    return server.memory.peer_table.received_elsewhere(index_of(server, client), lane=-1)


def test_a_rate_holds_for_the_work_as_well_as_for_the_bytes(make: Make, dial: Dial) -> None:
    rate = 1_000_000
    server = make("server", capacity=4, slots=16, fec="on", **SMALL_SOCKETS)
    dial(server, hello(client=2))
    hostile = Flood(server, dial, 1, 2, HOSTILE["runs"])
    limit(server, 1, rate)
    step_for(0.3, server)
    frames, counted = server.count("tcp.frames_received"), counted_from(server, 1)

    def enough() -> bool:
        hostile.push()
        return counted_from(server, 1) - counted > rate // 2

    until(enough, server, seconds=20)
    work = (server.count("tcp.frames_received") - frames) * charge_of_a_frame(HOSTILE["runs"])
    assert 0.5 < work / charge.RATE_SHARE / (rate // 2) < 1.2
    assert server.count("tcp.rate_pauses") > 0
