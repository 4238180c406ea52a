"""From streams into slots: however the bytes are cut, each connection's frames arrive whole and in order."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.shm.slot import read_header, read_marks
from pipeline.transport.address_learner import AddressLearner
from pipeline.wire import charge, framing
from tests.harness.factory import factory
from tests.harness.frame_reader import (
    FITS,
    LIMIT,
    FrameReaderHarness,
    body,
    framed,
    harness_of,
    pieces,
    split,
    with_contents,
)
from tests.reference.packets import echo_request

Make = Callable[..., FrameReaderHarness]


@pytest.fixture
def harness() -> Iterator[Make]:
    with factory(FrameReaderHarness) as make:
        yield make


def test_frames_that_arrive_together_leave_in_one_slot(harness: Make) -> None:
    made = harness()
    bodies = [body(i, 20) for i in range(5)]
    made.send(0, framed(bodies))
    assert made.read(0) == 5 * 24
    assert made.consume() == 1
    assert made.frames(0) == bodies
    assert made.reader.frames == 5


def test_a_slot_carries_peer_handle_lane_and_traffic_class_of_its_connection(harness: Make) -> None:
    made = harness(connections=3)
    for number in (2, 1):
        made.send(number, framed([b"\x03"]))
        made.read_all(number)
    slots = [made.consumer.slot(i) for i in range(made.consumer.ready())]
    marks = [(*read_header(slot)[2:], *read_marks(slot)) for slot in slots]
    assert marks == [(12, 4098, 0, 0), (11, 4097, 1, 0)]  # lane, peer handle, traffic class, number


STREAM = [b"\x01first", b"", b"\x20" + body(3, 40), b"\x02", b"", b"\x01the last"]
CONTENTS = with_contents(STREAM)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_every_split_of_the_stream_in_two_gives_the_same_frames(harness: Make, slots: int) -> None:
    stream = framed(STREAM)
    made = harness(slots=slots)
    for cut in range(len(stream) + 1):
        made.slots.clear()
        for piece in pieces(stream, [cut]):
            made.carry(0, piece)
        assert made.frames(0) == CONTENTS


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("start", [0, (1 << 64) - 3], ids=["zero", "near-2^64"])
def test_a_stream_that_arrives_byte_by_byte_gives_the_same_frames(harness: Make, slots: int, start: int) -> None:
    made = harness(slots=slots, start=start)
    for value in framed(STREAM):
        made.carry(0, bytes([value]))
    assert made.frames(0) == CONTENTS


def test_every_split_of_one_stream_in_three_gives_the_same_frames(harness: Make) -> None:
    bodies = [b"\x01ab", b"", b"\x20" + body(1, 9)]
    stream = framed(bodies)
    made = harness(slots=4)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            made.slots.clear()
            for piece in pieces(stream, [first, second]):
                made.send(0, piece)
                made.read_all(0)
            made.consume()
            assert made.frames(0) == with_contents(bodies)


def test_two_connections_that_alternate_at_every_byte_keep_their_frames_apart(harness: Make) -> None:
    made = harness(connections=2, slots=2)
    other = [b"\x20" + body(9, 21), b"", b"\x01the other", b"\x03", b"\x01."]
    streams = [framed(STREAM), framed(other)]
    for i in range(max(map(len, streams))):
        for number, stream in enumerate(streams):
            if i < len(stream):
                made.carry(number, stream[i : i + 1])
    assert made.frames(0) == CONTENTS
    assert made.frames(1) == with_contents(other)


def test_an_interrupted_frame_is_finished_after_the_interruption(harness: Make) -> None:
    long = b"\x20" + body(1, 250)
    stream = framed([long])
    for cut in range(1, len(stream)):
        with harness_of(connections=2) as made:
            made.send(0, stream[:cut])
            made.read_all(0)
            made.send(1, framed([b"\x03", b"\x01x"]))
            made.read_all(1)
            made.carry(0, stream[cut:])
            assert (made.frames(0), made.frames(1)) == ([long], [b"\x03", b"\x01x"])


def test_the_rest_of_a_long_frame_goes_into_its_slot_without_the_frame_behind_it(harness: Make) -> None:
    """Bytes behind the unfinished frame go straight into the next slot."""
    made = harness()
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    stream = framed([first, second])
    made.send(0, stream[:100])
    made.read(0)
    made.send(0, stream[100:])
    made.read(0)
    assert made.consume() == 2
    assert made.frames(0) == [first, second]


def test_the_rest_of_a_frame_that_was_moved_goes_into_its_slot_without_the_frame_behind_it(harness: Make) -> None:
    made = harness()
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    made.send(0, framed([b"\x03"]) + framed([first])[:100])
    made.read(0)
    made.send(0, framed([first])[100:] + framed([second]))
    made.read(0)
    assert made.consume() == 3
    assert made.frames(0) == [b"\x03", first, second]


def test_a_full_ring_is_not_read_into_and_goes_on_when_a_slot_is_free(harness: Make) -> None:
    made = harness(slots=2)
    bodies = [body(i, 100) for i in range(6)]
    for each in bodies:
        made.send(0, framed([each]))
        made.read_all(0)
        if made.port.ready() == 0:
            assert made.consume(1) == 1
    while True:
        made.read_all(0)
        if not made.consume():
            break
    assert made.frames(0) == bodies


@pytest.mark.parametrize("slots", [1, 2])
def test_a_partial_frame_that_finds_no_free_slot_waits_and_is_not_lost(harness: Make, slots: int) -> None:
    made = harness(slots=slots)
    bodies = [body(i, 100) for i in range(slots + 1)]
    stream = framed(bodies)
    for i in range(slots):  # each piece ends in the middle of a frame
        made.send(0, stream[i * 104 + (i > 0) * 50 : (i + 1) * 104 + 50])
        made.read_all(0)
    assert made.port.ready() == 0
    made.send(0, stream[slots * 104 + 50 :])
    while made.consume(1):
        made.read_all(0)
    assert made.frames(0) == bodies


def test_a_partial_frame_that_waits_survives_another_connection_and_a_refilled_ring(harness: Make) -> None:
    made = harness(connections=2, slots=1)
    made.send(0, framed([b"\x01a"]) + framed([b"\x20" + body(5, 99)])[:60])
    made.read(0)
    made.consume()
    made.send(1, framed([b"\x03"]))
    made.read(1)
    made.consume()
    made.send(0, framed([b"\x20" + body(5, 99)])[60:])
    made.read(0)
    made.consume()
    assert made.frames(0) == [b"\x01a", b"\x20" + body(5, 99)]
    assert made.frames(1) == [b"\x03"]


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("offset", [0, 1, 3, 4, 5, 1000])
def test_frames_at_the_limit_of_what_a_slot_can_take_pass(harness: Make, slots: int, offset: int) -> None:
    """`offset`: of the frame's first byte in the slot."""
    made = harness(slots=slots, limit=FITS)
    bodies = [body(9, offset)] * (offset > 0) + [body(i, FITS) for i in range(4)]
    stream = framed(bodies)
    for at in range(0, len(stream), 1500):
        made.carry(0, stream[at : at + 1500])
        made.read_all(0)
        made.consume()
    assert made.frames(0) == bodies


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("already", [0, 1, 2, 3])
def test_a_length_beyond_the_limit_is_the_peers_fault_however_it_is_cut(
    harness: Make, length: int, already: int
) -> None:
    made = harness()
    data = struct.pack(">I", length)
    if already:
        made.send(0, data[:already])
        made.read(0)
    made.send(0, data[already:])
    with pytest.raises(PeerError, match=f"frame of {length} bytes, at most {LIMIT} allowed"):
        made.read(0)


