"""The short way of blocks from a ring onto a connection: what takes it, and what a socket may do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.counters import ID
from pipeline.fec import shard
from pipeline.runtime.worker import MORE, NOTHING
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, HeaderSecret
from pipeline.sealing.padding import PaddingSource
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.shm.layout import FIRST_PEER_HANDLE, SENT_BYTES
from pipeline.transport.connection import Connection
from pipeline.transport.tls_channel import TlsChannel
from pipeline.wire import framing
from tests.harness.factory import factory
from tests.harness.send_queues import Channel, MeteredSocket, frame, numbers
from tests.harness.sender import SenderRun, wait_for
from workers.tcp import direct_sender

SECRET = HeaderSecret(bytes(range(32)))

Make = Callable[..., SenderRun]


@pytest.fixture
def make() -> Iterator[Make]:
    with factory(SenderRun) as make_run:
        yield make_run


def connect(
    run: SenderRun, is_sealed: bool = False, padding: PaddingSource | None = None, **settings_of_it: Any
) -> Connection:
    """A connection whose socket takes what its `allowance` says."""
    made = run.connect(**settings_of_it)
    plain = made.socket
    made.socket = MeteredSocket(plain.family, plain.type, plain.proto, plain.detach())
    made.socket.setblocking(False)
    run.run.sockets.append(made.socket)
    if is_sealed:
        made.send.writer = RecordWriter(HeaderSealer(AES_256_GCM, SECRET), padding)
    return made


def sealed_frame(number: int, size: int, light: bool) -> bytes:
    header = shard.SEALED_RUN.pack(
        shard.RUN_BYTES - 4 + size, framing.RUN, 1 << 8 | light, number, 1, 0, 0, 1, size, 3, 2
    )
    return header + bytes((number + at) & 0xFF for at in range(size))


def sealed_numbers(data: bytes) -> list[tuple[bool, int]]:
    """The frames that have come out, each whole and as it was made."""
    view = memoryview(bytearray(data))
    scanner = RecordScanner(HeaderOpener(AES_256_GCM, SECRET))
    whole, *_ = scanner.scan(view, 0, len(view), framing.LENGTH_LIMIT)
    assert whole == len(view)
    found, at = [], 0
    while at < whole:
        length, kind = framing.FRAME.unpack_from(view, at)
        if kind == framing.RUN:
            _, _, stream, number, *_, size, _, _ = shard.SEALED_RUN.unpack_from(view, at)
            assert bytes(view[at : at + 4 + length]) == sealed_frame(number, size, bool(stream & 1))
            found.append((bool(stream & 1), number))
        at += 4 + length
    return found


PADDING = {20: 300 - 62, 100: 300 - 142, 2000: 0}
"""Of the frames of a body."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["plain", "light"]), st.sampled_from(list(PADDING))),
        st.tuples(st.just("burst"), st.integers(0, 5000)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("form", ["plain", "sealed", "padded"])
def test_whatever_the_socket_takes_each_block_comes_out_once_and_each_class_in_order(form: str) -> None:
    is_sealed, padding = form != "plain", PaddingSource() if form == "padded" else None

    @settings(max_examples=80, deadline=None)
    @given(STEPS)
    def check(steps: list[tuple[str, int]]) -> None:
        with closing(SenderRun(1, 1)) as run:
            connection = connect(run, is_sealed, padding)
            sock = cast("MeteredSocket", connection.socket)
            run.burst()
            made: dict[bool, list[int]] = {False: [], True: []}
            data, number, sizes = b"", 0, []
            for step, amount in steps:
                if step == "burst":
                    sock.allowance = amount
                    run.burst()
                elif run.fillers[step].ready():
                    number += 1
                    sizes.append(amount)
                    light = step == "light"
                    run.fill(step, sealed_frame(number, amount, light) if is_sealed else frame(number, amount, light))
                    made[light].append(number)
                data += run.received(connection)
            sock.allowance = 1 << 40
            while run.in_rings() or not run.queue(connection).idle:
                run.burst()
                data += run.received(connection)
            found = sealed_numbers(data) if is_sealed else numbers(data)
            for light, expected in made.items():
                assert [each for is_light, each in found if is_light == light] == expected
            assert run.counters[ID["tcp.frames_sent"]] == number
            padded = run.counters[ID["tcp.bytes_padding_sent"]]
            assert padded == (sum(PADDING[size] for size in sizes) if form == "padded" else 0)
            assert run.counters[ID["tcp.bytes_sent"]] == connection.send.byte_count == len(data)
            assert run.sent_record(0, SENT_BYTES) == len(data) - padded

    check()


def test_blocks_for_one_idle_connection_leave_in_one_call_and_make_no_items(make: Make) -> None:
    run = make()
    connection = connect(run)
    run.burst()
    for number in range(3):
        run.fill("plain", frame(number))
    run.sender._scanner.scan = lambda now: pytest.fail("the long way")  # type: ignore[method-assign]
    assert run.burst() == MORE
    assert run.in_rings() == 0
    assert numbers(run.received(connection)) == [(False, number) for number in range(3)]
    assert run.burst() == NOTHING


def test_a_burst_takes_no_more_than_fits_one_call_and_says_that_there_is_more(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_sender, "BURST_BYTES", 150)
    run = make()
    connection = connect(run)
    run.burst()
    for number in range(3):
        run.fill("plain", frame(number, 100))
    assert (run.burst(), run.in_rings()) == (MORE, 1)
    assert (run.burst(), run.in_rings()) == (MORE, 0)
    assert numbers(run.received(connection)) == [(False, number) for number in range(3)]


def test_the_first_copy_of_a_lone_light_block_leaves_at_once_and_its_slot_waits_for_no_other(make: Make) -> None:
    run = make()
    connections = [connect(run, is_sealed=True) for _ in range(3)]
    run.burst()
    run.fill_copies(sealed_frame(1, 100, True), [(0, 2), (0, 0), (1, 0), (0, 1)])
    scan = run.sender._scanner.scan
    run.sender._scanner.scan = lambda now: pytest.fail("the long way")  # type: ignore[method-assign]
    run.burst()
    assert run.in_rings() == 0
    assert [len(run.received(each)) > 0 for each in connections] == [False, False, True]
    run.sender._scanner.scan = scan  # type: ignore[method-assign]
    for place in (0, 1):
        copied = connections[place]
        wait_for(lambda: sealed_numbers(run.received(copied)) == [(True, 1)], run)
    assert not run.sender._delayed.next_due
    assert run.counters[ID["tcp.frames_sent"]] == 3


@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "sealed"])
def test_whatever_the_socket_takes_the_first_copies_come_out_once_and_in_order(is_sealed: bool) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(st.just(-1), st.integers(0, 500)), max_size=30))
    def check(steps: list[int]) -> None:
        with closing(SenderRun(1, 1)) as run:
            first, second = connect(run, is_sealed), connect(run, is_sealed)
            sock = cast("MeteredSocket", first.socket)
            cast("MeteredSocket", second.socket).allowance = 1 << 40
            run.burst()
            data, number, there = b"", 0, b""
            for allowance in steps:
                if allowance >= 0:
                    sock.allowance = allowance
                elif run.fillers["light"].ready():
                    number += 1
                    made = sealed_frame(number, 100, True) if is_sealed else frame(number, 100, True)
                    run.fill_copies(made, [(0, 0), (0, 1)])
                run.burst()
                data += run.received(first)
                there += run.received(second)
            sock.allowance = 1 << 40
            while run.in_rings() or run.sender._delayed.next_due or run.sender._busy:
                run.burst()
                data += run.received(first)
                there += run.received(second)
            read = sealed_numbers if is_sealed else numbers
            assert {each for _, each in read(data) + read(there)} == set(range(1, number + 1))
            assert [each for _, each in read(data)] == sorted({each for _, each in read(data)})
            assert run.sent_record(0, SENT_BYTES) == len(data) + len(there)

    check()


