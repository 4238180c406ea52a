"""A channel whose handshake is done: bytes come out as they went in, whatever the sizes and cuts; and its end."""

from __future__ import annotations

import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.tls_channel import ANSWER_BYTES_MAX, EMPTY_RECORDS_MAX, RECORDS_MOST
from pipeline.transport.tls_context import client_context, server_context
from pipeline.transport.tls_records import RECORD_BYTES
from tests.harness.tls_ends import NAME, VIEW, End, connected, issue, tcp_pair, wait
from tests.harness.tls_foreign import FRAGMENTS_OF_512, TLS_1_2, Foreign
from tests.support import eventually

OWN = issue(NAME)
SERVER = server_context(OWN.certificate, OWN.key, minimum="1.2")
CLIENT = client_context(ca_pem=OWN.certificate, system_cas=False, verify=True)
HEADER_AND_TAG = 5 + 1 + 16  # RFC 8446, 5.2: header, content type, tag of AES-GCM
BOTH_WAYS_SECONDS = 1.0

sizes = st.one_of(st.integers(1, 50), st.integers(RECORD_BYTES - 2, RECORD_BYTES + 2), st.integers(1, 5 * RECORD_BYTES))


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["socketpair", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[End, End]]:
    with connected(CLIENT, SERVER, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[tuple[End, End]]]:
    """Three connections to one server's context."""
    with connected(CLIENT, SERVER) as first, connected(CLIENT, SERVER) as second, connected(CLIENT, SERVER) as third:
        yield [first, second, third]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def records(wire: bytes) -> list[int]:
    """Bytes of data in each record of a stream."""
    found, at = [], 0
    while at < len(wire):
        length = int.from_bytes(wire[at + 3 : at + 5], "big")
        found.append(length + 5 - HEADER_AND_TAG)
        at += 5 + length
    assert at == len(wire)
    return found


# -- bytes come out as they went in


@given(pieces=st.lists(sizes, min_size=1, max_size=6), view=sizes)
def test_pieces_arrive_whole_whatever_their_sizes_and_the_views(pairs: list, pieces: list[int], view: int) -> None:
    client, server = pairs[0]
    data = noise(sum(pieces))
    at, parts = 0, []
    for number, size in enumerate(pieces):
        part = data[at : at + size]
        parts.append(memoryview(part) if number % 2 else part)
        at += size
    sender = threading.Thread(target=client.send_raw, args=(client.channel.seal(parts),))
    sender.start()
    assert server.receive_all(len(data), max(view, len(data) // 50)) == data
    sender.join()
    assert not server.channel.pending


@given(
    lengths=st.tuples(sizes, sizes, sizes),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([1, 4, 5, 6, 1000, RECORD_BYTES, 5 * RECORD_BYTES]), sizes)
    ),
)
def test_streams_are_not_mixed_up_when_their_records_arrive_in_pieces(
    pairs: list, lengths: tuple[int, ...], steps: list[tuple[int, int, int]]
) -> None:
    plain = [noise(length, number) for number, length in enumerate(lengths)]
    left = [memoryview(client.channel.seal([text])) for (client, _), text in zip(pairs, plain, strict=True)]
    got = [b""] * len(pairs)
    view = memoryview(bytearray(VIEW))
    for number, cut, size in steps:
        client, server = pairs[number]
        if left[number]:
            left[number] = left[number][client.socket.send(left[number][:cut]) :]
            wait(server.socket, select.POLLIN)
        try:
            got[number] += bytes(view[: server.channel.receive(view[:size])])
        except BlockingIOError:
            pass
    for number, (client, server) in enumerate(pairs):
        sender = threading.Thread(target=client.send_raw, args=(left[number],))
        sender.start()
        got[number] += server.receive_all(len(plain[number]) - len(got[number]))
        sender.join()
    assert got == plain


def test_a_stream_of_one_byte_at_a_time_works(ends: tuple[End, End]) -> None:
    client, server = ends
    wire = client.channel.seal([b"slowly"]) + client.channel.seal([b" but surely"])
    got = b""
    view = memoryview(bytearray(100))
    for byte in wire:
        client.socket.send(bytes([byte]))
        wait(server.socket, select.POLLIN)
        try:
            got += bytes(view[: server.channel.receive(view)])
        except BlockingIOError:
            assert not server.channel.pending
    assert got == b"slowly but surely"