def test_a_length_beyond_the_limit_in_the_next_slot_is_found_and_the_frame_before_it_passes(harness: Make) -> None:
    made = harness()
    first = b"\x20" + body(1, 250)
    made.send(0, framed([first])[:100])
    made.read(0)
    made.send(0, framed([first])[100:] + struct.pack(">I", LIMIT + 1))
    with pytest.raises(PeerError):
        made.read(0)
    made.consume()
    assert made.frames(0) == [first]


def test_a_connection_that_sent_nonsense_costs_the_others_nothing(harness: Make) -> None:
    made = harness(connections=3)
    made.send(1, framed([b"\x20" + body(1, 250)])[:120])
    made.read(1)
    made.send(0, b"\xff\xff\xff\xff")
    with pytest.raises(PeerError):
        made.read(0)
    made.reader.forget(made.sources[0].connection)
    made.send(2, framed([b"\x03"]))
    made.read(2)
    made.send(1, framed([b"\x20" + body(1, 250)])[120:])
    made.read(1)
    made.consume()
    assert (made.frames(0), made.frames(1), made.frames(2)) == ([], [b"\x20" + body(1, 250)], [b"\x03"])


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 50])
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_partial_frame_of_a_lost_connection_is_forgotten(harness: Make, cut: int, interrupted: bool) -> None:
    made = harness(connections=2)
    made.send(0, framed([body(1, 60)])[:cut])
    made.read(0)
    if interrupted:
        made.send(1, framed([b"\x01in between"]))
        made.read(1)
    made.reader.forget(made.sources[0].connection)
    made.send(1, framed([b"\x01whole"]))
    made.read(1)
    made.consume()
    assert made.frames(0) == []
    assert made.frames(1)[-1] == b"\x01whole"


