"""From streams into slots: whatever way the bytes come, each connection's frames arrive whole and in order."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.shm import layout
from pipeline.shm.slot import MARKS, SLOT
from tests.harness.frame_reader import FITS, LIMIT, Bench, bench_of, body, framed, pieces


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**shape: int) -> Bench:
        made.append(Bench(**shape))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Bench]


def test_what_comes_at_once_leaves_in_one_slot(bench: Make) -> None:
    made = bench()
    bodies = [body(i, 20) for i in range(5)]
    made.send(0, framed(bodies))
    assert made.read(0) == 5 * 24
    assert made.take() == 1
    assert made.frames(0) == bodies
    assert made.intake.frames == 5


def test_a_slot_carries_seat_lane_and_purpose_of_its_connection(bench: Make) -> None:
    made = bench(connections=3)
    for number in (2, 1):
        made.send(number, framed([b"\x02"]))
        made.read_all(number)
    slots = [made.consumer.slot(i) for i in range(made.consumer.ready())]
    marks = [(*SLOT.unpack_from(slot)[2:], *MARKS.unpack_from(slot, layout.SLOT_TRAFFIC_CLASS_AT)) for slot in slots]
    assert marks == [(12, 4098, 0, 0), (11, 4097, 1, 0)]  # lane, seat, purpose, number


STREAM = [b"\x01first", b"", b"\x20" + body(3, 40), b"\x02", b"", b"\x01the last"]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_every_split_of_the_stream_in_two_gives_the_same_frames(bench: Make, slots: int) -> None:
    stream = framed(STREAM)
    made = bench(slots=slots)
    for cut in range(len(stream) + 1):
        made.slots.clear()
        for piece in pieces(stream, [cut]):
            made.send(0, piece)
            made.read_all(0)
            made.take()
        assert made.frames(0) == STREAM


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("start", [0, (1 << 64) - 3], ids=["zero", "near-2^64"])
def test_a_stream_that_comes_byte_by_byte_gives_the_same_frames(bench: Make, slots: int, start: int) -> None:
    made = bench(slots=slots, start=start)
    for value in framed(STREAM):
        made.send(0, bytes([value]))
        made.read_all(0)
        made.take()
    assert made.frames(0) == STREAM


def test_every_split_of_one_stream_in_three_gives_the_same_frames(bench: Make) -> None:
    bodies = [b"\x01ab", b"", b"\x20" + body(1, 9)]
    stream = framed(bodies)
    made = bench(slots=4)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            made.slots.clear()
            for piece in pieces(stream, [first, second]):
                made.send(0, piece)
                made.read_all(0)
            made.take()
            assert made.frames(0) == bodies


def test_two_connections_that_alternate_at_every_byte_keep_their_frames_apart(bench: Make) -> None:
    made = bench(connections=2, slots=2)
    other = [b"\x20" + body(9, 21), b"", b"\x01the other", b"\x02", b"\x01."]
    streams = [framed(STREAM), framed(other)]
    for i in range(max(map(len, streams))):
        for number, stream in enumerate(streams):
            if i < len(stream):
                made.send(number, stream[i : i + 1])
                made.read_all(number)
                made.take()
    assert made.frames(0) == STREAM
    assert made.frames(1) == other


def test_an_interrupted_frame_is_finished_after_the_interruption(bench: Make) -> None:
    long = b"\x20" + body(1, 250)
    stream = framed([long])
    for cut in range(1, len(stream)):
        with bench_of(connections=2) as made:
            made.send(0, stream[:cut])
            made.read_all(0)
            made.send(1, framed([b"\x02", b"\x01x"]))
            made.read_all(1)
            made.send(0, stream[cut:])
            made.read_all(0)
            made.take()
            assert (made.frames(0), made.frames(1)) == ([long], [b"\x02", b"\x01x"])


def test_the_rest_of_a_long_frame_does_not_drag_what_follows_it_along(bench: Make) -> None:
    """What arrives behind the frame in hand goes straight into the next slot."""
    made = bench()
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    stream = framed([first, second])
    made.send(0, stream[:100])
    made.read(0)
    made.send(0, stream[100:])
    made.read(0)
    assert made.take() == 2
    assert made.frames(0) == [first, second]


def test_the_rest_of_a_frame_whose_beginning_was_moved_does_not_drag_what_follows_it_along(bench: Make) -> None:
    made = bench()
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    made.send(0, framed([b"\x02"]) + framed([first])[:100])
    made.read(0)
    made.send(0, framed([first])[100:] + framed([second]))
    made.read(0)
    assert made.take() == 3
    assert made.frames(0) == [b"\x02", first, second]


def test_a_full_ring_is_not_read_into_and_goes_on_when_a_slot_is_free(bench: Make) -> None:
    made = bench(slots=2)
    bodies = [body(i, 100) for i in range(6)]
    for each in bodies:
        made.send(0, framed([each]))
        made.read_all(0)
        if made.port.ready() == 0:
            assert made.take(1) == 1
    while True:
        made.read_all(0)
        if not made.take():
            break
    assert made.frames(0) == bodies


@pytest.mark.parametrize("slots", [1, 2])
def test_a_tail_that_finds_no_free_slot_waits_and_is_not_lost(bench: Make, slots: int) -> None:
    made = bench(slots=slots)
    bodies = [body(i, 100) for i in range(slots + 1)]
    stream = framed(bodies)
    for i in range(slots):  # each piece ends in the middle of a frame
        made.send(0, stream[i * 104 + (i > 0) * 50 : (i + 1) * 104 + 50])
        made.read_all(0)
    assert made.port.ready() == 0
    made.send(0, stream[slots * 104 + 50 :])
    while made.take(1):
        made.read_all(0)
    assert made.frames(0) == bodies


def test_a_tail_that_waits_survives_another_connection_and_a_refilled_ring(bench: Make) -> None:
    made = bench(connections=2, slots=1)
    made.send(0, framed([b"\x01a"]) + framed([b"\x20" + body(5, 99)])[:60])
    made.read(0)
    made.take()
    made.send(1, framed([b"\x02"]))
    made.read(1)
    made.take()
    made.send(0, framed([b"\x20" + body(5, 99)])[60:])
    made.read(0)
    made.take()
    assert made.frames(0) == [b"\x01a", b"\x20" + body(5, 99)]
    assert made.frames(1) == [b"\x02"]


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("offset", [0, 1, 3, 4, 5, 1000])
def test_frames_at_the_limit_of_what_a_slot_can_take_pass(bench: Make, slots: int, offset: int) -> None:
    """Whatever place in the slot the frame's first byte comes to."""
    made = bench(slots=slots, limit=FITS)
    bodies = [body(9, offset)] * (offset > 0) + [body(i, FITS) for i in range(4)]
    stream = framed(bodies)
    for at in range(0, len(stream), 1500):
        made.send(0, stream[at : at + 1500])
        made.read_all(0)
        made.take()
        made.read_all(0)
        made.take()
    assert made.frames(0) == bodies


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("already", [0, 1, 2, 3])
def test_a_length_beyond_the_limit_is_the_peers_fault_however_it_comes(bench: Make, length: int, already: int) -> None:
    made = bench()
    data = struct.pack(">I", length)
    if already:
        made.send(0, data[:already])
        made.read(0)
    made.send(0, data[already:])
    with pytest.raises(PeerError, match=f"frame of {length} bytes, at most {LIMIT} allowed"):
        made.read(0)


