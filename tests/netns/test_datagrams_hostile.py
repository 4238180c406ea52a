"""Datagrams that somebody has forged, replayed, moved or sent by the thousand: a counter each, and nothing else.

A real server from outside. The client has the keys of its session, or plays somebody on the path who has recorded what
passes, and who sends from addresses of his own.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.netns.harness.handmade_clients import Dialer, inviting_server
from tests.netns.test_wire_datagrams import expect_replies, in_datagrams, ping_of
from tests.reference import datagrams as wire
from tests.reference.client import WireClient
from tests.reference.datagram_client import PROBE_LEAST, DatagramClient
from tests.reference.datagrams import ControlSeal, Probe, Segment, pack_segment, segments_of
from tests.reference.sealed_blocks import BULK, LIGHT
from tests.support import eventually
from tools.bench.measure import written_bytes
from tools.lab.network import Lab

SECONDS = 5.0
UNKNOWN, REFUSED = "dgram.dropped_token_unknown", "dgram.dropped_control_refused"
MALFORMED, UNNEEDED = "dgram.dropped_segment_malformed", "dgram.segments_unneeded"
REPLAYED, NOT_OPENED = "tun.dropped_replayed", "tun.dropped_not_opened"
COUNTERS = UNKNOWN, REFUSED, MALFORMED, UNNEEDED, REPLAYED, NOT_OPENED
FLOOD = 3000
MIB = 1 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "mallory")) as made:
        yield made


@pytest.fixture(scope="module")
def dialer(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with inviting_server(lab, tmp_path_factory.mktemp("hub"), carrier="auto") as made:
        yield made


@pytest.fixture
def mallory(lab: Lab, dialer: Dialer) -> Iterator[socket.socket]:
    """A socket elsewhere, connected to the server's port."""
    with lab["mallory"].socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect((dialer.server.node.address, dialer.port))
        yield sock


def counters(dialer: Dialer) -> dict[str, int]:
    found = dialer.server.running()["counters"]
    return {name: found[name] for name in COUNTERS}


@contextmanager
def counted(dialer: Dialer, **more: int) -> Iterator[None]:
    """Of the counters above exactly these go up, by so many; no worker has to be replaced."""
    before = counters(dialer)
    yield
    expected = {name: count + more.get(name.partition(".")[2], 0) for name, count in before.items()}
    eventually(lambda: counters(dialer) == expected, SECONDS, f"{more} more than {before}, found {counters(dialer)}")
    assert not any(dialer.server.restarts().values())


def hears_nothing(sock: socket.socket) -> None:
    sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        sock.recv(65536)


def goes_on(client: WireClient, datagrams: DatagramClient, number: int = 900) -> None:
    """Packets pass both ways, by datagrams, to where they have gone before."""
    datagrams.send(ping_of(client, number))
    expect_replies(datagrams, [ping_of(client, number)])


def captured(datagrams: DatagramClient, block: Segment) -> bytes:
    """A segment as somebody on the path has seen it."""
    return pack_segment(datagrams.keys, block)


def block_of(client: WireClient, number: int = 1, n: int = 1, m: int = 0) -> list[Segment]:
    header, (sealed,) = client.session.seal(BULK, [ping_of(client, number, 1000)])
    return segments_of(header, sealed, n, m)


# -- from anybody


def garbage(datagrams: DatagramClient) -> bytes:
    return secrets.token_bytes(secrets.randbelow(1400))


def of_the_way_back(datagrams: DatagramClient) -> bytes:
    """What the server has sent, to the server."""
    return datagrams.way_back.control_token + secrets.token_bytes(60)


def a_token_alone(datagrams: DatagramClient) -> bytes:
    return datagrams.keys.data_token