@pytest.mark.parametrize("is_sealed", [False, True], ids=["plain", "sealed"])
def test_more_small_blocks_than_one_call_takes_leave_in_several(make: Make, is_sealed: bool) -> None:
    """A ring that has filled up while its worker was away."""
    run = make(1, 1, slots=2048)
    connection = run.connect()
    if is_sealed:
        connection.send.writer = RecordWriter(HeaderSealer(AES_256_GCM, SECRET))
    run.burst()
    for number in range(2048):
        run.fill("plain", sealed_frame(number, 20, False) if is_sealed else frame(number, 20))
    data = b""
    while run.in_rings():
        assert not run.queue(connection).broken
        run.burst()
        data += run.received(connection)
    assert (sealed_numbers if is_sealed else numbers)(data) == [(False, number) for number in range(2048)]


def second_peer(run: SenderRun) -> None:
    run.fill("plain", frame(1))
    run.fill("plain", frame(2), FIRST_PEER_HANDLE | 1)


def with_tls(run: SenderRun) -> None:
    next(iter(run.connection_list.established)).channel = cast("TlsChannel", Channel())
    run.fill("plain", frame(1))


LONG = {
    "for several connections": second_peer,
    "for another worker": lambda run: run.fill("plain", frame(1), consumer=1),
    "with runs": lambda run: run.fill_runs("plain", [(0, 0, frame(1))]),
    "with headers of runs": lambda run: run.fill_runs("light", [(0, 0, frame(1))]),
    "with a first copy for another worker": lambda run: run.fill_copies(frame(1), [(1, 0), (0, 0)]),
    "with copies, one behind the other": lambda run: [run.fill_copies(frame(each), [(0, 0)]) for each in (1, 2)],
    "for no connection": lambda run: run.fill("plain", frame(1), FIRST_PEER_HANDLE | 2),
    "for a connection with TLS": with_tls,
    "for a peer with a rate": lambda run: (
        run.run.memory.peer_table.write_record(FIRST_PEER_HANDLE, 10**9),
        run.sender._peers.update(0),
        run.fill("plain", frame(1)),
    ),
    "for peers that share a rate": lambda run: (
        run.run.memory.peer_table.write_total_rate(10**9),
        run.sender._peers.update(0),
        run.fill("plain", frame(1)),
    ),
    "of both classes": lambda run: (
        run.fill("transit", frame(1)),
        run.fill("transit", frame(2), traffic_class=framing.LIGHT),
    ),
}