def test_a_length_beyond_the_limit_in_the_next_slot_is_found_and_the_frame_before_it_passes(bench: Make) -> None:
    made = bench()
    first = b"\x20" + body(1, 250)
    made.send(0, framed([first])[:100])
    made.read(0)
    made.send(0, framed([first])[100:] + struct.pack(">I", LIMIT + 1))
    with pytest.raises(PeerError):
        made.read(0)
    made.take()
    assert made.frames(0) == [first]


def test_a_connection_that_sent_nonsense_costs_the_others_nothing(bench: Make) -> None:
    made = bench(connections=3)
    made.send(1, framed([b"\x20" + body(1, 250)])[:120])
    made.read(1)
    made.send(0, b"\xff\xff\xff\xff")
    with pytest.raises(PeerError):
        made.read(0)
    made.intake.forget(made.sources[0].connection)
    made.send(2, framed([b"\x02"]))
    made.read(2)
    made.send(1, framed([b"\x20" + body(1, 250)])[120:])
    made.read(1)
    made.take()
    assert (made.frames(0), made.frames(1), made.frames(2)) == ([], [b"\x20" + body(1, 250)], [b"\x02"])


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 50])
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_a_lost_connection_left_unfinished_is_forgotten(bench: Make, cut: int, interrupted: bool) -> None:
    made = bench(connections=2)
    made.send(0, framed([body(1, 60)])[:cut])
    made.read(0)
    if interrupted:
        made.send(1, framed([b"\x01in between"]))
        made.read(1)
    made.intake.forget(made.sources[0].connection)
    made.send(1, framed([b"\x01whole"]))
    made.read(1)
    made.take()
    assert made.frames(0) == []
    assert made.frames(1)[-1] == b"\x01whole"