def test_small_pieces_share_a_record_and_large_ones_are_cut_into_full_ones(ends: tuple[End, End]) -> None:
    client, _ = ends
    assert records(client.channel.seal([b"a", b"b" * 100, b"c" * 1000])) == [1101]
    assert records(client.channel.seal([bytes(11), bytes(65525)])) == [RECORD_BYTES] * 4
    assert records(client.channel.seal([bytes(RECORD_BYTES - 1), bytes(RECORD_BYTES + 2)])) == [
        RECORD_BYTES,
        RECORD_BYTES,
        1,
    ]
    assert records(client.channel.seal([b"", bytes(5), b"", bytes(3 * RECORD_BYTES), b"x"])) == [RECORD_BYTES] * 3 + [6]
    assert records(client.channel.seal([b"", b""])) == []


def test_pending_says_that_more_is_inside_than_fitted_the_view(ends: tuple[End, End]) -> None:
    client, server = ends
    client.send_raw(client.channel.seal([b"first."]) + client.channel.seal([b"second."]))
    view = memoryview(bytearray(100))
    assert not server.channel.pending
    wait(server.socket, select.POLLIN)
    for size, expected, pending in ((4, b"firs", True), (2, b"t.", True), (6, b"second", True), (50, b".", False)):
        assert server.channel.receive(view[:size]) == len(expected)
        assert bytes(view[: len(expected)]) == expected
        assert server.channel.pending is pending
    with pytest.raises(BlockingIOError):
        server.channel.receive(view)


def test_bytes_that_are_pending_stay_so_while_others_receive(pairs: list) -> None:
    (client, server), (other_client, other), _ = pairs
    client.send_raw(client.channel.seal([b"one"]) + client.channel.seal([b"two"]))
    assert server.receive(1) == b"o"
    other_client.send(b"else")
    assert other.receive() == b"else"
    assert server.channel.pending
    assert server.receive_all(5) == b"netwo"


def test_one_receive_opens_so_many_records_at_most_and_the_others_are_pending(ends: tuple[End, End]) -> None:
    client, server = ends
    data = noise(3 * RECORDS_MOST + 5)
    wire = b"".join(client.channel.seal([data[at : at + 1]]) for at in range(len(data)))
    client.send_raw(wire)
    eventually(lambda: len(server.socket.recv(len(wire), socket.MSG_PEEK)) == len(wire))
    view = memoryview(bytearray(VIEW))
    got = b""
    for _ in range(4):
        got += bytes(view[: server.channel.receive(view)])
        assert server.channel.records <= RECORDS_MOST
        assert server.channel.pending is (len(got) < len(data))
        server.channel.records = 0
    assert got == data


def test_records_that_make_way_for_those_of_another_channel_are_counted(pairs: list) -> None:
    (client, server), (other_client, other), _ = pairs
    wire = client.channel.seal([b"one"])
    server.channel.moved_bytes = other.channel.moved_bytes = 0
    client.send_raw(wire[:10])
    with pytest.raises(BlockingIOError):
        wait(server.socket, select.POLLIN)
        server.channel.receive(memoryview(bytearray(9)))
    other_client.send(b"else")
    assert other.receive() == b"else"
    assert other.channel.moved_bytes == 10
    client.send_raw(wire[10:])
    assert server.receive() == b"one"
    assert server.channel.moved_bytes == 10


def test_a_view_is_filled_from_inside_and_from_the_socket_in_one_go(ends: tuple[End, End]) -> None:
    client, server = ends
    data = noise(60_000)
    wire = client.channel.seal([data])
    client.send_raw(wire)
    eventually(lambda: len(server.socket.recv(len(wire), socket.MSG_PEEK)) == len(wire))
    view = memoryview(bytearray(VIEW))
    assert server.channel.receive(view[:100]) == 100
    assert server.channel.pending
    assert server.channel.receive(view[100:]) == len(data) - 100
    assert view[: len(data)] == data
    assert not server.channel.pending