def test_the_end_of_a_stream_is_zero_bytes(harness: Make) -> None:
    made = harness()
    made.send(0, framed([b"\x03"]) + b"\x00\x00")
    made.sources[0].peer.shutdown(socket.SHUT_WR)
    assert made.read(0) == 7
    assert made.read(0) == 0
    made.consume()
    assert made.frames(0) == [b"\x03"]


def test_a_silent_connection_would_block_and_changes_nothing(harness: Make) -> None:
    made = harness(connections=2)
    made.send(0, framed([b"\x01ab"])[:5])
    made.read(0)
    with pytest.raises(BlockingIOError):
        made.read(1)
    with pytest.raises(BlockingIOError):
        made.read(0)
    made.send(0, framed([b"\x01ab"])[5:])
    made.read(0)
    made.consume()
    assert made.frames(0) == [b"\x01ab"]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[int, list[list[bytes]], list[tuple[int, int, int]]]:
    """Ring size; bodies by connection; turns of (connection, bytes to send, slots to consume)."""
    slots = draw(st.sampled_from([1, 2, 4]))
    lengths = st.one_of(st.integers(0, 6), st.sampled_from([LIMIT - 1, LIMIT]), st.integers(0, LIMIT))
    streams = draw(st.lists(st.lists(lengths, max_size=8), min_size=1, max_size=3))
    bodies = [[body(17 * c + i, length) for i, length in enumerate(stream)] for c, stream in enumerate(streams)]
    turn = st.tuples(
        st.integers(0, len(streams) - 1), st.one_of(st.integers(0, 8), st.integers(0, 700)), st.integers(0, 3)
    )
    return slots, bodies, draw(st.lists(turn, max_size=40))


Traffic = tuple[int, list[list[bytes]], list[tuple[int, int, int]]]


@given(traffic(), st.booleans())
def test_any_chunking_of_any_frames_of_several_connections_gives_exactly_those_frames_in_order(
    given_traffic: Traffic, shared: bool
) -> None:
    carry(given_traffic, tls=False, shared=shared)


@given(traffic(), st.booleans())
def test_any_chunking_over_tls_gives_exactly_the_frames_in_order(given_traffic: Traffic, shared: bool) -> None:
    carry(given_traffic, tls=True, shared=shared)


def carry(given_traffic: Traffic, tls: bool, shared: bool) -> None:
    slots, bodies, turns = given_traffic
    streams = [framed(each) for each in bodies]
    sent = [0] * len(streams)
    with harness_of(connections=len(streams), slots=slots, tls=tls, shared=shared) as made:
        for number, size, taken in turns:
            made.send(number, streams[number][sent[number] : sent[number] + size])
            sent[number] = min(len(streams[number]), sent[number] + size)
            made.read_all(number)
            made.consume(taken)
        moved = True
        while moved:
            moved = False
            for number, stream in enumerate(streams):
                made.send(number, stream[sent[number] :])
                sent[number] = len(stream)
                made.read_all(number)
                moved |= made.consume() > 0
        assert [made.frames(number) for number in range(len(streams))] == list(map(with_contents, bodies))
        frames, bare, _, _ = made.reader.take_counts()
        assert (frames, frames - bare) == (sum(map(len, bodies)), sum(len(with_contents(each)) for each in bodies))