def test_the_end_of_a_stream_is_zero_bytes(bench: Make) -> None:
    made = bench()
    made.send(0, framed([b"\x02"]) + b"\x00\x00")
    made.sources[0].peer.shutdown(socket.SHUT_WR)
    assert made.read(0) == 7
    assert made.read(0) == 0
    made.take()
    assert made.frames(0) == [b"\x02"]


def test_a_silent_connection_would_block_and_changes_nothing(bench: Make) -> None:
    made = bench(connections=2)
    made.send(0, framed([b"\x01ab"])[:5])
    made.read(0)
    with pytest.raises(BlockingIOError):
        made.read(1)
    with pytest.raises(BlockingIOError):
        made.read(0)
    made.send(0, framed([b"\x01ab"])[5:])
    made.read(0)
    made.take()
    assert made.frames(0) == [b"\x01ab"]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[int, list[list[bytes]], list[tuple[int, int, int]]]:
    """Ring size; bodies by connection; turns of (connection, bytes to send, slots to take)."""
    slots = draw(st.sampled_from([1, 2, 4]))
    lengths = st.one_of(st.integers(0, 6), st.sampled_from([LIMIT - 1, LIMIT]), st.integers(0, LIMIT))
    streams = draw(st.lists(st.lists(lengths, max_size=8), min_size=1, max_size=3))
    bodies = [[body(17 * c + i, length) for i, length in enumerate(stream)] for c, stream in enumerate(streams)]
    turn = st.tuples(
        st.integers(0, len(streams) - 1), st.one_of(st.integers(0, 8), st.integers(0, 700)), st.integers(0, 3)
    )
    return slots, bodies, draw(st.lists(turn, max_size=40))


Traffic = tuple[int, list[list[bytes]], list[tuple[int, int, int]]]


@given(traffic())
def test_any_chunking_of_any_frames_of_several_connections_gives_exactly_those_frames_in_order(
    given_traffic: Traffic,
) -> None:
    carry(given_traffic, tls=False)


@given(traffic())
def test_the_same_over_tls(given_traffic: Traffic) -> None:
    carry(given_traffic, tls=True)


def carry(given_traffic: Traffic, tls: bool) -> None:
    slots, bodies, turns = given_traffic
    streams = [framed(each) for each in bodies]
    sent = [0] * len(streams)
    with bench_of(connections=len(streams), slots=slots, tls=tls) as made:
        for number, size, taken in turns:
            made.send(number, streams[number][sent[number] : sent[number] + size])
            sent[number] = min(len(streams[number]), sent[number] + size)
            made.read_all(number)
            made.take(taken)
        moved = True
        while moved:
            moved = False
            for number, stream in enumerate(streams):
                made.send(number, stream[sent[number] :])
                sent[number] = len(stream)
                made.read_all(number)
                moved |= made.take() > 0
        assert [made.frames(number) for number in range(len(streams))] == bodies
        assert made.intake.frames == sum(map(len, bodies))