def test_both_duties_use_a_channel_at_once(ends: tuple[End, End]) -> None:
    """Each end sends in one thread and receives in another; the last block is marked."""
    block, last = (bytes([mark]) + noise(70_000) for mark in (0, 1))
    stop = threading.Event()
    sent, received = [0, 0], [0, 0]

    def outbound(number: int) -> None:
        while not stop.is_set():
            ends[number].send(block)
            sent[number] += 1
        ends[number].send(last)

    def inbound(number: int) -> None:
        data = b""
        while data != last:
            data = ends[number].receive_all(len(block))
            assert data in (block, last)
            received[number] += 1

    with ThreadPoolExecutor(4) as pool:
        duties = [pool.submit(duty, number) for duty in (outbound, inbound) for number in (0, 1)]
        stop.wait(BOTH_WAYS_SECONDS)
        stop.set()
        for duty in duties:
            duty.result(timeout=30)
    assert received == [sent[1] + 1, sent[0] + 1]
    assert min(sent) > 10


@pytest.mark.parametrize("duty", ["receive", "seal_records", "close_notify"])
def test_openssl_is_entered_by_one_thread_at_a_time(ends: tuple[End, End], duty: str) -> None:
    """Without the lock nothing goes wrong for hours, and then it does: so the test holds the lock itself."""
    client, server = ends
    client.send(b"data")
    arguments: dict[str, list[object]] = {
        "receive": [memoryview(bytearray(10))],
        "seal_records": [[b"data"]],
        "close_notify": [],
    }
    with ThreadPoolExecutor(1) as pool:
        with server.channel._lock:
            entered = pool.submit(getattr(server.channel, duty), *arguments[duty])
            assert wait_for([entered], timeout=0.1).not_done
        assert entered.result(timeout=10)


# -- its end


def test_an_orderly_end_is_0_after_everything_else(ends: tuple[End, End]) -> None:
    client, server = ends
    client.send(b"last words")
    client.send_raw(client.channel.close_notify())
    client.socket.shutdown(socket.SHUT_WR)
    assert server.receive(4) == b"last"
    assert server.receive() == b" words"
    assert server.receive() == server.receive() == b""


def test_our_own_close_notify_ends_both_directions(ends: tuple[End, End]) -> None:
    client, server = ends
    server.send(bytes(RECORD_BYTES))
    assert client.receive(10) == bytes(10)
    assert client.channel.pending
    client.send_raw(client.channel.close_notify())
    assert not client.channel.pending
    assert client.receive() == b""
    with pytest.raises(OSError):
        client.channel.seal([b"too late"])
    assert server.receive() == b""


@pytest.mark.parametrize("cut", [0, 3, 5, 20, 30])
def test_a_stream_that_ends_without_close_notify_is_an_error(ends: tuple[End, End], cut: int) -> None:
    client, server = ends
    client.send(b"whole")
    client.send_raw(client.channel.seal([b"truncated"])[:cut])
    client.socket.close()
    assert server.receive() == b"whole"
    with pytest.raises(ConnectionResetError, match="without close_notify"):
        server.receive()


@pytest.mark.parametrize("where", [5, 12, -1])
def test_a_corrupted_record_ends_the_connection(ends: tuple[End, End], where: int) -> None:
    client, server = ends
    wire = bytearray(client.channel.seal([b"corrupted"]))
    wire[where] ^= 1
    client.send_raw(wire)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        server.receive()


def test_a_repeated_record_ends_the_connection(ends: tuple[End, End]) -> None:
    client, server = ends
    wire = client.channel.seal([b"once"])
    client.send_raw(wire + wire)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        server.receive_all(8)


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (b"\x17\x03\x03\xff\xff", "TLS record of 65535 bytes, at most 18432"),
        (b"\x17\x03\x03\x48\x00" + bytes(18432), "too long|bad record"),
        (b"GET / HTTP/1.1\r\n" + bytes(9000), "version|record|request"),
    ],
)
def test_garbage_after_the_handshake_ends_the_connection(ends: tuple[End, End], wire: bytes, complaint: str) -> None:
    client, server = ends
    client.send_raw(wire)
    with pytest.raises(OSError, match=complaint):
        server.receive()