# -- over TLS


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_over_tls_a_stream_in_records_of_a_byte_gives_the_same_frames(harness: Make, slots: int) -> None:
    made = harness(slots=slots, tls=True)
    for value in framed(STREAM):
        made.carry(0, bytes([value]))
    assert made.frames(0) == CONTENTS


def test_over_tls_no_byte_of_the_next_frame_comes_into_the_slot_of_one_that_was_interrupted(harness: Make) -> None:
    made = harness(tls=True)
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    stream = framed([first, second])
    made.send(0, stream[:100])
    made.read(0)
    made.send(0, stream[100:])
    made.read_all(0)
    made.consume(1)
    assert made.slots == [(0, framed([first]))]
    made.consume()
    assert made.frames(0) == [first, second]


@pytest.mark.parametrize("offset", [0, 1, 3, 4, 5, 1000])
def test_over_tls_frames_at_the_limit_of_what_a_slot_can_take_pass(harness: Make, offset: int) -> None:
    made = harness(slots=2, limit=FITS, tls=True)
    bodies = [body(9, offset)] * (offset > 0) + [body(i, FITS) for i in range(4)]
    made.send(0, framed(bodies))
    while True:
        made.read_all(0)
        if not made.consume():
            break
    assert made.frames(0) == bodies


def test_over_tls_a_length_beyond_the_limit_is_the_peers_fault_and_costs_the_others_nothing(harness: Make) -> None:
    made = harness(connections=2, tls=True)
    made.send(1, framed([b"\x20" + body(1, 250)])[:120])
    made.read(1)
    made.send(0, struct.pack(">I", LIMIT + 1))
    with pytest.raises(PeerError, match=f"frame of {LIMIT + 1} bytes, at most {LIMIT} allowed"):
        made.read(0)
    made.reader.forget(made.sources[0].connection)
    made.carry(1, framed([b"\x20" + body(1, 250)])[120:])
    assert (made.frames(0), made.frames(1)) == ([], [b"\x20" + body(1, 250)])


# -- behind the handshake


def arrive_behind_the_handshake(made: FrameReaderHarness, number: int, data: bytes) -> None:
    connection = made.sources[number].connection
    connection.receive.partial_frame = data
    made.reader.publish_left(connection, made.port.ready())


@pytest.mark.parametrize("cut", range(len(framed(STREAM)) + 1))
def test_bytes_that_arrive_behind_the_handshake_begin_the_stream(harness: Make, cut: int) -> None:
    made = harness()
    stream = framed(STREAM)
    arrive_behind_the_handshake(made, 0, stream[:cut])
    made.carry(0, stream[cut:])
    assert made.frames(0) == CONTENTS


def test_frames_that_arrive_behind_the_handshake_do_not_wait_for_the_next_byte(harness: Make) -> None:
    made = harness()
    arrive_behind_the_handshake(made, 0, framed([b"\x03", b"\x01x"]))
    made.consume()
    assert made.frames(0) == [b"\x03", b"\x01x"]


def test_a_handshake_does_not_touch_the_partial_frame_of_another_connection(harness: Make) -> None:
    made = harness(connections=2)
    made.send(0, framed([body(1, 99)])[:50])
    made.read(0)
    arrive_behind_the_handshake(made, 1, framed([b"\x03"]))
    made.send(0, framed([body(1, 99)])[50:])
    made.read(0)
    made.consume()
    assert (made.frames(0), made.frames(1)) == ([body(1, 99)], [b"\x03"])


# -- on a hub of the original program