# -- over TLS


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_over_tls_a_stream_in_records_of_a_byte_gives_the_same_frames(bench: Make, slots: int) -> None:
    made = bench(slots=slots, tls=True)
    for value in framed(STREAM):
        made.send(0, bytes([value]))
        made.read_all(0)
        made.take()
    assert made.frames(0) == STREAM


def test_over_tls_no_byte_of_the_next_frame_comes_into_the_slot_of_one_that_was_interrupted(bench: Make) -> None:
    made = bench(tls=True)
    first, second = b"\x20" + body(1, 250), b"\x20" + body(2, 200)
    stream = framed([first, second])
    made.send(0, stream[:100])
    made.read(0)
    made.send(0, stream[100:])
    made.read_all(0)
    made.take(1)
    assert made.slots == [(0, framed([first]))]
    made.take()
    assert made.frames(0) == [first, second]


@pytest.mark.parametrize("offset", [0, 1, 3, 4, 5, 1000])
def test_over_tls_frames_at_the_limit_of_what_a_slot_can_take_pass(bench: Make, offset: int) -> None:
    made = bench(slots=2, limit=FITS, tls=True)
    bodies = [body(9, offset)] * (offset > 0) + [body(i, FITS) for i in range(4)]
    made.send(0, framed(bodies))
    while True:
        made.read_all(0)
        if not made.take():
            break
    assert made.frames(0) == bodies


def test_over_tls_a_length_beyond_the_limit_is_the_peers_fault_and_costs_the_others_nothing(bench: Make) -> None:
    made = bench(connections=2, tls=True)
    made.send(1, framed([b"\x20" + body(1, 250)])[:120])
    made.read(1)
    made.send(0, struct.pack(">I", LIMIT + 1))
    with pytest.raises(PeerError, match=f"frame of {LIMIT + 1} bytes, at most {LIMIT} allowed"):
        made.read(0)
    made.intake.forget(made.sources[0].connection)
    made.send(1, framed([b"\x20" + body(1, 250)])[120:])
    made.read_all(1)
    made.take()
    assert (made.frames(0), made.frames(1)) == ([], [b"\x20" + body(1, 250)])


# -- behind the greeting


def arrived_with_the_greeting(made: Bench, number: int, data: bytes) -> None:
    connection = made.sources[number].connection
    connection.stash = data
    made.intake.prefill(connection)


@pytest.mark.parametrize("cut", range(len(framed(STREAM)) + 1))
def test_bytes_that_came_behind_the_greeting_begin_the_stream(bench: Make, cut: int) -> None:
    made = bench()
    stream = framed(STREAM)
    arrived_with_the_greeting(made, 0, stream[:cut])
    made.send(0, stream[cut:])
    made.read_all(0)
    made.take()
    assert made.frames(0) == STREAM


def test_frames_that_came_behind_the_greeting_do_not_wait_for_the_next_byte(bench: Make) -> None:
    made = bench()
    arrived_with_the_greeting(made, 0, framed([b"\x02", b"\x01x"]))
    made.take()
    assert made.frames(0) == [b"\x02", b"\x01x"]


def test_a_greeting_leaves_the_frame_in_another_connections_hand_alone(bench: Make) -> None:
    made = bench(connections=2)
    made.send(0, framed([body(1, 99)])[:50])
    made.read(0)
    arrived_with_the_greeting(made, 1, framed([b"\x02"]))
    made.send(0, framed([body(1, 99)])[50:])
    made.read(0)
    made.take()
    assert (made.frames(0), made.frames(1)) == ([body(1, 99)], [b"\x02"])