def test_a_broken_stream_does_no_harm_to_other_connections(pairs: list) -> None:
    with connected(CLIENT, SERVER) as (broken, server):
        other_client, other = pairs[0]
        other_wire = other_client.channel.seal([b"unharmed"])
        other_client.send_raw(other_wire[:10])
        wait(other.socket, select.POLLIN)
        with pytest.raises(BlockingIOError):
            other.channel.receive(memoryview(bytearray(100)))
        broken.send_raw(bytes(300))
        with pytest.raises(OSError):
            server.receive()
    other_client.send_raw(other_wire[10:])
    assert other.receive() == b"unharmed"


# -- peers that do more than ours


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    made = Foreign(SERVER)
    yield made
    made.close()


def test_a_peer_changes_its_key_and_gets_ours_changed_with_the_next_record(foreign: Foreign) -> None:
    for number in range(3 * EMPTY_RECORDS_MAX):
        foreign.update_key()
        foreign.write(b"%d" % number)
        assert foreign.server.receive() == b"%d" % number
        foreign.server.send(b"answer")
        assert not foreign.server.channel.has_output
        assert foreign.read(100) == b"answer"


def test_answers_that_openssl_has_ready_leave_with_nothing_else_to_send(foreign: Foreign) -> None:
    for _ in range(3):
        foreign.update_key()
    foreign.write(b"data")
    assert foreign.server.receive() == b"data"
    assert foreign.server.channel.has_output
    answers = foreign.server.channel.seal([])
    assert records(answers) == [5] * 2  # a KeyUpdate each; the third waits for the next record
    assert not foreign.server.channel.has_output
    foreign.server.send_raw(answers)
    assert foreign.read(100) == b""  # it has understood them
    foreign.server.send(b"more")
    assert foreign.read(100) == b"more"


def test_a_flood_of_changed_keys_ends_the_connection(foreign: Foreign) -> None:
    for _ in range(EMPTY_RECORDS_MAX + 1):
        foreign.update_key()
    with pytest.raises(ConnectionAbortedError, match=f"{EMPTY_RECORDS_MAX + 1} more TLS records without data"):
        foreign.server.receive()


def test_a_flood_of_changed_keys_with_a_byte_now_and_then_ends_the_connection_as_well(foreign: Foreign) -> None:
    """Each costs as much as a record with data, and counts as nothing where peers are charged for frames."""
    with pytest.raises(ConnectionAbortedError, match="more TLS records without data than with data"):
        for _ in range(EMPTY_RECORDS_MAX):
            foreign.update_key()
            foreign.update_key()
            foreign.update_key()
            foreign.write(b"x")
            assert foreign.server.receive() == b"x"
            foreign.server.channel.seal([])


def test_answers_that_are_never_fetched_are_bounded(foreign: Foreign) -> None:
    waiting = 0
    with pytest.raises(ConnectionAbortedError, match="answers wait unread"):
        while waiting <= 2 * ANSWER_BYTES_MAX:
            for _ in range(EMPTY_RECORDS_MAX):
                foreign.update_key()
            foreign.write(b"x")
            assert foreign.server.receive() == b"x"
            waiting += EMPTY_RECORDS_MAX * 20


def test_a_peer_that_asks_for_short_records_gets_them_and_all_of_the_data() -> None:
    foreign = Foreign(SERVER, fragments=FRAGMENTS_OF_512)
    try:
        data = noise(40_000)
        wire = foreign.server.channel.seal([data[:100], data[100:]])
        assert max(records(wire)) == 512
        foreign.server.send_raw(wire)
        got = b""
        deadline = time.monotonic() + 10
        while len(got) < len(data) and time.monotonic() < deadline:
            got += foreign.read(len(data))
        assert got == data
    finally:
        foreign.close()


def test_a_renegotiation_is_refused() -> None:
    foreign = Foreign(SERVER, maximum=TLS_1_2)
    try:
        foreign.renegotiate()
        with pytest.raises(BlockingIOError):
            foreign.server.channel.receive(memoryview(bytearray(100)))
        assert foreign.server.channel.has_output  # the alert that says no
        assert foreign.server.channel.seal([b"as before"])
    finally:
        foreign.close()