CLAIM, OTHER_CLAIM = (
    framing.frame(framing.DATA, echo_request(a, b, 1)) for a, b in (("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1"))
)
BEFORE = framed([b"\x02", b"\x01" + body(1, 40), b"", b"\x01" + echo_request("192.0.2.1", "10.0.0.1", 1)])
BEHIND = framed([b"\x02", b"\x01" + echo_request("10.0.0.3", "10.0.0.1", 1)])


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_claim_and_all_behind_it_wait_for_the_supervisor_however_the_stream_is_cut(
    harness: Make, slots: int, tls: bool
) -> None:
    made = harness(slots=slots, tls=tls)
    connection = made.sources[0].connection
    stream = BEFORE + CLAIM + OTHER_CLAIM + BEHIND
    for cut in range(len(stream) + 1):
        made.slots.clear()
        learner = connection.receive.learner = AddressLearner(["10.0.0.1/24", "fd00::1/64"])
        for piece in pieces(stream, [cut]):
            made.send(0, piece)
            read_up_to_a_claim(made)
        assert made.frames(0) == with_contents(split(BEFORE))
        for expected in (BEFORE + CLAIM, stream):
            learner.settle()
            if learner.is_done:
                connection.receive.learner = None
            made.reader.publish_left(connection, made.port.ready())
            made.consume()
            read_up_to_a_claim(made)
            assert made.frames(0) == with_contents(split(expected))


def read_up_to_a_claim(made: FrameReaderHarness) -> None:
    """As the Receiver does: while a claim waits for the supervisor, nothing is read."""
    while not made.sources[0].connection.is_held:
        try:
            made.read(0)
        except BlockingIOError:
            break
        made.consume()
    made.consume()


def test_other_connections_go_on_while_one_waits_for_the_supervisor(harness: Make) -> None:
    made = harness(connections=2)
    held = made.sources[0].connection
    held.receive.learner = AddressLearner(["10.0.0.1/24"])
    made.send(0, CLAIM + BEHIND[:7])
    read_up_to_a_claim(made)
    made.carry(1, framed(STREAM))
    assert made.frames(1) == CONTENTS and made.frames(0) == []
    held.receive.learner = None
    made.reader.publish_left(held, made.port.ready())
    made.carry(0, BEHIND[7:])
    assert made.frames(0) == with_contents(split(CLAIM + BEHIND))


# -- where peers share the ring


def test_unfinished_frames_that_change_places_are_charged(harness: Make) -> None:
    made = harness(connections=2, shared=True)
    for number in (0, 1):
        made.send(number, framed([b"\x20" + body(number, 250)])[:200])
        made.read(number)
    made.reader.take_counts()
    for turn in range(8):
        made.send(turn % 2, b"x")
        made.read(turn % 2)
    charged = made.reader.take_counts()[2]
    assert charged >= 8 * 2 * 200 // charge.MOVED_BYTES


def test_where_nobody_shares_the_ring_nothing_is_charged_for_that(harness: Make) -> None:
    made = harness(connections=2)
    for turn in range(8):
        made.send(turn % 2, framed([b"\x20" + body(1, 250)])[turn // 2 : turn // 2 + 1])
        made.read(turn % 2)
    assert made.reader.take_counts()[2] == 0


def test_slots_and_frames_are_counted_and_charged_whether_or_not_they_go_further(harness: Make) -> None:
    made = harness(shared=True)
    made.carry(0, framed([b"\x02"] * 5))
    assert made.reader.take_counts() == (5, 5, 5 * charge.FRAME, 0)
    for number in range(3):
        made.carry(0, framed([b"\x20" + body(number, 250)]))
    frames, bare, _, slots = made.reader.take_counts()
    assert (frames, bare, slots) == (3, 0, 3)


# -- members that only runs of shards concern


@pytest.mark.parametrize("shared", [False, True])
def test_members_that_only_runs_concern_are_woken_by_slots_with_a_run(harness: Make, shared: bool) -> None:
    made = harness(slots=64, shared=shared)
    kicks: list[int] = []
    made.port._rarely.append(SimpleNamespace(kick=lambda: kicks.append(made.port.cursor)))
    block, run = (bytes([kind]) + body(1, 250) for kind in (framing.BLOCK, framing.RUN))
    for stream in ([block], [block, block], [run], [block, run]):
        whole = framed(stream)
        made.carry(0, whole)
        made.carry(0, whole[:100])
        made.carry(0, whole[100:])
    assert len(made.slots) == made.port.cursor
    with_a_run = [data for _, data in made.slots if any(frame[0] == framing.RUN for frame in split(data))]
    assert len(kicks) == len(with_a_run) > 3