STRANGERS: dict[str, tuple[Callable[[DatagramClient], bytes], str]] = {
    "garbage": (garbage, UNKNOWN),
    "of the way back": (of_the_way_back, UNKNOWN),
    "a token and no more": (a_token_alone, UNKNOWN),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_datagram_without_a_token_of_a_session_is_counted(dialer: Dialer, mallory: socket.socket, what: str) -> None:
    make, counter = STRANGERS[what]
    with in_datagrams(dialer) as (client, datagrams):
        with counted(dialer, **{counter.partition(".")[2]: 20}):
            for _ in range(20):
                mallory.send(make(datagrams) or b"x")
            goes_on(client, datagrams)
        hears_nothing(mallory)


def test_a_flood_of_garbage_costs_the_peers_nothing_but_time(dialer: Dialer, mallory: socket.socket) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        before = counters(dialer)
        for number in range(FLOOD):
            mallory.send(secrets.token_bytes(200 + number % 1000))
            if number % 500 == 0:
                goes_on(client, datagrams, number)
        goes_on(client, datagrams)
        hears_nothing(mallory)
        after = counters(dialer)
        assert 0 < after[UNKNOWN] - before[UNKNOWN] <= FLOOD
        assert {name for name in COUNTERS if after[name] != before[name]} == {UNKNOWN}


# -- from somebody who has recorded what the client sends


def test_a_recorded_segment_counts_for_nothing_when_it_comes_again(dialer: Dialer, mallory: socket.socket) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        goes_on(client, datagrams)
        (sent,) = datagrams.send_segments(block_of(client))
        expect_replies(datagrams, [ping_of(client, 1, 1000)])
        with counted(dialer, segments_unneeded=10):
            for _ in range(5):
                mallory.send(captured(datagrams, sent))
                datagrams.socket.send(captured(datagrams, sent))
            goes_on(client, datagrams)
        assert datagrams.receive_packets(0.1) == []
        hears_nothing(mallory)


def test_a_recorded_light_block_is_opened_once(dialer: Dialer, mallory: socket.socket) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        header, (sealed,) = client.session.seal(LIGHT, [ping_of(client)])
        (sent,) = datagrams.send_segments(segments_of(header, sealed, 1, 0))
        expect_replies(datagrams, [ping_of(client)])
        with counted(dialer, dropped_replayed=10):
            for _ in range(5):
                mallory.send(captured(datagrams, sent))
                datagrams.socket.send(captured(datagrams, sent))
            goes_on(client, datagrams)
        assert datagrams.receive_packets(0.1) == []


def test_a_recorded_control_datagram_moves_no_path_and_is_not_answered(dialer: Dialer, mallory: socket.socket) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        recorded = [datagrams.send_control(wire.pack(Probe(number, 1, 0, 1000))) for number in range(10)]
        for number in range(10):
            datagrams.asked[number] = 1000 + PROBE_LEAST - wire.PROBE_FIELDS.size
        assert datagrams.receive(SECONDS, lambda: datagrams.answer_to(9) is not None)
        with counted(dialer, dropped_control_refused=20):
            for each in recorded:
                mallory.send(each)
                datagrams.socket.send(each)
            goes_on(client, datagrams)
        hears_nothing(mallory)


def test_a_probe_that_somebody_brings_first_proves_no_address(dialer: Dialer, mallory: socket.socket) -> None:
    """He holds it up, and sends it himself: he gets a challenge, which he cannot answer, and no packet."""
    with in_datagrams(dialer) as (client, datagrams):
        held, datagrams.socket = datagrams.socket, mallory
        datagrams.probe(1200)
        datagrams.socket = held
        goes_on(client, datagrams)
        heard = 0
        mallory.settimeout(0.5)
        try:
            while True:
                datagram = mallory.recv(65536)
                assert datagram[:4] == datagrams.way_back.control_token
                heard += len(datagram)
        except TimeoutError:
            pass
        assert 0 < heard <= 3 * 1200
        goes_on(client, datagrams)


# -- from somebody who has seen the tokens


FORGED: dict[str, tuple[Callable[[WireClient, DatagramClient], bytes], str]] = {
    "a control datagram": (lambda client, there: there.keys.control_token + secrets.token_bytes(80), REFUSED),
    "a control datagram too short for its tag": (lambda client, there: there.keys.control_token + bytes(9), REFUSED),
    "a control datagram of another session": (
        lambda client, there: (
            there.keys.control_token
            + ControlSeal(client.session.suite, there.way_back).seal(1 << 20, 0, 0, wire.pack(Probe(1, 1)))[4:]
        ),
        REFUSED,
    ),
    "a body of no type": (lambda client, there: there.sealed_control(b"\x09" + bytes(40)), REFUSED),
    "a report of more streams than there are": (lambda client, there: there.sealed_control(b"\x03\xff\0"), REFUSED),
    "a segment without a row": (lambda client, there: there.keys.data_token + bytes(24), MALFORMED),
    "no data rows": (lambda client, there: forged(client, there, n=0), MALFORMED),
    "too many data rows": (lambda client, there: forged(client, there, n=38), MALFORMED),
    "too much parity": (lambda client, there: forged(client, there, n=4, m=7), MALFORMED),
    "another size": (lambda client, there: forged(client, there, size=5), MALFORMED),
    "a size of 4 GiB": (lambda client, there: forged(client, there, n=4, size=(1 << 32) - 1), MALFORMED),
    "a row of a wrong length": (lambda client, there: forged(client, there, n=4, m=2, size=4000), MALFORMED),
    "a copy that there is not": (lambda client, there: forged(client, there, row_index=1), MALFORMED),
}


def forged(client: WireClient, datagrams: DatagramClient, **changes: int) -> bytes:
    (segment,) = block_of(client)
    return captured(datagrams, segment._replace(**changes))


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_datagram_is_counted_and_the_session_goes_on(
    dialer: Dialer, mallory: socket.socket, what: str
) -> None:
    make, counter = FORGED[what]
    with in_datagrams(dialer) as (client, datagrams):
        with counted(dialer, **{counter.partition(".")[2]: 1}):
            mallory.send(make(client, datagrams))
            goes_on(client, datagrams)
        hears_nothing(mallory)


def test_a_forged_row_costs_its_block_alone(dialer: Dialer, mallory: socket.socket) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        segments = block_of(client, 5, n=4, m=2)
        before = dialer.server.counter("dgram.segments_received")
        with counted(dialer, dropped_not_opened=1, segments_unneeded=1):
            datagrams.send_segments(segments[:3])
            mallory.send(captured(datagrams, segments[0]._replace(row=secrets.token_bytes(len(segments[0].row)))))
            eventually(lambda: dialer.server.counter("dgram.segments_received") >= before + 4)
            datagrams.send_segments(segments[3:4])
            goes_on(client, datagrams)


def test_rows_of_blocks_that_never_come_whole_take_bounded_memory(dialer: Dialer, mallory: socket.socket) -> None:
    """One row of each block, each of another stream or number, and the largest size that there is."""
    with in_datagrams(dialer) as (client, datagrams):
        pid = dialer.server.worker_pids()["dgram-0"]
        goes_on(client, datagrams)
        row, before = bytes(1440), written_bytes(pid)
        for number in range(FLOOD):
            stream = secrets.randbelow(1 << 29) << 3 if number % 2 else 1 << 24
            segment = Segment(number, 7, stream, number, 0, 133_000, 0, 37, 0, 0, row)
            mallory.send(captured(datagrams, segment))
            if number % 500 == 0:
                datagrams.receive(0.05)
        goes_on(client, datagrams)
        assert written_bytes(pid) - before < 8 * MIB, "twice the limit of one of several peers"
        assert not any(dialer.server.restarts().values())
        hears_nothing(mallory)