@pytest.mark.parametrize("traffic_class", [framing.BULK, framing.LIGHT])
def test_blocks_in_a_returned_ring_take_the_short_way_onto_a_connection_of_their_traffic_class(
    make: Make, traffic_class: int
) -> None:
    run = make(carrier="auto")
    connections = [connect(run, traffic_class=each) for each in (framing.BULK, framing.LIGHT)]
    run.burst()
    for number in range(2):
        run.fill("returned", frame(number), traffic_class=traffic_class)
    assert run.sender._direct.send(run.sender._scanner.readers, 0) == 2
    assert numbers(run.received(connections[traffic_class])) == [(False, 0), (False, 1)]
    assert run.received(connections[1 - traffic_class]) == b""


@pytest.mark.parametrize("fill", LONG.values(), ids=LONG)
def test_slots_take_the_long_way(make: Make, fill: Callable[[SenderRun], object]) -> None:
    run = make()
    connect(run)
    connect(run, peer=1)
    run.burst()
    fill(run)
    ready = run.in_rings()
    assert run.sender._direct.send(run.sender._scanner.readers, 0) == 0
    assert not run.sender._direct.is_complete
    assert run.in_rings() == ready
    run.burst()
    assert run.in_rings() == 0


def test_a_connection_that_breaks_is_left_to_the_inbound_duty_and_its_block_goes_to_another(make: Make) -> None:
    run = make()
    broken = connect(run)
    run.burst()
    run._far[broken].close()
    run.fill("plain", frame(1))
    run.burst()
    assert broken.send.error
    assert run.queue(broken).broken
    other = connect(run)
    run.connection_list.remove(broken, 0)
    run.burst(2)
    assert numbers(run.received(other)) == [(False, 1)]
    assert run.in_rings() == 0
